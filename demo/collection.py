"""Renders a whole collection in HMDB-51's layout: videos by class, split files, sources, and where the actor is."""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from demo.actions import ACTIONS
from demo.encoding import AviWriter, write_broken_avi
from demo.films import HEIGHT, WIDTH, Film, Source, random_source
from pipeline_lib.compute.cores import num_cores
from pipeline_lib.errors import UserError

SOURCE_NAMES = (
    "#1_(Fun)_[best]!",
    "Home Video 2006",
    "-_free",
    "a&b+c;d~e@f",
    "Übung_macht_den_Meister",
    "THE_LONG_WAY_HOME",
    "21",
    "sommerfest_(Teil_2)",
    "10_Tips_to_get_better!!!",
    "parkour-day",
    "Late_Show_with_Nobody",
    "veoh_unknown",
)
"""What sources are called: HMDB-51's own names are no tamer."""

BROKEN_SOURCE = "cut_off"
SHORT_EVERY, SHORT_SECONDS = 10, (0.55, 1.6)
"""One video in ten is short: some give fewer than 8 frames at 8 fps."""
FPS, OTHER_FPS, OTHER_SHARE = 15, 12, 0.2
"""Half of HMDB-51's 30, to render in half the time; some videos have another rate, as some of its do."""
TEST_SHARE = 0.45
"""More than HMDB-51's 0.3: intervals need groups."""
SPLITS = (1, 2, 3)
TRAIN, TEST, UNUSED = 1, 2, 0
ENOUGH_VIDEOS = 8
MAX_WORKERS = 8
MIN_GROUPS = 3
"""One for each split: train, val and test."""

Row = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class CollectionParams:
    """What the collection is rendered from.

    Raises:
        UserError: a value that no collection can have.
    """

    videos_per_class: int = 40
    groups_per_class: int = 40
    """Sets of scenes, actors and cameras that a class's videos are drawn from; a group never crosses splits."""
    seconds: float = 1.6
    """Typical length of a video; a few are much shorter."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        lowest = {"videos_per_class": MIN_GROUPS, "groups_per_class": MIN_GROUPS, "seed": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} = {getattr(self, name)}: must be {low} or more")
        if not 0 < self.seconds < math.inf:
            raise UserError(f"seconds = {self.seconds}: must be above 0")


@dataclass(frozen=True)
class SourcePlan:
    """A source to film: its class, name, and the numbers of its videos within the class."""

    class_name: str
    name: str
    number: int
    videos: tuple[int, ...]

    @property
    def group(self) -> str:
        """How its file names begin: title and class, as HMDB-51's do."""
        return f"{self.name}_{self.class_name}"


@dataclass(frozen=True)
class FilmedSource:
    """The videos of a source: file names, and the rows of the table of boxes."""

    plan: SourcePlan
    names: tuple[str, ...]
    boxes: tuple[Row, ...]


def render_collection(directory: Path, params: CollectionParams) -> None:
    """Render the collection; equal parameters give equal bytes.

    Writes `videos/<class>/<video>.avi` (320 x 240), one of them broken, `splits/<class>_test_split{1,2,3}.txt`,
    `groups.csv` (video, group) and `boxes.csv` (video, time_seconds, x0, y0, x1, y1: fractions of the frame; every
    frame of every intact video).
    """
    plans = plan_sources(params)
    for class_name in ACTIONS:
        (directory / "videos" / class_name).mkdir(parents=True, exist_ok=True)
    filmed = _film_all(directory / "videos", plans, params)
    filmed.append(_break_one(directory / "videos", filmed[0], params.seed))
    _write_csv(directory / "boxes.csv", ("video", "time_seconds", "x0", "y0", "x1", "y1"), _box_rows(filmed))
    _write_csv(directory / "groups.csv", ("video", "group"), _source_rows(filmed))
    _write_splits(directory / "splits", filmed, params.seed)


def plan_sources(params: CollectionParams) -> list[SourcePlan]:
    """Deal each class's videos out to its sources."""
    num_sources = min(params.groups_per_class, params.videos_per_class)
    return [
        SourcePlan(class_name, _source_name(number), number, tuple(range(number, params.videos_per_class, num_sources)))
        for number in range(num_sources)
        for class_name in ACTIONS
    ]


def _source_name(number: int) -> str:
    """Return a name of the list; once all are used, with a number behind."""
    name, again = SOURCE_NAMES[number % len(SOURCE_NAMES)], number // len(SOURCE_NAMES)
    return f"{name}_{again + 1}" if again else name


def _film_all(videos: Path, plans: Sequence[SourcePlan], params: CollectionParams) -> list[FilmedSource]:
    with worker_pool(len(plans)) as pool:
        return list(pool.map(film_source, [videos] * len(plans), plans, [params] * len(plans)))


def worker_pool(num_tasks: int) -> ProcessPoolExecutor:
    """Return a pool of processes on all cores. They are not forked, since the caller may hold threads and locks."""
    return ProcessPoolExecutor(min(num_cores(), MAX_WORKERS, num_tasks), mp_context=get_context("spawn"))


def film_source(videos: Path, plan: SourcePlan, params: CollectionParams) -> FilmedSource:
    """Render the videos of one source."""
    source = _source(params.seed, plan.number)
    names: list[str] = []
    boxes: list[Row] = []
    for index, video in enumerate(plan.videos):
        rng = np.random.default_rng([params.seed, zlib.crc32(plan.class_name.encode()), plan.number, video])
        fps = OTHER_FPS if rng.random() < OTHER_SHARE else FPS
        num_frames = max(1, round(_draw_seconds(rng, video, params.seconds) * fps))
        film = Film(rng, source, plan.class_name, fps, num_frames)
        names.append(_video_name(plan, film, index))
        boxes += _shoot(videos / plan.class_name / names[-1], film, fps, quality=int(rng.integers(4, 9)))
    return FilmedSource(plan, tuple(names), tuple(boxes))


def _draw_seconds(rng: np.random.Generator, video: int, typical: float) -> float:
    if video % SHORT_EVERY == SHORT_EVERY - 3:
        return float(rng.uniform(*SHORT_SECONDS))
    return typical * float(rng.uniform(0.8, 1.25))


@cache
def _source(seed: int, number: int) -> Source:
    return random_source(np.random.default_rng([seed, number]))


def _video_name(plan: SourcePlan, film: Film, index: int) -> str:
    """Return a name of HMDB-51's pattern: whole body, camera motion, one person, view, quality, number."""
    motion, view = "cm" if film.is_shaky else "nm", "le" if film.facing_left else "ri"
    return f"{plan.group}_f_{motion}_np1_{view}_med_{index}.avi"


def _shoot(path: Path, film: Film, fps: int, quality: int) -> list[Row]:
    """Write a film and return its rows of boxes."""
    video = f"{path.parent.name}/{path.name}"
    rows: list[Row] = []
    with AviWriter(path, width=WIDTH, height=HEIGHT, fps=fps, quality=quality) as writer:
        for number, (frame, (x0, y0, x1, y1)) in enumerate(film.frames()):
            writer.write(np.asarray(frame))
            rows.append((video, f"{number / fps:.6f}", f"{x0:.4f}", f"{y0:.4f}", f"{x1:.4f}", f"{y1:.4f}"))
    return rows


def _break_one(videos: Path, intact: FilmedSource, seed: int) -> FilmedSource:
    """Add a video that cannot be decoded, from a source of its own."""
    plan = SourcePlan(intact.plan.class_name, BROKEN_SOURCE, -1, ())
    name = f"{plan.group}_f_cm_np1_fr_bad_0.avi"
    folder = videos / plan.class_name
    write_broken_avi(folder / name, folder / intact.names[0], np.random.default_rng(seed))
    return FilmedSource(plan, (name,), ())


def _box_rows(filmed: Iterable[FilmedSource]) -> list[Row]:
    return sorted((row for source in filmed for row in source.boxes), key=lambda row: (row[0], float(row[1])))


def _source_rows(filmed: Iterable[FilmedSource]) -> list[tuple[str, str]]:
    """Return (video, source): the title alone, since a title's places and people are the same in all classes."""
    return sorted((f"{source.plan.class_name}/{name}", source.plan.name) for source in filmed for name in source.names)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_splits(folder: Path, filmed: Sequence[FilmedSource], seed: int) -> None:
    """Write `<class>_test_split{1,2,3}.txt` as HMDB-51's are, trailing space included.

    A source is tested in all its classes or in none: its places and people are new to the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_sources = 1 + max(source.plan.number for source in filmed)
    rng = np.random.default_rng([seed, num_sources])
    order = rng.permutation(num_sources)
    num_test = max(1, round(TEST_SHARE * num_sources))
    for split in SPLITS:
        tested = {int(number) for number in np.roll(order, -num_test * split)[:num_test]}
        for class_name in ACTIONS:
            labels = _label_videos([source for source in filmed if source.plan.class_name == class_name], tested, rng)
            lines = [f"{name} {label} \n" for name, label in sorted(labels.items())]
            (folder / f"{class_name}_test_split{split}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _label_videos(sources: Sequence[FilmedSource], tested: set[int], rng: np.random.Generator) -> dict[str, int]:
    """Give whole sources to training or test; of a class with enough training videos, leave one unused."""
    labels = {name: TEST if source.plan.number in tested else TRAIN for source in sources for name in source.names}
    trained = [name for source in sources if source.boxes for name in source.names if labels[name] == TRAIN]
    if len(trained) >= ENOUGH_VIDEOS:
        labels[trained[rng.integers(len(trained))]] = UNUSED
    return labels
