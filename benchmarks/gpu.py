"""What GPUs do: features of a whole collection, training steps, seeds side by side.

`python -m benchmarks.gpu VIDEOS` measures everything; with `--only extraction` or `--only seeds`, that alone. Training steps
need no videos: `python -m benchmarks.gpu . --only models` compares those of all models.

Shape suffixes: N frames, C colour channels (3), H W pixels, D feature channels.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from torchvision.models import VGG16_Weights, vgg16

from benchmarks.extraction import FPS
from benchmarks.measuring import Comparison, compare, spread
from benchmarks.training import PLAIN_MODELS
from pipeline_lib.artifacts import file_sha256, layout
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.compute.engine import Needs, open_engine, run_at
from pipeline_lib.compute.gpu_sharing import own_stream
from pipeline_lib.compute.gpus import count_gpus
from pipeline_lib.compute.planning import training_needs
from pipeline_lib.features import SHARDS_ON_GPU, FeatureReader, extract_features
from pipeline_lib.networks.registry import build_model
from pipeline_lib.params import ChunkParams, ModelName, StreamParams, TrainParams, load_params, num_streams
from pipeline_lib.params.models import MODELS
from pipeline_lib.train import train_model
from pipeline_lib.train.loss import frame_cross_entropy
from pipeline_lib.train.trainer import Trainer
from pipeline_lib.training.batches import Batch, ClipLoader

PARAMS = StreamParams(backbone="vgg16", weights="random", image_size=224, device="cuda")
FLOW = StreamParams(input="flow", backbone="vgg16", weights="random", image_size=224, device="cuda")
ARTICLE = Path(__file__).parents[1] / "params" / "hmdb51.yaml"
SHARD_VIDEOS = 128
STEPS = 50
PARTS = ("steps", "models", "extraction", "flow", "streaming", "seeds")
UNITS = 512
OTHER_UNITS: Mapping[ModelName, int] = {"alstm": 1024, "lrcn": 1024}
"""Widths of the papers' parameter files that are measured besides: Sharma et al. 2016, and LRCN's flow stream."""
SEEDS = 4
"""How many are trained, one after the other and side by side."""
SEED_SHARDS = 12
"""Shards whose features they are trained on, for so many epochs, with labels of so many classes."""
EPOCHS = 30
CLASSES = 51
MOST_WITH_FLOW = 2.0
"""How many times as long as RGB alone RGB and flow may take."""
USUAL_VIDEOS = 60
"""Videos that the usual way sees; it is too slow for all."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder of videos at 15 fps, as the subsample stage leaves them")
    parser.add_argument("--only", choices=PARTS, action="append", help="what to measure; default: everything")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts = options.only or PARTS
    if "steps" in parts:
        print_steps()
    if "models" in parts:
        print_model_steps(options.repeats)
    if set(parts) - {"steps", "models"}:
        with tempfile.TemporaryDirectory() as folder, open_engine(is_local_ray=count_gpus() > 1, num_gpus=count_gpus()):
            measure_stages(Path(folder), options.videos, options.frames, options.repeats, parts)
    gpus = f"{count_gpus()} x {torch.cuda.get_device_name()}"
    print(f"{gpus}, {num_cores()} cores; torch {torch.__version__}, PyAV {av.__version__}")


def print_steps() -> None:
    """Print how fast training steps are, ours and the usual way's."""
    for comparison in compare_steps():
        print(f"{comparison.subject}: usual way {spread(comparison.usual)}, ours {spread(comparison.ours)} {comparison.unit}")
        print(
            f"  {spread(comparison.ratios())} times faster; ours {1000 / statistics.median(comparison.ours):.2f} ms a step",
            flush=True,
        )


def print_model_steps(repeats: int) -> None:
    """Print how long a training step of each model takes at VideoLSTM's sizes, and which are slower than ConvALSTM."""
    found: dict[tuple[ModelName, int], float] = {}
    for model, units in [*((model, UNITS) for model in MODELS), *OTHER_UNITS.items()]:
        milliseconds = [1000 / rate for rate in model_rates(model, units, repeats)]
        found[model, units] = statistics.median(milliseconds)
        print(f"{model}, {units} units, B 16, T 30: {spread(milliseconds)} ms a step", flush=True)
    for line in slower_than(("conv_alstm", UNITS), found):
        print(line)


def slower_than(reference: tuple[ModelName, int], found: Mapping[tuple[ModelName, int], float]) -> list[str]:
    """Return a line for each model, of any width, whose step takes longer than the reference's."""
    limit, (name, units) = found[reference], reference
    return [
        f"SLOWER than {name} of {units} units ({limit:.2f} ms): {model} of {width} units, {value / limit:.2f} times as long"
        for (model, width), value in found.items()
        if value > limit
    ] or [f"no model is slower than {name} of {units} units ({limit:.2f} ms)"]


def model_rates(model: ModelName, units: int, repeats: int) -> list[float]:
    """Return training steps a second of a model on 7x7x512 of each stream that it can read."""
    device, channels = torch.device("cuda"), (512,) * num_streams(model)
    generator = torch.Generator().manual_seed(0)
    features_BTKKD = torch.rand(16, 30, 7, 7, sum(channels), generator=generator).sub_(0.73).clamp_(min=0)
    batch = Batch(features_BTKKD.half().to(device), torch.full((16,), 30, device=device), torch.arange(16, device=device))
    params = TrainParams(alstm_units=units, conv_alstm_units=units).of(model)
    with reproducible(0, deterministic=True), own_stream(device):
        network = build_model(params, channels=channels, grid=7, num_classes=101).to(device).train()
        with closing(Trainer(network, device, params, train=None, val=None)) as trainer:  # type: ignore[arg-type] # steps alone
            return step_rates(trainer, batch, repeats)


def step_rates(trainer: Trainer, batch: Batch, repeats: int) -> list[float]:
    """Return training steps a second of each repeat, after the step that is captured."""
    rates = []
    for steps in (5, *[STEPS] * repeats):
        started = time.perf_counter()
        for _ in range(steps):
            trainer.step(batch)
        torch.cuda.synchronize()
        rates.append(steps / (time.perf_counter() - started))
    return rates[1:]


def measure_stages(folder: Path, videos: Path, num_frames: int, repeats: int, parts: Sequence[str]) -> None:
    """Measure extraction, and training on what it extracts."""
    shards = make_shards(folder, videos, num_frames)
    if "extraction" in parts:
        measure_extraction(folder, shards, repeats)
    else:
        extract(folder, shards)
    feature_files = [folder / "features" / shard.name / layout.FEATURES for shard in shards]
    if "flow" in parts:
        measure_flow(folder, shards, repeats)
    if "streaming" in parts:
        measure_streaming(feature_files)
    if "seeds" in parts:
        measure_seeds(feature_files[:SEED_SHARDS], folder / "seeds", repeats)


def measure_flow(folder: Path, shards: list[Path], repeats: int) -> None:
    """Say how many times as long RGB and flow together take as RGB alone, in alternation, both warmed up."""
    num_frames = count_frames(shards)
    extract(folder, shards[:SHARDS_ON_GPU], {"flow": FLOW})
    comparison = compare(
        "RGB alone, and RGB with flow",
        "frames/s",
        num_frames,
        usual=lambda: extract(folder, shards),
        ours=lambda: extract(folder, shards, {"flow": FLOW}),
        repeats=repeats,
    )
    print(f"{num_frames} frames: RGB alone {spread(comparison.usual)} frames/s; with flow {spread(comparison.ours)}")
    ratios = [1 / ratio for ratio in comparison.ratios()]
    verdict = "met" if statistics.median(ratios) <= MOST_WITH_FLOW else "missed"
    print(
        f"RATIO of time, RGB and flow to RGB alone: {spread(ratios)} (goal {MOST_WITH_FLOW:g}, {verdict})",
        flush=True,
    )


def compare_steps() -> Iterator[Comparison]:
    """Compare training steps at the article's sizes; the usual way calls its kernels one by one."""
    article = load_params(ARTICLE).train
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    sparse = torch.rand(16, 30, 7, 7, 512, generator=generator) * (torch.rand(16, 30, 7, 7, 512, generator=generator) > 0.73)
    batch = Batch(sparse.half().to(device), torch.full((16,), 30, device=device), torch.arange(16, device=device))
    for model, plain in PLAIN_MODELS.items():
        for words, params in (("article's", article.of(model)), ("default", TrainParams().of(model))):
            with reproducible(0, deterministic=True), own_stream(device):
                sizes = {"channels": 512, "grid": 7, "num_classes": 51}
                network = build_model(params, **sizes).to(device)
                usual = plain(**sizes, units=params.units, dropout=params.dropout).to(device)
                with closing(Trainer(network, device, params, train=None, val=None)) as trainer:  # type: ignore[arg-type] # steps alone
                    yield _compare_step(f"{model}, {words} variant, training step, B 16, T 30", trainer, usual, batch)


def _compare_step(subject: str, trainer: Trainer, plain: torch.nn.Module, batch: Batch) -> Comparison:
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)

    def usual(steps: int = STEPS) -> None:
        for _ in range(steps):
            loss = frame_cross_entropy(
                plain(batch.features_BTKKD.float(), batch.valid_steps_B), batch.labels_B, batch.valid_steps_B
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()

    def ours(steps: int = STEPS) -> None:
        for _ in range(steps):
            trainer.step(batch)
        torch.cuda.synchronize()

    trainer.network.train()
    usual(5)
    ours(5)
    return compare(subject, "steps/s", STEPS, usual=usual, ours=ours)


def measure_extraction(folder: Path, shards: list[Path], repeats: int) -> None:
    """Compare from 15 fps files to closed feature files; ours with its start-up in the first repeat, the usual way without."""
    num_frames = count_frames(shards)
    print(f"{num_frames} frames in {len(shards)} shards")
    rates = []
    for repeat in range(repeats):
        started = time.perf_counter()
        extract(folder, shards)
        seconds = time.perf_counter() - started
        rates.append(num_frames / seconds)
        print(f"ours, repeat {repeat}: {seconds:.1f} s, {rates[-1]:.0f} frames/s", flush=True)
    usual = [extract_as_usual(folder, shards[0]) for _ in range(min(repeats, 2))]
    print(f"usual way: {spread([rate for rate, _ in usual])} frames/s; ours: {spread(rates)} frames/s")
    print(f"largest relative error of a frame against fp32: {largest_error(folder, shards[0]):.2%}")


def measure_streaming(feature_files: list[Path]) -> None:
    """Time an epoch of training with features on the GPU, and with features from disk."""
    article, device = load_params(ARTICLE).train, torch.device("cuda")
    with FeatureReader(feature_files) as reader:
        num_clips, _, grid, _, channels = reader.shape
        clips = pd.DataFrame({"clip": reader.clips, "class_name": "any", "valid_frames": 30})
        for model, in_memory in itertools.product(PLAIN_MODELS, (True, False)):
            params = article.of(model)
            with reproducible(0, deterministic=True), own_stream(device):
                source = ClipLoader(reader, clips, ["any"], device, in_memory=in_memory)
                network = build_model(params, channels=channels, grid=grid, num_classes=51).to(device)
                with closing(Trainer(network, device, params, source, source)) as trainer:
                    generator = torch.Generator().manual_seed(0)
                    trainer.train_epoch(1, generator)  # captures the step
                    waited, started = source.seconds_waited, time.perf_counter()
                    trainer.train_epoch(2, generator)
                    seconds = time.perf_counter() - started
            print(
                f"{model}, epoch of {num_clips} clips {'on the GPU' if in_memory else 'from disk'}: {seconds:.2f} s, "
                f"waiting for features {(source.seconds_waited - waited) / seconds:.0%}",
                flush=True,
            )


def measure_seeds(feature_files: list[Path], folder: Path, repeats: int) -> None:
    """Train with several seeds, one after the other and side by side on all GPUs, from features to checkpoints."""
    clips = clips_to_train_on(feature_files)
    train = load_params(ARTICLE).train.model_copy(update={"epochs": EPOCHS, "patience": EPOCHS})
    needs = training_needs("cuda", sum(file.stat().st_size for file in feature_files), SEEDS, key="train.device")

    def train_seeds(model: ModelName, at_once: int, seeds: int = SEEDS) -> list[str]:
        def one(seed: int) -> str:
            directory = folder / f"{model}{seed}"
            directory.mkdir(parents=True, exist_ok=True)
            run_at(train_model, clips, feature_files, directory, None, train.of(model, seed), needs=needs)
            return file_sha256(directory / layout.CHECKPOINT)

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, range(seeds)))

    for model in PLAIN_MODELS:
        train_seeds(model, at_once=1, seeds=1)  # compiles
        digests: list[list[str]] = []
        steps = SEEDS * EPOCHS * -(-int((clips["split"] == "train").sum()) // train.batch_size)
        comparison = compare(
            f"{model}, {SEEDS} seeds of {EPOCHS} epochs, {len(clips)} clips: one after the other, side by side",
            "steps/s",
            steps,
            usual=lambda: digests.append(train_seeds(model, at_once=1)),  # noqa: B023 - called here
            ours=lambda: digests.append(train_seeds(model, at_once=SEEDS)),  # noqa: B023 - called here
            repeats=repeats,
        )
        print(
            f"{comparison.subject}: {spread(comparison.usual)}, {spread(comparison.ours)} {comparison.unit}, "
            f"{spread(comparison.ratios())} times as fast; "
            f"{'same' if all(one == digests[0] for one in digests) else 'OTHER'} weights",
            flush=True,
        )


def clips_to_train_on(feature_files: Sequence[Path], fold: int = 0) -> pd.DataFrame:
    """Return the table of the files' clips, with made-up classes; an eighth, another in each fold, is for validation."""
    with FeatureReader(feature_files) as reader:
        clips = pd.DataFrame({"clip": reader.clips, "valid_frames": 30})
    clips["video"], clips["class_name"] = clips["clip"], [f"class {number % CLASSES}" for number in range(len(clips))]
    clips["split"] = ["val" if (number + fold) % 8 == 0 else "train" for number in range(len(clips))]
    return clips


def make_shards(folder: Path, videos: Path, num_frames: int) -> list[Path]:
    """Spread copies of the videos over shards, until there are so many frames."""
    lengths = {path: _count_frames(path) for path in sorted(videos.glob("*.mp4"))}
    copies = itertools.cycle(lengths.items())
    shards: list[Path] = []
    total = 0
    while total < num_frames:
        shard = folder / f"shard{len(shards)}"
        rows = []
        for number in range(SHARD_VIDEOS):
            path, length = next(copies)
            video = f"{path.stem}_{len(shards)}_{number}"
            layout.subsampled_path(shard, video).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, layout.subsampled_path(shard, video))
            rows.append({"video": video, "class_name": "any", "num_frames": length, "reason": None})
            total += length
        pd.DataFrame(rows).to_parquet(shard / "videos.parquet")
        shards.append(shard)
    return shards


def count_frames(shards: Sequence[Path]) -> int:
    """Return the frames of all videos."""
    return sum(int(pd.read_parquet(shard / layout.VIDEOS)["num_frames"].sum()) for shard in shards)


def _count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def extract(folder: Path, shards: list[Path], others: Mapping[str, StreamParams] | None = None) -> None:
    """Extract RGB, and other streams together with it, of all shards as the flow does, several at once on each GPU."""
    streams = {"features": PARAMS, **(others or {})}

    def one(shard: Path) -> None:
        directories = {name: folder / name / shard.name for name in streams}
        for directory in directories.values():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        needs = Needs(cpus=0, gpus=1 / SHARDS_ON_GPU)
        run_at(extract_features, shard, directories, streams, ChunkParams(), fps=FPS, needs=needs)
        for directory in directories.values():
            _to_disk(directory / layout.FEATURES)

    with ThreadPoolExecutor(len(shards)) as pool:
        list(pool.map(one, shards))


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def extract_as_usual(folder: Path, shard: Path) -> tuple[float, int]:
    """One video at a time, torchvision's network and transforms in fp32; return frames/s and the number of frames."""
    network = _usual_network()
    transforms = VGG16_Weights.IMAGENET1K_V1.transforms()
    num_frames = 0
    started = time.perf_counter()
    for video in pd.read_parquet(shard / "videos.parquet")["video"][:USUAL_VIDEOS]:
        frames = list(_read(layout.subsampled_path(shard, video)))
        frames_NCHW = torch.stack([transforms(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames])
        with torch.inference_mode():
            features = [network(batch_NCHW.cuda()).cpu() for batch_NCHW in frames_NCHW.split(64)]
        np.save(folder / "usual.npy", torch.cat(features).numpy())
        num_frames += len(frames)
    return num_frames / (time.perf_counter() - started), num_frames


def _usual_network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(PARAMS.seed)
        return vgg16(weights=None).features.eval().cuda()


def _read(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def largest_error(folder: Path, shard: Path) -> float:
    """Return the largest relative error of a frame's features against the same pipeline in fp32."""
    exact = folder / "exact"
    exact.mkdir()
    exactly = PARAMS.model_copy(update={"precision": "fp32"})
    extract_features(shard, {"rgb": exact}, {"rgb": exactly}, ChunkParams(), fps=FPS)
    with (
        FeatureReader([exact / "features.h5"]) as theirs,
        FeatureReader([folder / "features" / shard.name / "features.h5"]) as ours,
    ):
        theirs_ND, ours_ND = (reader.load(reader.clips[:50]).float().flatten(0, 1).flatten(1) for reader in (theirs, ours))
    return float(((theirs_ND - ours_ND).norm(dim=1) / theirs_ND.norm(dim=1)).max())


if __name__ == "__main__":
    main()
