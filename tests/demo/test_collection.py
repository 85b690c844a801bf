"""The rendered collection: its layout, its truth about where the actor is, and its independence of place and class."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from demo.actions import ACTIONS, PAIRS, Manner, oscillate
from demo.brush import brush_on
from demo.collection import CollectionParams, plan_sources, render_collection
from demo.distractors import paint_onlookers
from demo.figures import VEST, Place, body_box, body_parts, draw_figure, in_vest, prop_box, random_look
from demo.films import HEIGHT, WIDTH, Film, random_source
from demo.skeleton import FOREARM, UPPER_ARM, Pose, reach_arm, reach_leg
from pipeline_lib.errors import UserError
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import probe, read_frames

pytestmark = pytest.mark.integration

SMALL = CollectionParams(videos_per_class=4, groups_per_class=3, seconds=0.5, seed=3)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("collection")
    render_collection(directory, SMALL)
    return directory


def labels_of(collection: Path, split: int) -> dict[str, int]:
    labels = {}
    for class_name in ACTIONS:
        for line in (collection / "splits" / f"{class_name}_test_split{split}.txt").read_text("utf-8").splitlines():
            assert line.endswith((" 0 ", " 1 ", " 2 "))
            labels[f"{class_name}/{line[:-3]}"] = int(line[-2])
    return labels


def is_broken(video: str) -> bool:
    return "/cut_off_" in video


def test_every_video_is_on_disk_in_the_splits_and_has_a_source(collection: Path) -> None:
    on_disk = {path.relative_to(collection / "videos").as_posix() for path in (collection / "videos").rglob("*.avi")}
    assert len(on_disk) == len(ACTIONS) * SMALL.videos_per_class + 1
    assert set(pd.read_csv(collection / "groups.csv")["video"]) == on_disk
    for split in (1, 2, 3):
        assert set(labels_of(collection, split)) == on_disk


def test_a_source_is_trained_on_or_tested_but_not_both(collection: Path) -> None:
    sources = pd.read_csv(collection / "groups.csv").set_index("video")["group"]
    tested_in = []
    for split in (1, 2, 3):
        labels = labels_of(collection, split)
        labels_by_source = defaultdict(set)
        for video, label in labels.items():
            labels_by_source[sources[video]].add(label)
        assert not [source for source, found in labels_by_source.items() if {1, 2} <= found]
        assert {video.split("/")[0] for video, label in labels.items() if label == 2} == set(ACTIONS)
        assert {video.split("/")[0] for video, label in labels.items() if label == 1} == set(ACTIONS)
        tested_in.append(frozenset(video for video, label in labels.items() if label == 2))
    assert len(set(tested_in)) == 3


def test_classes_of_one_title_share_their_footage(collection: Path) -> None:
    sources = pd.read_csv(collection / "groups.csv")
    classes_of = sources["video"].str.split("/").str[0].groupby(sources["group"]).nunique()
    assert sorted(classes_of) == [1, *[len(ACTIONS)] * SMALL.groups_per_class]  # the broken video stands alone


def test_default_plan_has_names_that_shells_and_globs_dislike() -> None:
    plans = plan_sources(CollectionParams())
    assert sum(len(plan.videos) for plan in plans) == CollectionParams().videos_per_class * len(ACTIONS)
    names = "".join(plan.name for plan in plans)
    assert set("#()[]!&+;~@- Ü") <= set(names)
    assert any(plan.name.startswith("-") for plan in plans)
    assert len({plan.group for plan in plan_sources(CollectionParams(groups_per_class=40, videos_per_class=40))}) == 40 * len(
        ACTIONS
    )


@pytest.mark.parametrize("values", [{"videos_per_class": 2}, {"groups_per_class": 2}, {"seconds": 0}, {"seed": -1}])
def test_a_collection_that_cannot_be_is_refused(values: dict[str, int]) -> None:
    (name,) = values
    with pytest.raises(UserError, match=rf"^{name} = {values[name]}: must be"):
        CollectionParams(**values)


def test_videos_are_hmdb_like_and_every_frame_has_a_box(collection: Path) -> None:
    boxes = pd.read_csv(collection / "boxes.csv")
    for class_name in ACTIONS:
        video = next(name for name in boxes["video"] if name.startswith(f"{class_name}/"))
        info = probe(collection / "videos" / video)
        assert (info.width, info.height) == (WIDTH, HEIGHT)
        num_frames = sum(1 for _ in read_frames(collection / "videos" / video))
        rows = boxes[boxes["video"] == video]
        np.testing.assert_allclose(rows["time_seconds"], np.arange(num_frames) / info.fps, atol=1e-5)
    assert (boxes[["x0", "y0"]].to_numpy() < boxes[["x1", "y1"]].to_numpy()).all()
    assert boxes[["x0", "y0", "x1", "y1"]].to_numpy().min() >= 0
    assert boxes[["x0", "y0", "x1", "y1"]].to_numpy().max() <= 1


def test_the_broken_video_is_listed_but_cannot_be_decoded(collection: Path) -> None:
    (broken,) = (video for video in labels_of(collection, 1) if is_broken(video))
    with pytest.raises(VideoError):
        list(read_frames(collection / "videos" / broken))
    assert broken not in set(pd.read_csv(collection / "boxes.csv")["video"])


def test_same_parameters_same_bytes_and_another_seed_other_bytes(tmp_path: Path, collection: Path) -> None:
    def digests(directory: Path) -> dict[str, str]:
        files = [path for path in directory.rglob("*") if path.is_file()]
        return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    render_collection(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(collection)
    render_collection(tmp_path / "other", replace(SMALL, seed=4))
    other, first = digests(tmp_path / "other"), digests(collection)
    assert not [name for name in other.keys() & first.keys() if name.endswith(".avi") and other[name] == first[name]]


@pytest.mark.parametrize("action", ACTIONS)
def test_the_box_holds_the_actor_and_is_tight(action: str) -> None:
    rng = np.random.default_rng(5)
    look = random_look(rng)
    for turns in (0.0, 0.3, 0.55, 0.8):
        pose = ACTIONS[action].pose(turns, Manner(1.0, 0.5))
        bare = type(pose)(pose.trunk, pose.arms, pose.legs)
        parts = body_parts(bare, look)
        image = Image.new("RGB", (300, 300), (255, 0, 255))
        place = Place(150 + 200j, 100.0, mirrored=False)
        with brush_on(image, (0, 0, 300, 300)) as brush:
            assert brush is not None
            draw_figure(brush, bare, parts, look, place)
        drawn = (np.asarray(image) != (255, 0, 255)).any(axis=2)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        left, bottom, right, top = body_box(parts)
        expected = (150 + 100 * left, 150 + 100 * right, 200 - 100 * top, 200 - 100 * bottom)
        np.testing.assert_allclose((columns[0], columns[-1] + 1, rows[0], rows[-1] + 1), expected, atol=2.6)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_whole_action_fits_the_frame_and_is_small(action: str) -> None:
    areas, centers = [], []
    for seed in range(8):
        rng = np.random.default_rng([seed, 7])
        film = Film(rng, random_source(rng), action, fps=10, num_frames=12)
        boxes = np.array([box for _, box in film.frames()])
        areas.append(float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean()))
        centers.append(float((boxes[:, 0] + boxes[:, 2]).mean() / 2))
        assert boxes.min() > 0
        assert boxes.max() < 1
    assert 0.02 < np.mean(areas) < 0.09
    assert min(centers) < 0.4 < 0.6 < max(centers)


def test_the_place_and_the_clothes_are_those_of_the_source_whatever_the_action() -> None:
    source = random_source(np.random.default_rng(1))
    films = [Film(np.random.default_rng(2), source, action, fps=30, num_frames=2) for action in ("wave", "sit")]
    first, second = (np.asarray(next(film.frames())[0], float) for film in films)
    assert np.abs(first[:20] - second[:20]).mean() < 2


def test_equipment_is_not_part_of_the_box() -> None:
    pose = ACTIONS["pushup"].pose(0.2, Manner(1.0, 0.5))
    body, mat = body_box(body_parts(pose, random_look(np.random.default_rng(0)))), prop_box(pose)
    assert mat is not None
    assert mat[0] < body[0] < body[2] < mat[2]


def test_arms_keep_their_length_and_reach_what_is_in_reach() -> None:
    elbow, hand = reach_arm(0j, 0.2 + 0.1j, bend=1)
    assert hand == pytest.approx(0.2 + 0.1j)
    assert abs(elbow) == pytest.approx(UPPER_ARM)
    assert abs(hand - elbow) == pytest.approx(FOREARM)
    _, far_hand = reach_arm(0j, 5 + 0j, bend=1)
    assert far_hand.real == pytest.approx(UPPER_ARM + FOREARM, rel=0.01)
    knee, _, _ = reach_leg(1j, 0.7j, bend=1, foot=0)
    assert knee.real > 0, "a knee bends forward"


def test_motion_repeats_after_a_turn() -> None:
    for action in ACTIONS.values():
        start, later = (action.pose(turns, Manner(1.0, 0.3)) for turns in (0.25, 2.25))
        assert start.trunk.head == pytest.approx(later.trunk.head)
        assert start.arms[1][1] == pytest.approx(later.arms[1][1])
    assert oscillate(0.5, 1, 3) == pytest.approx(3)


def shape_of(pose: Pose) -> tuple[complex, ...]:
    points = (pose.trunk.head, pose.trunk.pelvis, *(point for limb in (*pose.arms, *pose.legs) for point in limb))
    return tuple(complex(round(point.real, 6) + 0.0, round(point.imag, 6) + 0.0) for point in points)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_single_frames_do_not_tell_a_pair_apart_but_motion_does(first: str, second: str) -> None:
    actions = ACTIONS[first], ACTIONS[second]
    shapes = [[shape_of(action.pose(turns / 32, Manner(1.0, 0.4))) for turns in range(32)] for action in actions]
    assert set(shapes[0]) == set(shapes[1])
    assert actions[0].size == actions[1].size
    motions = [(action.repetitions_per_second, action.travel_per_second) for action in actions]
    assert shapes[0] != shapes[1] or motions[0] != motions[1]


def test_who_climbs_down_passes_the_places_of_who_climbs_up() -> None:
    source = random_source(np.random.default_rng(1))
    heights = []
    for action in ("climb", "climb_down"):
        film = Film(np.random.default_rng(2), source, action, fps=10, num_frames=12)
        heights.append([(box[1] + box[3]) / 2 for _, box in film.frames()])
    assert heights[0][0] - heights[0][-1] > 0.1
    np.testing.assert_allclose(heights[1], heights[0][::-1], atol=0.03)


def test_actors_alone_wear_the_vest() -> None:
    rng = np.random.default_rng(0)
    looks = [random_look(rng) for _ in range(100)]
    assert VEST not in {color for look in looks for color in (look.shirt, look.trousers, look.shoes, *look.tones.values())}
    assert {in_vest(look).shirt for look in looks} == {VEST}


def test_onlookers_keep_still_and_do_not_depend_on_the_action() -> None:
    picture, again, empty = (Image.new("RGB", (320, 240), "grey") for _ in range(3))
    frame = 0j, complex(320, 240)
    for canvas in (picture, again):
        paint_onlookers(np.random.default_rng(4), canvas, frame, horizon=110.0)
    assert picture.tobytes() == again.tobytes()
    changed = (np.asarray(picture) != np.asarray(empty)).any(axis=2)
    assert 0.05 < changed.mean() < 0.6
