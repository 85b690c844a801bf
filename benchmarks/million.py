"""Drives what grows with the number of videos, up to a thousand times HMDB-51: names and tables, no pixels.

`python -m benchmarks.million [--videos N...] [--folder FOLDER]` prints seconds and peak memory of each step, and other sizes.

Real: `read_shards`, the recipes and keys of subsample, chunk and features, `Store.make`, `Store.find`, `subsample_shard`, the
quarantine check, `chunk_collection`, the run's record, what MLflow is told, and Prefect's tasks, against a temporary server.
Stood in for: the collection (a table with made-up digests, and split files), `subsample_video`, which writes an empty file
instead of starting ffmpeg, syncing to the disk while shards are made, and the recipe of train.
Each step runs in a process of its own, forked from this one, so that its memory is its own. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import math
import multiprocessing
import re
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks.chunk
import tasks.features
import tasks.subsample
from flows.execution import StageResult
from flows.records import _counts, _params_of
from flows.services import _temporary, start_temporary_prefect, stop_temporary_prefect, wait_for_prefect
from flows.terminal import quiet_prefect
from pipeline_lib.artifacts import Recipe, Store, layout
from pipeline_lib.artifacts.manifest import MANIFEST
from pipeline_lib.artifacts.remote import Remote
from pipeline_lib.artifacts.tables import CollectionVideo, read_clips, read_shards, read_videos, video_paths
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.chunk import check_trainable, chunk_collection
from pipeline_lib.params import ChunkParams, StreamParams, SubsampleParams
from pipeline_lib.subsample import SubsampledVideo, check_quarantine, subsample_shard
from pipeline_lib.video.ffmpeg import VideoError
from tasks.mlflow.tracking import _dataset_inputs
from tasks.stage import Context, Ref

SIZES = (7_000, 100_000, 1_000_000)
SMALLEST, VIDEOS_A_CLASS, MOST_CLASSES = 51, 1_400, 700
"""HMDB-51 has 51 classes, Kinetics-700 has 700."""
ZIPF_EXPONENT = 0.7
"""At a million videos the largest class has 42,000, the smallest 430."""
GROUP_VIDEOS = 11
SHORTEST, LONGEST = 60, 300
"""Frames of a video at 15 fps."""
BROKEN = 1_000
"""One video in so many cannot be decoded."""
ROOT = Path("videos")
DATASET_VIDEOS = 100_000
"""Above this number MLflow is not given the clip table: at a million it takes minutes and 4 GB."""
NUM_REQUESTS, AT_ONCE = 500, 16
FRAME_BYTES = 7 * 7 * 512 * 2
"""Features of a frame: VGG16, 7 x 7 cells, fp16."""
ATTENTION_BYTES = 7 * 7 * 4
"""Attention of a frame, fp32, in an evaluation; probabilities are fp32 too."""


@dataclass(frozen=True)
class Row:
    """What one step took."""

    step: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass
class Simulation:
    """A workspace of so many videos, and what its steps took."""

    num_videos: int
    rows: list[Row] = field(default_factory=list)

    def step(self, name: str, work: Callable[[], Any], note: Callable[[Any], str] = lambda _: "") -> Any:
        """Run `work` in a process of its own, print what it took, and return its result."""
        result, seconds, cpu_seconds, peak_bytes = in_child(work)
        self.rows.append(row := Row(name, seconds, cpu_seconds, peak_bytes))
        times = f"{row.seconds:8.2f} s {row.cpu_seconds:8.2f} CPU s {row.peak_bytes / 2**20:6.0f} MB"
        print(f"{self.num_videos:>9,}  {name:<42}{times}  {note(result)}", flush=True)
        return result


def in_child(work: Callable[[], Any]) -> tuple[Any, float, float, int]:
    """Run `work` in a forked process; return its result, seconds, CPU seconds and highest resident bytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_measured, args=(work, sender))
    process.start()
    sender.close()
    try:
        measured: tuple[Any, float, float, int] = receiver.recv()
    finally:
        process.join()
    return measured


def _send_measured(work: Callable[[], Any], sender: Connection) -> None:
    started, cpu_started = time.perf_counter(), time.process_time()
    result = work()
    taken = time.perf_counter() - started, time.process_time() - cpu_started
    sender.send((result, *taken, peak_memory_bytes()))


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process; Linux resets it at a fork, unlike `getrusage`."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match, "Linux only"
    return int(match[1]) * 1024


def class_sizes(num_videos: int) -> list[int]:
    """Return the number of videos of each class, largest first."""
    num_classes = min(MOST_CLASSES, max(SMALLEST, num_videos // VIDEOS_A_CLASS))
    weights = 1 / np.arange(1, num_classes + 1) ** ZIPF_EXPONENT
    ends = np.rint(np.cumsum(weights) / weights.sum() * num_videos).astype(int)
    return np.diff(ends, prepend=0).tolist()


def video_names(num_videos: int) -> Iterator[tuple[str, str, int]]:
    """Yield (class, video file, number of its group), with groups in the names as in UCF-101."""
    for number, size in enumerate(class_sizes(num_videos)):
        class_name = f"Class{number:03}"
        for index in range(size):
            group, clip = divmod(index, GROUP_VIDEOS)
            yield class_name, f"v_{class_name}_g{group:05}_c{clip + 1:02}.avi", group


def write_collection(directory: Path, num_videos: int) -> dict[str, Any]:
    """Write what fetch would have: the table, and HMDB-51's kind of split files, with every third group for testing."""
    rows, lines = [], dict[str, list[str]]()
    for class_name, file, group in video_names(num_videos):
        video = f"{class_name}/{file}"
        rows.append((video, class_name, 1_000_000, f"{zlib.crc32(video.encode()):064x}"))
        lines.setdefault(class_name, []).append(f"{file} {2 if group % 3 == 2 else 1} \n")
    table = pd.DataFrame(rows, columns=["video", "class_name", "size_bytes", "sha256"]).sort_values("video")
    table.to_parquet(directory / layout.COLLECTION, index=False)
    (directory / "splits").mkdir()
    for class_name, of_class in lines.items():
        (directory / "splits" / f"{class_name}_test_split1.txt").write_text("".join(of_class), encoding="utf-8")
    return {"classes": len(lines), "videos": len(table), "split_files": len(lines), "size_bytes": 0}


def pretend_subsampled(source: Path, destination: Path, params: SubsampleParams) -> SubsampledVideo:
    """Stand in for `subsample_video`: an empty file, and a length drawn from the video's name."""
    drawn = zlib.crc32(source.name.encode())
    if drawn % BROKEN == 0:
        raise VideoError("no video stream", "")
    destination.touch()
    return SubsampledVideo(SHORTEST + drawn % (LONGEST - SHORTEST + 1), 320, 240, 30.0, None)


def make_collection(store: Store, num_videos: int) -> Ref:
    """Publish the stand-in for fetch's artifact."""
    recipe = Recipe("fetch", "million-1", {"videos": num_videos})
    return Ref.to(store.make(recipe, lambda directory: write_collection(directory, num_videos)), made=True)


def read_collection(context: Context, collection: Ref, shard_videos: int) -> dict[str, list[CollectionVideo]]:
    """Return the collection's videos by shard."""
    return read_shards(collection.directory(context), shard_videos)


def make_shards(context: Context, shards: Mapping[str, Sequence[CollectionVideo]]) -> int:
    """Publish the shards that are not there, with `pretend_subsampled` and without waiting for the disk."""
    params = SubsampleParams()
    with mock.patch("pipeline_lib.subsample.shards.subsample_video", pretend_subsampled), mock.patch("os.fsync"):
        for shard, videos in shards.items():
            recipe = tasks.subsample.recipe(context, shard, videos, ROOT, params)
            if context.store.load(recipe.stage, recipe.key) is None:
                context.store.make(recipe, functools.partial(_subsample, videos, params))
    return len(shards)


def _subsample(videos: Sequence[CollectionVideo], params: SubsampleParams, directory: Path) -> dict[str, int]:
    return subsample_shard({video.video: ROOT / video.video for video in videos}, videos, directory, params)


def shard_keys(context: Context, shards: Mapping[str, Sequence[CollectionVideo]]) -> list[str]:
    """Return every shard's key."""
    params = SubsampleParams()
    return [tasks.subsample.recipe(context, shard, videos, ROOT, params).key for shard, videos in shards.items()]


def find_shards(context: Context, keys: Iterable[str]) -> list[Ref]:
    """Return the shards' artifacts from the store, as a run answered from the cache does."""
    found = (context.store.find("subsample", key) for key in keys)
    return [Ref.to(artifact, made=False) for artifact in found if artifact]


def make_clips(context: Context, collection: Ref, shards: Sequence[Ref], params: ChunkParams, *, official: bool) -> Ref:
    """Publish the clip table as the chunk stage does; without split files, splits are drawn by group."""
    fetched = collection.directory(context)

    def build(directory: Path) -> dict[str, Any]:
        folders = [shard.directory(context) for shard in shards]
        return chunk_collection(folders, directory, params, splits=fetched / "splits" if official else None, groups=None)

    return Ref.to(context.store.make(tasks.chunk.recipe(context, collection, shards, params), build), made=True)


def features_keys(context: Context, shards: Sequence[Ref]) -> list[str]:
    """Return the key of one stream of every shard."""
    streams = {"rgb": StreamParams(weights="random")}
    return [tasks.features.recipes(context, "", ref, {}, streams, ChunkParams(), 15.0)["rgb"].key for ref in shards]


def train_key(shards: Sequence[Ref], clips: Ref) -> str:
    """Return a training run's key: it has one input for each shard."""
    features = {"rgb": [{"rgb": shard} for shard in shards]}
    return Recipe("train", "train", {}, {"clips": clips.content_key} | tasks.features.feature_inputs(features)).key


def stage_log(context: Context, shards: Sequence[Ref]) -> int:
    """Return the bytes of `manifests/subsample.json`, which the run logs to MLflow when the stage ends."""
    manifests = [ref.model_dump() | {"params": _params_of(context, ref)} for ref in shards]
    _counts("subsample", StageResult(list(shards)))
    return len(json.dumps(manifests, indent=2))


def record_run(context: Context, shards: Sequence[Ref]) -> int:
    """Write the run's record twice, after subsample and after features, and return its bytes."""
    for stage in ("subsample", "features"):
        context.store.record_run("million", [SimpleNamespace(stage=stage, key=ref.key) for ref in shards])
    return (context.folder / "runs" / "million.json").stat().st_size


def dataset_inputs(context: Context, clips: Ref) -> int:
    """Return the bytes of what MLflow is told of the clip table, for each training run."""
    inputs = _dataset_inputs(clips.directory(context), "clips", clips.content_key)
    return sum(len(json.dumps(dict(one.dataset))) for one in inputs)


def read_for_training(context: Context, clips: Ref) -> int:
    """Read the clip table and check it, as each training run does."""
    table = read_clips(clips.directory(context))
    check_trainable(table)
    return len(table)


@dataclass(frozen=True)
class PrefectCost:
    """What Prefect takes for each task that is answered from the cache."""

    seconds: float
    cpu_seconds: float
    """Of this process; the server has its own."""
    server_cpu_seconds: float
    recorded_seconds: float
    """Seconds until the server has written all of a task's states, which goes on after the run."""
    database_bytes: float
    fan_in_seconds: float
    """Seconds that a task takes for each future among its inputs."""
    thread_bytes: float
    """Memory of a task that waits, in a thread of its own."""


def measure_prefect(context: Context, shards: Sequence[tuple[str, Sequence[CollectionVideo]]]) -> PrefectCost:
    """Run the subsample task of each shard twice, found first by the store and then by Prefect; return the latter's cost."""
    quiet_prefect()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        address = start_temporary_prefect(home)
        try:
            wait_for_prefect(address)
            with temporary_settings({PREFECT_API_URL: address}):
                _submit_all(context, home, shards)
                _wait_recorded(home, len(shards))
                return _cost_of_cached(context, home, shards)
        finally:
            stop_temporary_prefect()


def _cost_of_cached(context: Context, home: Path, shards: Sequence[tuple[str, Sequence[CollectionVideo]]]) -> PrefectCost:
    server = _temporary[0].process()
    assert server
    server_cpu, num_bytes, started, cpu = sum(server.cpu_times()[:2]), _bytes_of(home), time.perf_counter(), time.process_time()
    seconds, fan_in_seconds = _submit_all(context, home, shards)
    cpu_seconds = time.process_time() - cpu
    _wait_recorded(home, 2 * len(shards))
    recorded_seconds, server_cpu = time.perf_counter() - started, sum(server.cpu_times()[:2]) - server_cpu
    used = _bytes_of(home) - num_bytes
    costs = (seconds, cpu_seconds, server_cpu, recorded_seconds, used, fan_in_seconds, _waiting_bytes(len(shards)))
    return PrefectCost(*(cost / len(shards) for cost in costs))


def _submit_all(context: Context, home: Path, shards: Sequence[tuple[str, Sequence[CollectionVideo]]]) -> tuple[float, float]:
    """Run a flow of all shards' tasks and one task that takes all of them; return the seconds of both."""
    stored = tasks.subsample.subsample.with_options(result_storage=home / "results")

    @flow(name="million")
    def run() -> tuple[float, float]:
        started = time.perf_counter()
        params = SubsampleParams()
        submitted = [
            stored.submit(context=context, shard=name, videos=videos, root=ROOT, params=params) for name, videos in shards
        ]
        refs = [future.result() for future in submitted]
        ended = time.perf_counter()
        assert len(_keys_of.submit(submitted).result()) == len({ref.key for ref in refs})
        return ended - started, time.perf_counter() - ended

    return run()


@task(cache_policy=NO_CACHE)
def _keys_of(refs: Sequence[Any]) -> list[str]:
    """Return the keys of references, which are given as futures."""
    return [ref.key for ref in refs]


def _waiting_bytes(num_tasks: int) -> int:
    """Return the memory of tasks that have all begun and wait."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    @task(cache_policy=NO_CACHE)
    def wait() -> None:
        begun.release()
        gate.wait()

    @flow(name="waiting")
    def run() -> int:
        before = psutil.Process().memory_info().rss
        submitted = [wait.submit() for _ in range(num_tasks)]
        for _ in submitted:
            begun.acquire()
        used = psutil.Process().memory_info().rss - before
        gate.set()
        for future in submitted:
            future.wait()
        return used

    return run()


def _query(home: Path, query: str) -> int:
    with sqlite3.connect(f"file:{home / 'prefect' / 'prefect.db'}?mode=ro", uri=True, timeout=60) as connection:
        return int(connection.execute(query).fetchone()[0])


def _bytes_of(home: Path) -> int:
    return _query(home, "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")


def _wait_recorded(home: Path, num_tasks: int) -> None:
    while _query(home, "SELECT count(*) FROM task_run WHERE name LIKE 'subsample%' AND state_type = 'COMPLETED'") < num_tasks:
        time.sleep(0.2)


def simulate(num_videos: int, shard_videos: int, workspace: Path) -> Simulation:
    """Run every step for so many videos. The store is opened in children only: SQLite's connections do not survive a fork."""
    sim, context = Simulation(num_videos), Context(workspace=Workspace(folder=workspace))
    collection = sim.step("(collection: stood in for)", lambda: make_collection(context.store, num_videos))
    shards_of = functools.partial(read_collection, context, collection, shard_videos)
    sim.step("(shards: pixels stood in for)", lambda: make_shards(context, shards_of()), "{:,} shards".format)
    sim.step("shards' videos, from fetch's table", lambda: len(shards_of()))
    keys = sim.step("shards' recipes and keys", lambda: shard_keys(context, shards_of()))
    shards = sim.step("store.find of all shards", lambda: find_shards(context, keys))
    folders = functools.partial(map, lambda shard: shard.directory(context), shards)
    sim.step("quarantine check", lambda: check_quarantine([read_videos(folders())], SubsampleParams().max_quarantined))
    official = functools.partial(make_clips, context, collection, shards, official=True)
    clips = sim.step("chunk, official splits", lambda: official(ChunkParams()), _clips)
    drawn = functools.partial(make_clips, context, collection, shards, official=False)
    sim.step("chunk, splits drawn by group", lambda: drawn(ChunkParams(seed=1)), _clips)
    sim.step("keys of features", lambda: len(features_keys(context, shards)))
    sim.step("key of one training run", lambda: train_key(shards, clips))
    sim.step("clip table, read for one training run", lambda: read_for_training(context, clips))
    sim.step("paths of videos, for one model's heatmaps", lambda: len(video_paths(folders())))
    sim.step("run's record, two stages", lambda: record_run(context, shards), "{:,} bytes".format)
    sim.step("MLflow: manifests of one stage", lambda: stage_log(context, shards), "{:,} bytes".format)
    if num_videos <= DATASET_VIDEOS:
        sim.step("MLflow: clip table as a dataset", lambda: dataset_inputs(context, clips), "{:,} bytes".format)
    in_child(lambda: print_sizes(context, shards, clips))
    return sim


def _clips(ref: Ref) -> str:
    return f"{sum(ref.counts['clips'].values()):,} clips, {ref.content_key}"


def print_sizes(context: Context, shards: Sequence[Ref], clips: Ref) -> None:
    """Print what else grows: files, bytes of manifests, requests to a store, and bytes of features and evaluations."""
    manifest_bytes = sum((shard.directory(context) / MANIFEST).stat().st_size for shard in shards)
    num_videos, num_frames = (sum(ref.counts[name] for ref in shards) for name in ("videos", "frames"))
    num_files = num_videos + len(shards)
    scored = (clips.counts["clips"]["val"] + clips.counts["clips"]["test"]) * ChunkParams().frames
    table = (clips.directory(context) / layout.CLIPS).stat().st_size
    print(f"  shards {len(shards):,}, their files {num_files:,}, manifests {manifest_bytes:,} bytes")
    print(f"  store: {num_files + len(shards):,} puts to publish the shards, {len(shards):,} gets to find them")
    print(f"  clip table {table:,} bytes; features of {num_frames:,} frames {num_frames * FRAME_BYTES / 1e12:.2f} TB")
    print(f"  probabilities of one evaluation {scored * clips.counts['classes'] * 4 / 1e9:.1f} GB", end=", ")
    print(f"attention {clips.counts['clips']['test'] * ChunkParams().frames * ATTENTION_BYTES / 1e9:.1f} GB")


def print_growth(small: Simulation, large: Simulation) -> None:
    """Print each step's exponent: 1 is linear, 2 quadratic."""
    print(f"\n| step | {small.num_videos:,} | {large.num_videos:,} | grows as N to the |\n|---|---|---|---|")
    before = {row.step: row for row in small.rows}
    for row in large.rows:
        exponent = math.log(row.cpu_seconds / before[row.step].cpu_seconds) / math.log(large.num_videos / small.num_videos)
        cells = (f"{one.cpu_seconds:.2f} CPU s, {one.peak_bytes / 2**20:.0f} MB" for one in (before[row.step], row))
        print(f"| {row.step} | {' | '.join(cells)} | {exponent:.2f} |")


def print_prefect(context: Context, num_tasks: int) -> None:
    """Print what Prefect takes a task, with so many tasks in a flow."""

    def measure() -> PrefectCost:
        collection = next(context.store.artifacts("fetch"))
        shards = read_shards(collection.directory, SubsampleParams().shard_videos)
        return measure_prefect(context, list(shards.items())[:num_tasks])

    cost = Simulation(num_tasks).step("Prefect's tasks", measure)
    for name, value in vars(cost).items():
        print(f"  {name} a task: {value:,.4f}")


def print_requests(url: str) -> None:
    """Print milliseconds of small requests to an object store, one and `AT_ONCE` at a time; keys are in the environment."""
    store, names = Remote(url), [f"million/{number}" for number in range(NUM_REQUESTS)]
    kinds: dict[str, Callable[[str], object]] = {
        "put of 30 kB": lambda name: store.put(name, bytes(30_000)),
        "get of 30 kB": store.get,
        "delete": lambda name: store.delete([name]),
    }
    for kind, request in kinds.items():
        for at_once in (1, AT_ONCE) if kind != "delete" else (AT_ONCE,):
            with ThreadPoolExecutor(at_once) as pool:
                started = time.perf_counter()
                list(pool.map(request, names))
                taken = time.perf_counter() - started
            print(f"  {kind}, {at_once} at once: {1000 * taken / len(names):.2f} ms a request")


def main() -> None:
    """Run the sizes asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=SIZES, help="sizes to simulate")
    parser.add_argument("--shard-videos", type=int, default=SubsampleParams().shard_videos, help="subsample.shard_videos")
    parser.add_argument("--tasks", type=int, nargs="*", default=(), help="numbers of Prefect tasks to measure, instead")
    parser.add_argument("--store", help="address of an object store, to measure requests to it, instead")
    parser.add_argument("--folder", type=Path, help="keeps the workspaces, and has those of an earlier call")
    options = parser.parse_args()
    logging.getLogger("pipeline_lib").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        workspaces = {number: folder / f"{number}-{options.shard_videos}" for number in options.videos}
        if options.store:
            print_requests(options.store)
            return
        if options.tasks:
            for number in options.tasks:
                print_prefect(Context(workspace=Workspace(folder=workspaces[options.videos[0]])), number)
            return
        done = [simulate(number, options.shard_videos, workspace) for number, workspace in workspaces.items()]
        for small, large in itertools.pairwise(done):
            print_growth(small, large)


if __name__ == "__main__":
    main()
