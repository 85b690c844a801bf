"""Streams: the images that networks see of a video, and the features of their steps."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.params import StreamParams
from pipeline_lib.streams.encoding import normalise, resize
from pipeline_lib.streams.flow.encoder import flow_images
from pipeline_lib.streams.stream import Span, Stream, interleave, params_of, share, wanted_of
from pipeline_lib.video import decoders

pytestmark = pytest.mark.usefixtures("single_thread")

CPU = torch.device("cpu")
SMALL = {"weights": "random", "image_size": 32, "grid": 2, "precision": "fp32", "seed": 3}
RGB = StreamParams(backbone="vgg_small", **SMALL)
FLOW = StreamParams(input="flow", backbone="vgg_small", **SMALL)
STACK = StreamParams(input="flow", stack=3, backbone="vgg_small", **SMALL)
CLIP = StreamParams(input="clip", backbone="r3d_18", **SMALL)
"""16 frames have two steps."""
FRAMES = 16
SPAN = Span((0, 16), 20)
"""A clip, and one of 4 frames that is padded; the video has more frames."""


def name_of(value: object) -> str | None:
    return f"{value.backbone}-{value.input}-{value.stack}" if isinstance(value, StreamParams) else None


def make_video(num_frames: int = 23) -> np.ndarray:
    """Return frames_NHW3: noise that moves to the right."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 360, 3), dtype=np.uint8)
    return np.stack([noise[:, 300 - 2 * number : 356 - 2 * number] for number in range(num_frames)])


def in_arrays(frames: np.ndarray, size: int = 7) -> Iterator[np.ndarray]:
    return iter([frames[first : first + size] for first in range(0, len(frames), size)])


def decoded(params: StreamParams, frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield what the decoder sends for a stream."""
    wanted = open_stream(params).wanted
    return in_arrays(np.stack(list(wanted.function(iter(frames), *wanted.arguments))) if wanted else frames)


@functools.cache
def open_stream(params: StreamParams) -> Stream:
    return Stream(params, clip_frames=FRAMES, device=CPU)


def test_flow_at_a_clips_border_is_the_videos():
    frames = make_video()
    images = np.concatenate(list(open_stream(STACK).images(decoded(STACK, frames), SPAN)))
    expected = list(flow_images(iter(frames), "dis", 32, 32, 20.0, False, 3, 32))[:20]
    np.testing.assert_array_equal(images, expected)
    of_clip = np.concatenate(list(decoded(STACK, frames[:16])))
    assert not np.array_equal(images[15], of_clip[15])
    assert images.shape == (20, 32, 32, 6)


def test_a_clip_network_sees_whole_clips_with_the_last_frame_again():
    frames = make_video()
    stream = open_stream(CLIP)
    first, second = stream.images(in_arrays(frames), SPAN)
    np.testing.assert_array_equal(first, frames[:16])
    np.testing.assert_array_equal(second, frames[[16, 17, 18, *[19] * 13]])
    assert stream.step_frames == build_backbone("r3d_18", "random", grid=2, seed=3).step_frames(FRAMES)


@pytest.mark.parametrize("params", [RGB, FLOW, STACK], ids=name_of)
def test_windows_of_frames_are_the_backbones_features_of_each_image(params):
    stream = open_stream(params)
    frames = make_video()
    images = np.concatenate(list(stream.images(decoded(params, frames), SPAN)))
    backbone = build_backbone("vgg_small", "random", grid=2, seed=3, channels_in=params.input_channels)
    with torch.inference_mode():
        expected_NKKD = backbone(normalise(resize([torch.from_numpy(images)], 32), backbone)).numpy()
    first, second = stream.windows(decoded(params, frames), SPAN)
    assert (first.first_frame, first.valid_frames, second.first_frame, second.valid_frames) == (0, 16, 16, 4)
    np.testing.assert_allclose(first.values, expected_NKKD[:16], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(second.values, expected_NKKD[[16, 17, 18, *[19] * 13]], rtol=1e-2, atol=1e-3)


def test_windows_of_clips_are_the_backbones_features_of_each_clip_and_may_overlap():
    stream = open_stream(CLIP)
    frames = make_video()
    backbone = build_backbone("r3d_18", "random", grid=2, seed=3)
    windows = list(stream.windows(in_arrays(frames), Span((0, 5, 10), 23)))
    assert [(window.first_frame, window.valid_frames) for window in windows] == [(0, 16), (5, 16), (10, 13)]
    for window in windows:
        clip = frames[np.minimum(np.arange(window.first_frame, window.first_frame + 16), 22)]
        with torch.inference_mode():
            pixels_NCHW = normalise(resize([torch.from_numpy(clip)], 32), backbone)
            expected_SKKD = backbone(pixels_NCHW.transpose(0, 1)[None])[0].numpy()
        assert expected_SKKD.shape == (2, 2, 2, 512)
        np.testing.assert_allclose(window.values, expected_SKKD, rtol=1e-2, atol=1e-2)


def test_several_streams_of_one_decoding_are_what_each_is_alone_and_go_in_step():
    streams = {name: open_stream(params) for name, params in {"rgb": RGB, "flow": FLOW, "stack": STACK, "clip": CLIP}.items()}
    frames = make_video(150)
    span = Span(tuple(range(0, 150, 16)), 150)
    together: dict[str, list[np.ndarray]] = {name: [] for name in streams}
    covered = dict.fromkeys(streams, 0)
    kinds = {stream.wanted: decoded(stream.params, frames) for stream in streams.values()}
    assert list(kinds) == wanted_of(streams.values())
    in_step = ((kind, array) for arrays in zip(*kinds.values(), strict=True) for kind, array in zip(kinds, arrays, strict=True))
    for name, images in interleave(streams, in_step, span):
        together[name].append(images)
        covered[name] += streams[name].covered_frames(images)
        assert max(covered.values()) - min(covered.values()) <= 16
    for name, stream in streams.items():
        alone = np.concatenate(list(stream.images(decoded(stream.params, frames), span)))
        np.testing.assert_array_equal(np.concatenate(together[name]), alone)


def test_an_array_is_let_go_when_the_last_branch_passed_it():
    made: list[weakref.ref[np.ndarray]] = []

    def arrays() -> Iterator[tuple[decoders.Wanted, np.ndarray]]:
        for number in range(50):
            array = np.full(3, number)
            made.append(weakref.ref(array))
            yield decoders.RGB, array
            del array

    first, second = share(arrays(), [decoders.RGB] * 2)
    for number in range(20):
        assert next(first)[0] == number
    assert sum(array() is not None for array in made) in (20, 21)
    for number in range(20):
        assert next(second)[0] == number
    assert sum(array() is not None for array in made) <= 1
    assert [array[0] for array in second] == [array[0] for array in first] == list(range(20, 50))


@pytest.mark.parametrize("params", [RGB, FLOW, STACK, CLIP], ids=name_of)
def test_provenance_is_enough_to_open_the_stream_again(params, tmp_path):
    stream = open_stream(params)
    torch.save(stream.encoder.backbone.extractor.state_dict(), tmp_path / "weights.pt")
    again = Stream(params_of(stream.provenance, CPU), clip_frames=FRAMES, device=CPU, weights_file=tmp_path / "weights.pt")
    assert again.provenance == stream.provenance | {"weights": "state dict"}
    for window, expected in zip(*(each.windows(decoded(params, make_video()), SPAN) for each in (again, stream)), strict=True):
        np.testing.assert_array_equal(window.values, expected.values)


def test_frames_are_described_as_in_older_files():
    assert open_stream(RGB).preprocessing == {
        "colour": "RGB",
        "image_size": 32,
        "resize": "bilinear, antialiased, aspect ratio not kept, rounded to uint8",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "map": [2, 2, 128],
        "grid": 2,
        "pooling": "none",
    }


def test_the_precision_of_a_gpu_becomes_the_better_one_on_a_cpu():
    provenance: dict[str, Any] = {"backbone": "vgg_small", "preprocessing": {"image_size": 32, "grid": 2}}
    assert params_of(provenance | {"precision": "fp16"}, CPU).precision == "fp32"
    assert params_of(provenance | {"precision": "bf16, fp32"}, CPU).precision == "bf16"
    assert params_of(provenance | {"precision": "fp16"}, torch.device("cuda")).precision == "fp16"


@pytest.mark.parametrize(
    ("params", "frames", "message"),
    [
        (StreamParams(input="clip", backbone="vgg_small", **SMALL), 16, "vgg_small: takes single images, not clips"),
        (StreamParams(backbone="r3d_18", **SMALL), 16, "r3d_18: takes clips, not single images"),
        (StreamParams(input="flow", backbone="r3d_18", **SMALL), 16, "r3d_18: takes clips, not single images"),
        (StreamParams(input="clip", backbone="s3d", **SMALL), 8, "chunk.frames = 8: s3d needs clips of at least"),
    ],
    ids=name_of,
)
def test_a_backbone_that_does_not_fit_its_input_is_one_clear_line(params, frames, message):
    with pytest.raises(ValueError, match=message) as caught:
        Stream(params, clip_frames=frames, device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("params", [RGB, FLOW, STACK, CLIP], ids=name_of)
def test_a_video_of_one_frame(params):
    [window] = open_stream(params).windows(decoded(params, make_video(1)), Span((0,), 1))
    assert (window.first_frame, window.valid_frames) == (0, 1)
    assert len(window.values) == (2 if params is CLIP else 16)
    assert np.isfinite(window.values).all()
