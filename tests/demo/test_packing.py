"""`python -m demo`: what it leaves, when it renders again, and what the fetch stage makes of it."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from demo.__main__ import main
from demo.actions import ACTIONS
from demo.collection import CollectionParams
from demo.packing import make_collection
from pipeline_lib.artifacts import file_sha256
from pipeline_lib.fetch.collection import fetch_collection, list_videos
from pipeline_lib.params import FetchParams, load_params

PROJECT = Path(__file__).parents[2]
SMALL = CollectionParams(videos_per_class=3, groups_per_class=3, seconds=0.3)
OPTIONS = ["--videos-per-class", "3", "--groups-per-class", "3", "--seconds", "0.3", "--pictures", "0"]
FILES = {"videos.rar", "splits.rar", "groups.csv", "boxes.csv", "collection.json"}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "deep" / "collection"
    assert make_collection(folder, SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_equal_parameters_give_equal_archives_and_nothing_else_is_left(rendered: Path, tmp_path: Path) -> None:
    main([str(tmp_path / "again"), *OPTIONS])
    assert digests(tmp_path / "again") == digests(rendered)
    assert set(digests(rendered)) == FILES
    assert [path.name for path in rendered.parent.iterdir()] == [rendered.name]


def test_what_is_there_is_not_rendered_again(
    rendered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("demo.packing.render_collection", None)
    main([str(rendered), *OPTIONS])
    assert capsys.readouterr().out == f"{rendered}: already rendered\n"


@pytest.mark.parametrize("change", ["other parameters", "file missing", "file cut off", "description damaged"])
def test_what_is_not_whole_or_other_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    (folder := tmp_path / "collection").mkdir()
    params = SMALL

    def render(directory: Path, params: CollectionParams) -> None:
        for name in ("videos/wave/a.avi", "splits/wave_test_split1.txt", "groups.csv", "boxes.csv"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(f"{name} {params.seed}")

    monkeypatch.setattr("demo.packing.render_collection", render)
    assert make_collection(folder, params), "an empty folder is as good as none"
    before = digests(folder)
    if change == "other parameters":
        params = CollectionParams(seed=1)
    elif change == "file missing":
        (folder / "boxes.csv").unlink()
    else:
        (folder / {"file cut off": "videos.rar", "description damaged": "collection.json"}[change]).write_text("{")
    assert make_collection(folder, params)
    assert not make_collection(folder, params)
    assert (digests(folder) == before) == (change != "other parameters")
    assert [path.name for path in tmp_path.iterdir()] == ["collection"]


def test_a_stopped_rendering_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(directory: Path, params: CollectionParams) -> None:
        (directory / "videos").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("demo.packing.render_collection", stop)
    with pytest.raises(KeyboardInterrupt):
        make_collection(tmp_path / "collection", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(SystemExit, match=r"^demo: .*holds something other than a rendered collection; choose another"):
            main([str(place), *OPTIONS])
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_a_bad_value_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^demo: groups_per_class = 1: must be 3 or more$"):
        main([str(tmp_path), "--groups-per-class", "1"])


def test_the_fetch_stage_walks_through_its_archives(rendered: Path, tmp_path: Path) -> None:
    artifact, partial = tmp_path / "artifact", tmp_path / "partial"
    artifact.mkdir()
    partial.mkdir()
    paths = {key: str(rendered / name) for key, name in fetched_names().items()}
    counts = fetch_collection(FetchParams(kind="archive", **paths), artifact, partial, sha256=file_sha256)  # type: ignore[arg-type]
    videos = list_videos(artifact / "videos")
    assert counts["videos"] == len(videos) == len(ACTIONS) * 3 + 1
    assert counts["split_files"] == len(list((artifact / "splits").iterdir())) == len(ACTIONS) * 3
    assert (rendered / "videos.rar").read_bytes()[:4] == b"Rar!"
    assert set(pd.read_csv(artifact / "groups.csv")["video"]) == {video.video for video in videos}
    assert list(pd.read_csv(artifact / "boxes.csv").columns) == ["video", "time_seconds", "x0", "y0", "x1", "y1"]


def fetched_names() -> dict[str, str]:
    """Return the names of the files that `params/demo.yaml` fetches, after it was checked that they lie in one folder."""
    fetch = load_params(PROJECT / "params" / "demo.yaml").fetch
    paths = {key: Path(str(getattr(fetch, key))) for key in ("videos", "splits", "groups", "boxes")}
    (folder,) = {path.parent for path in paths.values()}
    assert fetch.hint is not None
    assert fetch.hint.endswith(f"python -m demo {folder}")
    return {key: path.name for key, path in paths.items()}


def test_the_description_says_what_it_was_rendered_from(rendered: Path) -> None:
    description = json.loads((rendered / "collection.json").read_text())
    assert description["params"] == {"videos_per_class": 3, "groups_per_class": 3, "seconds": 0.3, "seed": 0}
    assert set(description["size_bytes"]) == FILES - {"collection.json"}


def imported_by(package: str) -> set[str]:
    """Return the project's packages that a package's modules import, lazily or for typing too."""
    names = set()
    for path in (PROJECT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names & {"demo", "pipeline_lib", "tasks", "flows", "benchmarks", "tests"}


def test_the_demo_imports_the_library_alone_and_nothing_imports_the_demo() -> None:
    assert imported_by("demo") == {"demo", "pipeline_lib"}
    for package in ("pipeline_lib", "tasks", "flows"):
        assert "demo" not in imported_by(package)
