"""Trainings in threads of one process: each gives the bits that it gives alone. What needs a GPU is skipped without one.

Nothing here needs fixtures of this project's, so that a machine with a GPU and little else runs it too.
"""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.compute.determinism import seeded
from pipeline_lib.compute.devices import fp32_precision
from pipeline_lib.compute.gpu_sharing import GPU_LOCK, own_stream, tensor_cores
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import ModelParams, TrainParams
from pipeline_lib.streams.feature_files import FeatureReader, FeatureWriter
from pipeline_lib.train import train_model, training
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training import batches
from pipeline_lib.training.batches import Batch, ClipLoader
from pipeline_lib.training.inference import infer

pytestmark = pytest.mark.integration

FRAMES, GRID, CHANNELS = 12, 4, 96
CLASSES = ("jump", "sit", "wave")
PARAMS = TrainParams(epochs=4, batch_size=16, alstm_units=96, conv_alstm_units=24, dropout=0.5, attention_penalty=0.1)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="trainings run side by side on a GPU only")
device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])

Store = tuple[pd.DataFrame, list[Path]]
Alone = Callable[[ModelParams], bytes]


@pytest.fixture(scope="module", autouse=True)
def one_thread_each() -> Iterator[None]:
    """Run torch in one thread for each of ours, as tiny networks gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_clips(num_clips: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of clips, every third for validation, and their features_NTKKD, in which the class can be seen."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, len(CLASSES), num_clips)
    features_NTKKD = np.maximum(rng.normal(0, 1, (num_clips, FRAMES, GRID, GRID, CHANNELS)), 0)
    features_NTKKD[np.arange(num_clips), :, labels_N, 0, labels_N] += 3
    table = {
        "clip": [f"video{number}#0" for number in range(num_clips)],
        "video": [f"video{number}" for number in range(num_clips)],
        "class_name": [CLASSES[label] for label in labels_N],
        "split": ["val" if number % 3 == 0 else "train" for number in range(num_clips)],
        "first_frame": 0,
        "valid_frames": rng.integers(1, FRAMES + 1, num_clips),
    }
    return pd.DataFrame(table), features_NTKKD


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return 120 clips: five batches of training an epoch, the last one short."""
    clips, features_NTKKD = draw_clips(120)
    path = tmp_path_factory.mktemp("features") / "features.h5"
    attributes = dict.fromkeys(("backbone", "weights", "weights_sha256", "precision"), "any")
    attributes |= {"preprocessing": {"image_size": 64}, "tool_versions": {"torch": "2"}, "fps": 15.0}
    with FeatureWriter(path, clips, frame_shape=(GRID, GRID, CHANNELS), frames=FRAMES) as writer:
        writer.describe(attributes)
        for features_TKKD, valid_frames in zip(features_NTKKD, clips["valid_frames"], strict=True):
            writer.append(features_TKKD[:valid_frames])
    return clips, [path]


def params_of(model: str, device: str, seed: int = 0, **changes: Any) -> ModelParams:
    return PARAMS.model_copy(update={"device": device, "seed": seed, **changes}).of(model)


def train(store: Store, folder: Path, params: ModelParams, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> bytes:
    """Train in a folder, going on where another training was killed there; return the checkpoint."""
    clips, files = store
    for name in ("artifact", "partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    train_model(clips, files, folder / "artifact", folder / "partial", params, on_epoch=on_epoch)
    return (folder / "artifact" / "checkpoint.safetensors").read_bytes()


@pytest.fixture(scope="module")
def train_alone(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Return a function that trains with nothing beside it and returns the checkpoint: once, however often it is asked."""
    checkpoints: dict[str, bytes] = {}

    def train_alone(params: ModelParams) -> bytes:
        key = params.model_dump_json()
        if key not in checkpoints:
            checkpoints[key] = train(store, tmp_path_factory.mktemp("alone"), params)
        return checkpoints[key]

    return train_alone


def train_together(store: Store, folder: Path, trainings: Sequence[ModelParams]) -> list[bytes]:
    with ThreadPoolExecutor(len(trainings)) as pool:
        jobs = [pool.submit(train, store, folder / str(number), params) for number, params in enumerate(trainings)]
        return [job.result() for job in jobs]


@contextmanager
def captures_under_way() -> Iterator[threading.Event]:
    """Capture one training step after the other in a thread; yields what is set after the first."""
    stop, captured = threading.Event(), threading.Event()

    def capture(number: int) -> None:
        with own_stream(torch.device("cuda")), closing(make_trainer(number)) as trainer:
            for _ in range(3):
                trainer.step(make_batch()).tolist()
        captured.set()

    def capture_all() -> None:
        numbers = itertools.count()
        while not stop.is_set():
            capture(next(numbers))

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(capture_all)
        try:
            yield captured
        finally:
            stop.set()
            job.result()


def make_trainer(seed: int, model: str = "alstm") -> Trainer:
    params = params_of(model, "cuda", seed)
    with seeded(seed):
        network = build_model(params, channels=CHANNELS, grid=GRID, num_classes=len(CLASSES))
    return Trainer(network.cuda().train(), torch.device("cuda"), params, train=None, val=None)  # type: ignore[arg-type]


def make_batch() -> Batch:
    clips, features_NTKKD = draw_clips(16)
    labels = torch.tensor([CLASSES.index(name) for name in clips["class_name"]])
    tensors = torch.from_numpy(features_NTKKD).half(), torch.tensor(clips["valid_frames"].to_numpy()), labels
    return Batch(*(tensor.cuda() for tensor in tensors))


@device
@pytest.mark.parametrize("models", [("alstm", "conv_alstm"), ("alstm", "alstm", "conv_alstm", "attention_pool")])
def test_each_gives_the_bits_that_it_gives_alone(
    tmp_path: Path, store: Store, train_alone: Alone, device: str, models: Sequence[str]
) -> None:
    """Both scorers of ALSTM among them."""
    scorers = "pooled", *["local"] * len(models)
    trainings = [params_of(model, device, seed, scorer=scorers[seed]) for seed, model in enumerate(models)]
    alone = [train_alone(params) for params in trainings]
    for turn in range(1 if device == "cpu" else 3):
        assert train_together(store, tmp_path / f"together{turn}", trainings) == alone
    assert len(set(alone)) == len(models)
    assert not torch.are_deterministic_algorithms_enabled()
    assert fp32_precision() == ("ieee",) * 3


@device
@pytest.mark.parametrize("model", ["alstm", "conv_alstm"])
def test_killed_beside_another_and_resumed_beside_a_third(
    tmp_path: Path, store: Store, train_alone: Alone, device: str, model: str
) -> None:
    def break_off(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    params, other = params_of(model, device), params_of("alstm", device, seed=5)
    unbroken, other_alone = train_alone(params), train_alone(other)
    with ThreadPoolExecutor(2) as pool:
        broken = pool.submit(train, store, tmp_path / "broken", params, break_off)
        beside = pool.submit(train, store, tmp_path / "beside", other)
        assert beside.result() == other_alone
        with pytest.raises(KeyboardInterrupt):
            broken.result()
    torch.rand(5)  # whatever else the process draws must not matter
    if device == "cuda":
        torch.rand(5, device="cuda")
    with ThreadPoolExecutor(2) as pool:
        resumed = pool.submit(train, store, tmp_path / "broken", params)
        beside = pool.submit(train, store, tmp_path / "beside again", other)
        assert (resumed.result(), beside.result()) == (unbroken, other_alone)


@device
def test_one_that_fails_leaves_the_others_alone(tmp_path: Path, store: Store, train_alone: Alone, device: str) -> None:
    """Its loss is not finite, in the first epoch."""
    good = [params_of("alstm", device, seed) for seed in range(2)]
    alone = [train_alone(params) for params in good]
    bad = params_of("alstm", device, 3, learning_rate=1e38)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(train, store, tmp_path / str(number), params) for number, params in enumerate([bad, *good])]
        with pytest.raises(ValueError, match="lower the learning rate"):
            jobs[0].result()
        assert [job.result() for job in jobs[1:]] == alone


@device
def test_features_from_disk_give_the_same_bits_too(
    tmp_path: Path, store: Store, train_alone: Alone, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = [params_of("alstm", device, seed) for seed in range(2)]
    alone = [train_alone(params) for params in trainings]
    monkeypatch.setattr(training, "fits_in_memory", lambda *_: False)
    assert train_together(store, tmp_path / "together", trainings) == alone


@needs_gpu
@pytest.mark.parametrize("model", ["alstm", "attention_pool"])
def test_inference_is_exact_while_another_thread_captures(model: str, store: Store) -> None:
    gpu = torch.device("cuda")
    clips, files = store
    with FeatureReader(files) as reader:
        source = ClipLoader(reader, clips, CLASSES, gpu, in_memory=True)
    network = make_trainer(1, model).network

    def logits() -> torch.Tensor:
        return infer(network, source, 16).logits_NTC

    with own_stream(gpu):
        exact = logits()
        with tensor_cores():
            assert not torch.equal(logits(), exact), "rounding does not show: the test would find nothing"
        with captures_under_way() as captured:
            assert captured.wait(120)
            for _ in range(200):
                assert torch.equal(logits(), exact)


@needs_gpu
def test_replays_go_on_while_another_thread_captures() -> None:
    """The losses of one training, step by step, with and without captures beside it."""

    def losses(steps: int) -> list[float]:
        with own_stream(torch.device("cuda")), closing(make_trainer(1)) as trainer:
            batch = make_batch()
            return [trainer.step(batch)[0].item() for _ in range(steps)]

    alone = losses(400)
    with captures_under_way() as captured:
        assert captured.wait(120)
        assert losses(400) == alone


@needs_gpu
def test_a_capture_that_fails_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch, calls = make_trainer(1), make_batch(), []
    step = trainer._step

    def failing(batch: Batch) -> torch.Tensor:
        calls.append(None)
        sums = step(batch)
        if len(calls) == 4:  # after the warm-up
            raise ValueError("within the capture")
        return sums

    assert trainer._graphed is not None
    monkeypatch.setattr(trainer._graphed, "_step", failing)
    with own_stream(torch.device("cuda")):
        with pytest.raises(ValueError, match="within the capture"), closing(trainer):
            trainer.step(batch)
        assert fp32_precision() == ("ieee",) * 3
        with GPU_LOCK.exclusive():
            pass
        with closing(make_trainer(2)) as other:
            assert np.isfinite(other.step(batch).tolist()).all()


@needs_gpu
def test_the_features_are_on_the_gpu_once(tmp_path: Path, store: Store) -> None:
    copies, together = [], threading.Barrier(2)

    def meet(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            together.wait(120)
            copies.append([loaded.features_NTKKD.device.type for loaded in list(batches._cache.values())])

    with ThreadPoolExecutor(2) as pool:
        trainings = [params_of("alstm", "cuda", seed) for seed in range(2)]
        jobs = [pool.submit(train, store, tmp_path / str(seed), params, meet) for seed, params in enumerate(trainings)]
        for job in jobs:
            job.result()
    assert copies == [["cuda", "cuda"]] * 2  # the train split and the val split


@device
def test_a_training_that_is_over_leaves_nothing_in_memory(tmp_path: Path, store: Store, device: str) -> None:
    """At once, not only when Python comes to look for cycles."""
    gc.collect()
    gc.disable()
    try:
        train(store, tmp_path, params_of("alstm", device))
        assert not batches._cache
    finally:
        gc.enable()
