"""Optical flow of a video: known motion is found, the camera's is removed, and each frame shows the right flows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from pipeline_lib.params.stages import FlowMethodName, StreamParams
from pipeline_lib.streams.flow import encoder
from pipeline_lib.streams.flow.encoder import FlowEncoder, FlowSpec
from pipeline_lib.streams.flow.encoding import encode_flow, mirror
from pipeline_lib.streams.flow.method import DecoderMethod, DeviceMethod, FlowMethod, find_method
from pipeline_lib.streams.flow.methods import dis
from pipeline_lib.streams.flow.methods import raft as raft_module
from pipeline_lib.streams.flow.opencv import single_threaded
from pipeline_lib.streams.flow.opening import flow_spec, open_flow
from pipeline_lib.video import decode_worker
from pipeline_lib.video.decoders import Derived, read_arrays, read_images
from pipeline_lib.video.writing import VideoWriter

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parents[4]


def stream(**changes: Any) -> StreamParams:
    return StreamParams(**({"input": "flow", "image_size": 64, "bound": 8.0} | changes))


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random grey image, which flow methods can follow."""
    noise = np.random.default_rng(seed).uniform(0, 255, (side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moving(num_frames: int, side: int = 64, *, step: tuple[int, int] = (2, -1)) -> np.ndarray:
    """Return frames_NHWC of a texture that moves by `step` (x, y) pixels a frame."""
    margin = num_frames * max(map(abs, step))
    large = texture(side + 2 * margin)
    starts = [(margin - n * step[0], margin - n * step[1]) for n in range(num_frames)]
    frames = [large[y : y + side, x : x + side] for x, y in starts]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


def decoder_method(name: str) -> FlowMethod:
    method = find_method(name)
    assert isinstance(method, DecoderMethod)
    return method.open()


def flows_of(method: str, frames_NHWC: np.ndarray) -> np.ndarray:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_NHWC]
    return np.stack(list(decoder_method(method).start()(grey)))


def opened(params: StreamParams, max_side: int | None = None) -> Derived | FlowEncoder:
    return open_flow(flow_spec(params, max_side=max_side), params, CPU)


def open_encoder(max_side: int | None = None, **changes: Any) -> FlowEncoder:
    """Return the encoder that the decoder process uses, or for RAFT this one."""
    flow = opened(stream(**changes), max_side)
    if isinstance(flow, FlowEncoder):
        return flow
    spec = FlowSpec(*flow.arguments)
    return FlowEncoder(spec, decoder_method(spec.method))


def encoded(frames_NHWC: np.ndarray, *sizes: int, **changes: Any) -> np.ndarray:
    arrays = np.split(frames_NHWC, np.cumsum(sizes))
    return np.concatenate(list(open_encoder(**changes).encode_arrays(arrays)))


def test_every_name_is_a_module_and_nothing_else_names_a_method() -> None:
    assert all(isinstance(find_method(name), DecoderMethod | DeviceMethod) for name in get_args(FlowMethodName))
    modules = {path.stem for path in Path(str(dis.__file__)).parent.glob("*.py")} - {"__init__"}
    assert modules == set(get_args(FlowMethodName))
    named = re.compile("|".join(rf"[\"']{name}[\"']|methods\.{name}\b|import {name}\b" for name in modules))
    sources = [path for package in ("pipeline_lib", "tasks", "flows") for path in (REPOSITORY / package).rglob("*.py")]
    naming = [path.relative_to(REPOSITORY).as_posix() for path in sources if named.search(path.read_text(encoding="utf-8"))]
    assert naming == ["pipeline_lib/params/stages.py"]


@pytest.mark.parametrize(("method", "side", "tolerance"), [("dis", 64, 0.1), ("farneback", 64, 0.1), ("tvl1", 32, 0.2)])
def test_known_translation_is_found(method: str, side: int, tolerance: float) -> None:
    flows_MSS2 = flows_of(method, moving(2, side))
    assert flows_MSS2.shape == (1, side, side, 2)
    inside = flows_MSS2[0, 8:-8, 8:-8]
    assert np.median(inside, axis=(0, 1)) == pytest.approx([2, -1], abs=tolerance)


def test_camera_motion_is_removed() -> None:
    images_NSSC = encoded(moving(3))
    inside = images_NSSC[:, 12:-12, 12:-12].astype(int)
    assert abs(inside - 128).max() <= 4


def test_flow_is_in_pixels_of_the_resized_frame() -> None:
    """A part of a still scene moves by 4 pixels of a frame of twice the size."""
    frames_NHWC = np.repeat(texture(128)[None, :, :, None], 2, axis=0).repeat(3, axis=-1)
    frames_NHWC[:, 48:80, 48:80] = moving(2, 32, step=(4, 0))
    image_SSC = encoded(frames_NHWC)[0].astype(int)
    middle = slice(len(image_SSC) // 2 - 3, len(image_SSC) // 2 + 3)
    background = np.median(image_SSC[:14, :, 0])
    moved = np.median(image_SSC[middle, middle, 0])
    assert (moved - background) * 8 / 127 == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(("side", "computed"), [(512, 128), (225, 57), (224, 56), (112, 56), (48, 48)])
def test_dis_is_computed_at_a_quarter_of_the_side_but_not_below_its_least(side: int, computed: int) -> None:
    images_NSSC = encoded(moving(2, 64), image_size=side)
    assert images_NSSC.shape == (2, computed, computed, 3)
    assert flow_spec(stream(image_size=side, method="farneback")).kept_side == side


def test_dis_is_nearly_as_exact_as_the_preset_on_whole_images() -> None:
    side, bound = 224, 12.0
    second_SS = texture(side)
    noise_SS2 = np.random.default_rng(1).normal(size=(side, side, 2)).astype(np.float32)
    known_SS2 = cv2.GaussianBlur(noise_SS2, (0, 0), 30)
    known_SS2 *= 8 / abs(known_SS2).max()
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    first_SS = cv2.remap(
        second_SS, columns + known_SS2[..., 0], rows + known_SS2[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    frames_NHWC = np.repeat(np.stack([first_SS, second_SS])[..., None], 3, axis=-1)
    ours_SSC = encoded(frames_NHWC, image_size=side, bound=bound, encoding="stack")[0].astype(np.float32)
    preset = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found = [preset.calc(first_SS, second_SS, None), (cv2.resize(ours_SSC, (side, side)) - 128) * (bound / 127)]
    known_SS2 -= known_SS2.mean(axis=(0, 1))
    preset_error, our_error = (np.linalg.norm(flow - flow.mean(axis=(0, 1)) - known_SS2, axis=-1).mean() for flow in found)
    assert our_error < 1.2 * preset_error < 1


def reference(flow_SS2: np.ndarray, bound: float) -> np.ndarray:
    """Encode in float64, one pixel at a time."""
    flow_SS2 = flow_SS2.astype(np.float64)
    mean = [sum(float(value) for value in flow_SS2[..., axis].ravel()) / flow_SS2[..., axis].size for axis in (0, 1)]
    encoded_SSC = np.empty((*flow_SS2.shape[:2], 3))
    for row, column in np.ndindex(*flow_SS2.shape[:2]):
        x, y = (flow_SS2[row, column, axis] - mean[axis] for axis in (0, 1))
        for axis, value in enumerate((x, y)):
            encoded_SSC[row, column, axis] = 128 + 127 * min(max(value / bound, -1), 1)
        encoded_SSC[row, column, 2] = 128 + 127 * min((x * x + y * y) ** 0.5 / bound, 1)
    return encoded_SSC


@pytest.mark.parametrize("bound", [20.0, 3.5])
def test_encoding_equals_a_float64_reference(bound: float) -> None:
    flow_SS2 = np.random.default_rng(0).normal(3, 4, (24, 24, 2)).astype(np.float32)
    encoded_SSC = encode_flow(flow_SS2, bound, magnitude=True)
    assert encoded_SSC.dtype == np.uint8
    assert abs(encoded_SSC - reference(flow_SS2, bound)).max() <= 0.5 + 1e-4
    assert np.array_equal(encode_flow(flow_SS2, bound, magnitude=False), encoded_SSC[..., :2])


def test_range_is_symmetric_about_zero_motion() -> None:
    flow_SS2 = np.zeros((2, 2, 2), np.float32)
    flow_SS2[0, 0], flow_SS2[1, 1] = (30, 1), (-30, -1)
    image_SSC = encode_flow(flow_SS2, 20.0, magnitude=True)
    assert image_SSC[..., 0].tolist() == [[255, 128], [128, 1]]
    assert image_SSC[..., 1].tolist() == [[134, 128], [128, 122]]
    assert image_SSC[..., 2].tolist() == [[255, 128], [128, 255]]


@pytest.mark.parametrize("magnitude", [True, False])
def test_mirrored_image_is_the_image_of_the_mirrored_flow(magnitude: bool) -> None:
    flow_SS2 = np.random.default_rng(0).normal(0, 4, (8, 8, 2)).astype(np.float32)
    flow_SS2 -= flow_SS2.mean(axis=(0, 1))
    mirrored_SS2 = flow_SS2[:, ::-1] * np.array([-1, 1], np.float32)
    images = [encode_flow(flow, 5.0, magnitude=magnitude) for flow in (flow_SS2, mirrored_SS2)]
    image_CSS, mirrored_CSS = (torch.from_numpy(image).permute(2, 0, 1) for image in images)
    assert torch.equal(mirror(image_CSS), mirrored_CSS)
    assert torch.equal(mirror(torch.stack([mirrored_CSS] * 2)), torch.stack([image_CSS] * 2))


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the flow of a pair differ from pixel to pixel by an amount that is the first image's grey level."""

    def flows(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        ramp_SS2 = np.stack(np.meshgrid(*[np.linspace(-1, 1, len(images[0]))] * 2), axis=-1).astype(np.float32)
        return (np.float32(image_SS[0, 0]) * ramp_SS2 for image_SS in images[:-1])

    monkeypatch.setattr(dis, "METHOD", DecoderMethod(lambda: FlowMethod(lambda: flows, is_grey=True)))


def levels(num_frames: int) -> np.ndarray:
    return np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None] + 10, (num_frames, 16, 16, 3)).copy()


def shown(images_NSSC: np.ndarray, bound: float) -> list[list[int]]:
    """Return the number of the flow in each x channel of each image, and check that y shows the same."""
    x_NL, y_NL = images_NSSC[:, 0, -1, 0::2].astype(float), images_NSSC[:, -1, 0, 1::2].astype(float)
    assert np.array_equal(x_NL, y_NL)
    return np.rint((x_NL - 128) * bound / 127 - 10).astype(int).tolist()


@pytest.mark.usefixtures("numbered")
def test_stack_holds_the_following_flows_and_repeats_the_last() -> None:
    images_NSSC = encoded(levels(6), image_size=16, bound=100.0, stack=3)
    assert images_NSSC.shape == (6, 16, 16, 6)
    assert shown(images_NSSC, 100.0) == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4], [4, 4, 4], [4, 4, 4]]


@pytest.mark.usefixtures("numbered")
def test_flows_cross_batches_and_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH_FLOWS", 4)
    images_NSSC = encoded(levels(11), 3, 6, image_size=16, bound=100.0, stack=2)
    assert shown(images_NSSC, 100.0) == [[min(n, 9), min(n + 1, 9)] for n in range(11)]


@pytest.mark.usefixtures("numbered")
def test_image_shows_one_flow_and_the_last_one_again() -> None:
    images_NSSC = encoded(levels(4), image_size=16, bound=100.0)
    assert images_NSSC.shape == (4, 16, 16, 3)
    assert shown(images_NSSC[..., :2], 100.0) == [[0], [1], [2], [2]]


@pytest.mark.parametrize("stack", [1, 4])
def test_video_of_one_frame_stands_still(stack: int) -> None:
    images_NSSC = encoded(moving(1), stack=stack, encoding="stack")
    assert images_NSSC.shape == (1, 56, 56, 2 * stack)
    assert (images_NSSC == 128).all()
    assert (encoded(moving(1)) == 128).all()


def test_smaller_flows_hold_the_same_motion() -> None:
    whole, half = (np.stack(list(open_encoder(side).encode(iter(moving(3))))) for side in (None, 28))
    assert half.shape == (3, 28, 28, 3)
    means = whole.reshape(3, 28, 2, 28, 2, 3).mean(axis=(2, 4))
    assert abs(half - means).max() <= 0.5
    assert next(open_encoder(28).encode(iter(moving(1)))).shape == (28, 28, 3)


def test_kept_flows_are_single_ones() -> None:
    frames_NHWC = moving(5)
    kept = np.stack(list(open_encoder(64, stack=3).encode(iter(frames_NHWC))))
    assert np.array_equal(kept, encoded(frames_NHWC, stack=3)[..., :2])


def test_no_frames_are_no_images() -> None:
    assert not list(open_encoder().encode(iter([])))


@pytest.mark.parametrize("changes", [{}, {"stack": 5}, {"method": "farneback"}])
def test_split_into_arrays_changes_no_byte(changes: dict[str, Any]) -> None:
    frames_NHWC = moving(21)
    whole = encoded(frames_NHWC, **changes)
    assert len(whole) == 21
    assert np.array_equal(encoded(frames_NHWC, 1, 15, 2, **changes), whole)


def test_threads_encode_several_videos_to_the_same_bytes() -> None:
    flow_encoder = open_encoder(stack=2)
    videos = [moving(12, step=(x, 1)) for x in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frames: np.concatenate(list(flow_encoder.encode_arrays([frames]))), videos))
    assert all(np.array_equal(images, encoded(video, stack=2)) for images, video in zip(together, videos, strict=True))


def test_number_of_opencv_threads_is_as_before() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        with single_threaded(cv2):
            with single_threaded(cv2):
                assert cv2.getNumThreads() == 1
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_real_video_moves_within_the_bound(shared: Path) -> None:
    path = next((shared / "data" / "ucf101" / "videos" / "TrampolineJumping").iterdir())
    frames_NHWC = np.concatenate(list(read_arrays(path)))[:8]
    images_NSSC = encoded(frames_NHWC, image_size=112, bound=20.0)
    assert images_NSSC[..., 2].max() > 138
    assert (images_NSSC[..., 2] == 255).mean() < 0.01


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "moving.mp4"
    with VideoWriter(path, width=64, height=64, fps=15) as writer:
        for frame_HWC in moving(23):
            writer.write(frame_HWC)
    return path


@pytest.mark.integration
@pytest.mark.parametrize("changes", [{}, {"stack": 3}, {"method": "farneback"}, {"image_size": 24}], ids=str)
def test_decoder_process_makes_the_flow_of_its_frames(video: Path, changes: dict[str, Any]) -> None:
    flow = opened(stream(**changes))
    assert isinstance(flow, Derived)
    made: dict[Any, list[np.ndarray]] = {None: [], flow: []}
    for kind, images_NHWC in read_images(video, [None, flow]):
        made[kind].append(images_NHWC)
    frames_NHWC, flows_NSSC = map(np.concatenate, made.values())
    assert np.array_equal(frames_NHWC, np.concatenate(list(read_arrays(video))))
    assert np.array_equal(flows_NSSC, encoded(frames_NHWC, **changes))
    alone = list(read_images(video, [flow]))
    assert {kind for kind, _ in alone} == {flow}
    assert np.array_equal(np.concatenate([images_NSSC for _, images_NSSC in alone]), flows_NSSC)


@pytest.mark.integration
def test_decoder_process_imports_no_pytorch_and_opencv_only_for_flow() -> None:
    code = (
        "import sys; from runpy import run_path\n"
        "worker = run_path(sys.argv[1]); before = set(sys.modules)\n"
        "worker['_function']('pipeline_lib.streams.flow.encoder', 'flow_images')(iter([]), 'dis', 64, 56, 8.0, True, 1, 56)\n"
        "print('cv2' in before, 'cv2' in sys.modules, *{'torch', 'pydantic', 'pandas'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-P", "-c", code, decode_worker.__file__]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout
    assert printed.split() == ["False", "True"]


def test_missing_opencv_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"^features\.input = flow: OpenCV cannot be imported .*pip install.*$"):
        opened(stream())


def test_missing_contrib_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ValueError, match=r"^features\.method = tvl1: .*pip install opencv-contrib-python-headless`$"):
        opened(stream(method="tvl1"))


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("raft") / "raft.pth"
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), path)
    return str(path)


@pytest.mark.parametrize("image_size", [20, 132])
def test_raft_runs_on_any_size_and_pads_at_the_end(raft_weights: str, image_size: int) -> None:
    method = raft_module.METHOD.open(stream(method="raft", method_weights=raft_weights), CPU)
    frames_NHWC = moving(3, image_size)
    flows_MSS2 = np.stack(list(method.start()(list(frames_NHWC))))
    assert flows_MSS2.shape == (2, image_size, image_size, 2)
    assert np.isfinite(flows_MSS2).all()
    side = {20: 128, 132: 136}[image_size]
    padded = np.pad(frames_NHWC, ((0, 0), (0, side - image_size), (0, side - image_size), (0, 0)), mode="edge")
    of_padded = np.stack(list(method.start()(list(padded))))
    assert np.allclose(of_padded[:, :image_size, :image_size], flows_MSS2, atol=1e-4)


def test_raft_encodes_a_video(raft_weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(raft_weights).parent))
    images_NSSC = encoded(moving(4), method="raft", method_weights="~/raft.pth", stack=2)
    assert images_NSSC.shape == (4, 64, 64, 4)


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"x", "not a state dict"), ({}, "does not fit")])
def test_unusable_raft_weights_are_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "raft.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^features\.method_weights: .*{message}.*$"):
        opened(stream(method="raft", method_weights=str(path)))


def test_raft_that_cannot_be_downloaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(raft_module, "raft_small", fail)
    with pytest.raises(ValueError, match=r"^features\.method = raft: .*\(no network\); .*method_weights.*$"):
        opened(stream(method="raft"))
