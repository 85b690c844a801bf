"""`har features`: write the features of any videos, one file for each video and stream."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.markup import escape

from flows.output import FreeNames, Step, new_folder, show_progress
from flows.terminal import console, say
from pipeline_lib.artifacts import Artifact, digest, layout
from pipeline_lib.artifacts.workspace import locate_workspace
from pipeline_lib.chunk import cut_clips
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError
from pipeline_lib.features.export import export_video
from pipeline_lib.features.extraction import extract_features
from pipeline_lib.params import ChunkParams, Params, StreamParams, SubsampleParams, load_params
from pipeline_lib.predict.videos import RequestedVideo, find_videos
from pipeline_lib.streams.feature_files import FeatureReader
from pipeline_lib.subsample import subsample_video
from pipeline_lib.video.ffmpeg import VideoError

if TYPE_CHECKING:
    from tasks.stage import Context

GROUP = 32
"""Videos that are downloaded, subsampled and encoded together; bounds temporary files, and gives a GPU full batches."""


def features(
    arguments: Sequence[str],
    *,
    params: str,
    settings: Sequence[str],
    streams: Sequence[str],
    weights: Sequence[str] = (),
    output: Path,
    suffix: str,
    pool: bool,
) -> int:
    """Write `FOLDER/STREAM/VIDEO.h5` or `.npz` for every video and stream (see `export_video`).

    A stream that the parameters tune has the weights of the workspace's newest finetune artifact with these parameters.

    Args:
        arguments: files, folders or addresses of videos.
        params: parameter file; its workspace and its sections subsample, chunk, finetune and features are used.
        settings: `section.key=value` over it.
        streams: names of the streams to write; all if empty.
        weights: `STREAM=PATH` of state dicts that replace a stream's weights.
        output: new or empty folder.
        suffix: `h5` or `npz`.
        pool: whether to average each map.

    Returns:
        0, or 1 if a video could not be downloaded or decoded; the others are written anyway.

    Raises:
        UserError: a video, stream or parameter does not exist, weights are not available, no stream was tuned with these
            parameters, or the folder is not empty.
    """
    job = _Job.of(load_params(params, settings), streams, weights, suffix, pool)
    videos = find_videos(arguments)
    folder = new_folder(output)
    names, failed = FreeNames(), 0
    with show_progress() as step:
        for first in range(0, len(videos), GROUP):
            group = {names.take(video.stem): video for video in videos[first : first + GROUP]}
            last = first + len(group)
            place = f"{first + 1} to {last} of {len(videos)}" if last > first + 1 else f"{last} of {len(videos)}"
            failed += job.run(group, folder, place, step)
    say(f"features    {folder} ({len(videos) - failed} of {len(videos)} videos; {', '.join(job.streams)})")
    return int(failed > 0)


@dataclass(frozen=True)
class _Job:
    """What is written of every video."""

    streams: Mapping[str, StreamParams]
    weights: Mapping[str, Path]
    """Files that replace the weights of streams."""
    subsample: SubsampleParams
    chunk: ChunkParams
    suffix: str
    pool: bool

    @classmethod
    def of(cls, params: Params, streams: Sequence[str], weights: Sequence[str], suffix: str, pool: bool) -> _Job:
        """Return the job for a run's parameters.

        Raises:
            UserError: there is no stream of this name, or a tuned one has no weights.
        """
        known = params.features.all_streams
        if others := [name for name in streams if name not in known]:
            raise UserError(f"--stream {others[0]}: features.streams has only {', '.join(known)}; add it there, or name one")
        chosen = {name: stream for name, stream in known.items() if not streams or name in streams}
        given = dict(_given_weights(text, chosen) for text in weights)
        tuned = params.tuned_streams if params.finetune.enabled else {}
        files = {name: _tuned_weights(params, name) for name in chosen if name in tuned and name not in given}
        return cls(chosen, files | given, params.subsample, ChunkParams(frames=params.chunk.frames), suffix, pool)

    def run(self, videos: Mapping[str, RequestedVideo], folder: Path, place: str, step: Step) -> int:
        """Write the features of some videos, by the names of their files, and return how many failed."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as scratch:
            shard = Path(scratch) / "shard"
            table = self._subsample(videos, shard, place, step)
            failed = table[table["reason"].notna()]
            for name, reason in zip(failed["video"], failed["reason"], strict=True):
                console.print(f"[red]{escape(videos[name].shown)}: {escape(reason)}[/red]", soft_wrap=True)
            if len(failed) < len(table):
                self._extract(
                    shard, table[table["reason"].isna()], videos, folder, lambda *done: step(f"{place}: encode", *done)
                )
        return len(failed)

    def _subsample(self, videos: Mapping[str, RequestedVideo], shard: Path, place: str, step: Step) -> pd.DataFrame:
        """Download and subsample videos to a shard, as the subsample stage would, and return its table."""
        (shard / "videos").mkdir(parents=True)

        def subsample(name: str) -> dict[str, object]:
            row: dict[str, object] = {"video": name, "class_name": "", "num_frames": 0, "reason": None}
            try:
                with tempfile.TemporaryDirectory(dir=shard) as downloads:
                    source = videos[name].fetch(Path(downloads))
                    made = subsample_video(source, layout.subsampled_path(shard, name), self.subsample)
            except VideoError as error:
                return row | {"reason": error.reason}
            return row | {"num_frames": made.num_frames}

        rows = []
        with ThreadPoolExecutor(num_cores(), thread_name_prefix="subsample") as pool:
            for row in pool.map(subsample, videos):
                rows.append(row)
                step(f"{place}: decode", len(rows), len(videos))
        table = pd.DataFrame(rows)
        table.to_parquet(shard / layout.VIDEOS)
        return table

    def _extract(
        self,
        shard: Path,
        table: pd.DataFrame,
        videos: Mapping[str, RequestedVideo],
        folder: Path,
        step: Callable[[int, int], None],
    ) -> None:
        """Write the files of a shard's videos."""
        directories = {name: shard / "features" / name for name in self.streams}
        for directory in (*directories.values(), *(folder / name for name in self.streams)):
            directory.mkdir(parents=True, exist_ok=True)
        done, total = 0, int(table["num_frames"].sum()) * len(self.streams)

        def advance(num_frames: int) -> None:
            nonlocal done
            done += num_frames
            step(done, total)

        fps = self.subsample.fps
        extract_features(shard, directories, self.streams, self.chunk, fps=fps, weights=self.weights, on_frames=advance)
        clips = cut_clips(table, self.chunk)
        for name, directory in directories.items():
            with FeatureReader([directory / layout.FEATURES]) as reader:
                for video, of_video in clips.groupby("video", sort=False):
                    made = directory / f"{video}.{self.suffix}"
                    export_video(reader, of_video, made, video=videos[str(video)].shown, pool=self.pool)
                    made.replace(folder / name / made.name)


def _given_weights(text: str, streams: Mapping[str, StreamParams]) -> tuple[str, Path]:
    """Return the stream and the file of `STREAM=PATH`."""
    name, _, path = text.partition("=")
    if name not in streams or not path:
        raise UserError(f"--weights {text}: give STREAM=PATH with one of the streams that are written: {', '.join(streams)}")
    if not Path(path).expanduser().is_file():
        raise UserError(f"--weights {text}: no such file; give the path of a state dict")
    return name, Path(path).expanduser()


def _tuned_weights(params: Params, name: str) -> Path:
    """Return the weights of a stream that a run with these parameters tuned, and say which they are.

    Raises:
        UserError: there are none in the workspace, or those of several folds.
    """
    from tasks.stage import Context  # imports Prefect, which is slow

    workspace = locate_workspace(params.workspace, params.cache)
    context = Context(workspace=workspace)
    by_fold = _tuned_by_fold(context, params, name) if workspace.exists else {}
    if not by_fold:
        raise UserError(
            f"features.streams.{name} is tuned, but {workspace.name} has no weights that were tuned with these parameters: "
            f"make them by `har run PARAMS --until finetune`, give `--weights {name}=PATH`, or write untuned features with "
            "`--set finetune.enabled=false`"
        )
    if len(by_fold) > 1:
        raise UserError(
            f"features.streams.{name} was tuned for the folds {', '.join(map(str, by_fold))}: choose one, such as "
            f"`--set chunk.fold={next(iter(by_fold))}`"
        )
    ((fold, artifact),) = by_fold.items()
    path = context.store.file(artifact, layout.BACKBONE)
    say(f"weights     {name}: tuned on fold {fold}, {artifact.manifest.created}, {path}")
    return path


def _tuned_by_fold(context: Context, params: Params, name: str) -> dict[int, Artifact]:
    """Return the newest weights of a stream that were tuned with these parameters, by fold."""
    from tasks.features import backbone_recipe

    folds = {clips.content_key: clips.manifest.params["fold"] for clips in context.store.artifacts("chunk")}
    values = {"finetune": params.finetune.recipe(), "backbone": backbone_recipe(context, params.tuned_streams[name])}
    found = [
        (folds[artifact.manifest.inputs["clips"]], artifact)
        for artifact in sorted(context.store.artifacts("finetune"), key=lambda artifact: artifact.manifest.created)
        if digest(artifact.manifest.params) == digest(values) and artifact.manifest.inputs["clips"] in folds
    ]
    return {fold: artifact for fold, artifact in sorted(found, key=lambda each: each[0]) if fold in params.chunk.folds}
