"""Encoding: batches of frames of any size, halved when they do not fit, never beyond fp16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipeline_lib.backbones.build import Backbone, build_backbone
from pipeline_lib.streams import encoding
from pipeline_lib.streams.encoding import Encoder, PendingFeatures, batches, default_batch, normalise, resize

pytestmark = pytest.mark.usefixtures("single_thread")

CPU = torch.device("cpu")


@pytest.fixture
def backbone() -> Backbone:
    return build_backbone("vgg_small", "random", grid=2, seed=0)


@pytest.fixture
def encoder(backbone: Backbone) -> Encoder:
    return Encoder(backbone, image_size=32, batch_frames=8, device=CPU, precision=torch.float32)


def make_frames(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (1, 40 + 8 * (n % 2), 56, 3), dtype=np.uint8) for n in range(count)]


def encode(encoder: Encoder, arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([encoded.wait() for encoded in encoder.encode(arrays)])


def test_resize_keeps_order_and_colours_over_mixed_sizes() -> None:
    red, blue = torch.zeros(1, 40, 60, 3, dtype=torch.uint8), torch.zeros(1, 30, 30, 3, dtype=torch.uint8)
    red[..., 0] = 200
    blue[..., 2] = 100
    pixels_NCHW = resize([red, blue, red], 16)
    assert pixels_NCHW.shape == (3, 3, 16, 16)
    assert pixels_NCHW.dtype == torch.uint8
    assert pixels_NCHW[:, :, 8, 8].tolist() == [[200, 0, 0], [0, 0, 100], [200, 0, 0]]


def test_normalise_is_imagenets(backbone: Backbone) -> None:
    white_NCHW = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert normalise(white_NCHW, backbone)[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )


def test_batches_cut_arrays_where_need_be_and_lose_nothing() -> None:
    numbers = np.arange(40)
    arrays = [numbers[:7], numbers[7:8], numbers[8:8], numbers[8:33], numbers[33:]]
    cut = [np.concatenate(batch) for batch in batches(arrays, 8)]
    assert [len(batch) for batch in cut] == [8, 8, 8, 8, 8]
    assert np.array_equal(np.concatenate(cut), numbers)
    assert [sum(map(len, batch)) for batch in batches(arrays, 15)] == [15, 15, 10]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize(("image_size", "frames"), [(32, 64), (112, 24), (224, 6), (448, 2), (1000, 2)])
def test_batches_on_a_cpu_have_so_many_pixels(image_size: int, frames: int) -> None:
    assert default_batch(CPU, image_size) == frames
    assert default_batch(torch.device("cuda"), image_size) == 256


def test_batch_that_does_not_fit_is_halved_and_stays_so(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = make_frames(8)
    expected_NKKD = encode(encoder, frames)
    tried: list[int] = []
    run = encoder._encode_batch

    def limited(batch: list[np.ndarray]) -> PendingFeatures:
        tried.append(sum(map(len, batch)))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch)

    monkeypatch.setattr(encoder, "_encode_batch", limited)
    features_NKKD = encode(encoder, frames)
    np.testing.assert_allclose(features_NKKD.astype(float), expected_NKKD.astype(float), rtol=1e-2, atol=1e-3)
    assert encoder.batch_frames == 2
    assert tried == [8, 4, 2, 2, 2, 2]
    assert "batch size halved to 2 frames" in caplog.text


def test_single_frame_that_does_not_fit_is_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: list[np.ndarray]) -> PendingFeatures:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "_encode_batch", full)
    with pytest.raises(torch.OutOfMemoryError):
        encode(encoder, make_frames(2))


def test_bf16_stays_near_fp32(backbone: Backbone, encoder: Encoder) -> None:
    frames = make_frames(4)
    half = Encoder(backbone, image_size=32, batch_frames=8, device=CPU, precision=torch.bfloat16)
    exact, rough = encode(encoder, frames).astype(float), encode(half, frames).astype(float)
    assert np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 2e-2


def test_the_time_it_takes_is_told(encoder: Encoder) -> None:
    [features] = encoder.encode(make_frames(3))
    assert 0 < features.seconds < 60


def test_features_beyond_fp16_are_an_error(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.backbone.extractor.features[-2].weight.fill_(1e9)
    with pytest.raises(ValueError, match="overflow fp16"):
        encode(encoder, make_frames(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_agrees_with_the_cpu(backbone: Backbone, encoder: Encoder) -> None:
    frames = make_frames(6)
    expected_NKKD = encode(encoder, frames).astype(float)
    on_gpu = Encoder(backbone, image_size=32, batch_frames=8, device=torch.device("cuda"), precision=torch.float32)
    features_NKKD = encode(on_gpu, frames).astype(float)
    assert np.linalg.norm(features_NKKD - expected_NKKD) / np.linalg.norm(expected_NKKD) < 1e-2


def test_batches_are_computed_where_no_other_thread_changes_how(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def recording(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(encoding, "deterministic_inference", recording)
    encode(encoder, make_frames(20))
    assert entered == [CPU] * 4
