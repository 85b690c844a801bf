"""The page: what it says, that it stands alone, and that names of users' files cannot break it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
from PIL import Image

from pipeline_lib.params import Params
from pipeline_lib.report import ModelReport, RunReport, SweepReport, write_report
from pipeline_lib.report.page import duration, percent

EVIL = '"><script>alert(1)</script> & é'
VOID = {"meta", "link", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """Elements of a page, its text, and whether its tags balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += " " + " ".join(data.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def clip(number: int, outcome: str, class_name: str) -> dict[str, Any]:
    predicted = class_name if outcome == "success" else "sit"
    name = f"{number:02d}_{outcome}"
    return {
        "clip": f"{class_name}/a.avi#00000",
        "video": f"{class_name}/a.avi",
        "class_name": class_name,
        "predicted": predicted,
        "confidence": 0.875,
        "correct": outcome == "success",
        "outcome": outcome,
        "rule": "the rule",
        "frame_predicted": [predicted] * 3 + ["other"],
        "frame_confidence": [0.9] * 4,
        "mp4": f"{name}.mp4",
        "gif": f"{name}.gif",
        "poster": f"{name}.jpg",
    }


def model(directory: Path, name: str, clips: list[dict[str, Any]], *, num_epochs: int = 3) -> ModelReport:
    evaluation, heatmaps = directory / name / "evaluation", directory / name / "heatmaps"
    for folder in (evaluation, heatmaps):
        folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(evaluation / "confusion.png")
    (evaluation / "per_class.csv").write_text("class,clips,recall\nnan,4,0.515\n007,0,\n")
    for entry in clips:
        (heatmaps / entry["mp4"]).write_bytes(b"video " + entry["mp4"].encode())
        Image.new("RGB", (8, 8)).save(heatmaps / entry["poster"])
    notes = [] if any(not entry["correct"] for entry in clips) else ["failures: none to show, no clip is wrong"]
    listed = {"rules": {"success": "best first", "failure": "worst first"}, "notes": notes, "clips": clips}
    (heatmaps / "heatmaps.json").write_text(json.dumps(listed))
    metrics = {
        "frame_accuracy": 0.8,
        "clip_accuracy": 0.9125,
        "video_accuracy": 0.9375,
        "chance": 0.25,
        "majority_class": 0.3,
        "majority_class_video": 0.4,
        "num_clips": 80,
        "num_videos": 40,
    }
    fixed = {"val_calibrated_loss": 1.2, "train_frame_accuracy": 0.5, "val_frame_accuracy": 0.4}
    epochs = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.5 / epoch} | fixed for epoch in range(1, num_epochs + 1)]
    return ModelReport(name, name, metrics, epochs, evaluation, heatmaps)


def results_of(models: list[ModelReport]) -> dict[str, Any]:
    rows = [
        {
            "model": one.name,
            "num_cells": 1,
            "mean": one.metrics,
            "standard_deviation": {},
            "intervals": {"video_accuracy": [0.8, 1]},
        }
        for one in models
    ]
    pair = {"first": "alstm", "second": "conv_alstm", "difference": 0.025, "p_holm": 0.031}
    return {"models": rows, "controls": {}, "pairs": [pair]}


@pytest.fixture
def run(tmp_path: Path) -> RunReport:
    pointing = {"pointing": {"accuracy": 0.765, "chance": 0.11, "num_frames": 500}}
    plain = model(tmp_path, "alstm", [clip(1, "success", "run")])
    pointed = model(tmp_path, "conv_alstm", [clip(1, "success", "run"), clip(2, "failure", EVIL)])
    models = [plain, dataclasses.replace(pointed, metrics={**pointed.metrics, **pointing})]
    return RunReport(
        title="A run & its maps",
        summary={
            "dataset": {"classes": 4, "videos": 99, "clips": {"train": 120, "val": 21, "test": 80}, "quarantined": 1},
            "stages": {"fetch": {"cache": "hit", "seconds": 0.4}, "train": {"cache": "miss", "seconds": 125.0}},
            "results": results_of(models),
            "mlflow": {"tracking_uri": "sqlite:///x", "parent_run_id": "abc123"},
        },
        params=Params.model_validate({"fetch": {"kind": "synthetic"}}).model_dump(mode="json"),
        quarantined=pd.DataFrame([{"video": f"run/{EVIL}", "reason": "moov atom is missing", "stderr": "[mov] <b>bad</b>"}]),
        models=models,
        tools={"torch": "2.15.0"},
    )


def write(run: RunReport, directory: Path) -> Page:
    directory.mkdir()
    write_report(directory, run)
    page = Page((directory / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_numbers_stand_beside_chance_and_majority(run: RunReport, tmp_path: Path) -> None:
    text = write(run, tmp_path / "report").text.replace("\u202f", " ")
    for expected in ("93.8 %", "chance 25.0 %", "always the commonest class 40.0 %", "76.5 %", "chance 11.0 %"):
        assert expected in text


def test_results_have_their_intervals_and_comparisons(run: RunReport, tmp_path: Path) -> None:
    text = write(run, tmp_path / "report").text
    for expected in (
        "40 videos, in percent [95 % interval]",
        "93.8 [80, 100]",
        "commonest class",
        "+2.5 [0.031]",
        "after Holm",
    ):
        assert expected in text


def test_a_model_without_attention_has_results_and_no_gallery(run: RunReport, tmp_path: Path) -> None:
    models = [dataclasses.replace(run.models[0], heatmaps=None), *run.models[1:]]
    page = write(dataclasses.replace(run, models=models), tmp_path / "report")
    assert [video["src"] for video in page.all("video")] == [
        "media/conv_alstm/01_success.mp4",
        "media/conv_alstm/02_failure.mp4",
    ]
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) == 4


def test_several_splits_say_which_one_is_shown(run: RunReport, tmp_path: Path) -> None:
    models = [dataclasses.replace(one, label=f"{one.name} split 2") for one in run.models]
    params = {**run.params, "chunk": {**run.params["chunk"], "split": [2, 3]}}
    text = write(dataclasses.replace(run, models=models, params=params), tmp_path / "report").text
    assert "conv alstm split 2" in text
    assert "split 2, 3" in text


def test_test_videos_of_trained_sources_are_counted(run: RunReport, tmp_path: Path) -> None:
    assert "also trained on" not in write(run, tmp_path / "none").text
    dataset = {**run.summary["dataset"], "cut": {"leaked": 184}}
    leaking = dataclasses.replace(run, summary={**run.summary, "dataset": dataset})
    assert "also trained on 184" in " ".join(write(leaking, tmp_path / "report").text.split())


def test_a_search_shows_what_mattered_and_leaves_a_parameter_file(run: RunReport, tmp_path: Path) -> None:
    counts = {"trials": 30, "pruned": 11, "failed": 0, "default_val_clip_accuracy": 0.5, "best_val_clip_accuracy": 0.75}
    best = {"dropout": 0.1234, "units": 64, "scorer": "local"}
    sweep = SweepReport("alstm", counts, best, {"importance": {"dropout": 0.8, "units": 0.2}, "trials": 30, "note": None})
    page = write(dataclasses.replace(run, sweeps=[sweep], best_params={"train": {"dropout": 0.1234}}), tmp_path / "report")
    text = page.text.replace("\u202f", " ")
    for expected in (
        "Search: alstm",
        "11 of them cut",
        "50.0 % of the validation clips",
        "75.0 % with the best",
        "80.0 %",
        "0.123",
    ):
        assert expected in text
    assert {"href": "best.yaml"} in page.all("a")
    assert (tmp_path / "report/best.yaml").read_text() == "train:\n  dropout: 0.1234\n"


def test_classes_are_listed_as_they_are_called(run: RunReport, tmp_path: Path) -> None:
    text = write(run, tmp_path / "report").text.replace("\u202f", " ")
    assert "nan 4 51.5 %" in " ".join(text.split())
    assert "007 0 \u2013" in " ".join(text.split())


def test_dataset_protocol_stages_parameters_and_tools_are_told(run: RunReport, tmp_path: Path) -> None:
    text = write(run, tmp_path / "report").text
    for expected in (
        "99 videos",
        "official protocol, split 1",
        "2 min 5 s",
        "0.4 s",
        "hit",
        "miss",
        "percentile: 80",
        "2.15.0",
    ):
        assert expected in text


def test_nothing_is_fetched_from_elsewhere(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    attributes = [pair for _, pairs in page.elements for pair in pairs.items()]
    addresses = [value for name, value in attributes if name in ("src", "href", "poster")]
    assert len(addresses) > 8
    for address in addresses:
        assert address is not None
        is_file = (tmp_path / "report" / unquote(address)).is_file() if address.startswith("media/") else False
        assert is_file or address.startswith(("data:", "#"))


def test_videos_are_copied_and_load_only_when_asked_for(run: RunReport, tmp_path: Path) -> None:
    videos = write(run, tmp_path / "report").all("video")
    assert [video["src"] for video in videos] == [
        "media/alstm/01_success.mp4",
        "media/conv_alstm/01_success.mp4",
        "media/conv_alstm/02_failure.mp4",
    ]
    assert {video["preload"] for video in videos} == {"none"}
    assert (tmp_path / "report/media/conv_alstm/02_failure.mp4").read_bytes() == b"video 02_failure.mp4"
    poster = videos[0]["poster"]
    assert poster is not None
    assert base64.b64decode(poster.partition(",")[2]) == (run.models[0].heatmaps / "01_success.jpg").read_bytes()


def test_names_of_users_stay_text(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert EVIL in page.text
    assert "A run & its maps" in page.text


def test_quarantined_videos_have_their_reason(run: RunReport, tmp_path: Path) -> None:
    text = write(run, tmp_path / "report").text
    assert "moov atom is missing" in text
    empty = dataclasses.replace(run, quarantined=run.quarantined.head(0))
    assert "could not be decoded" not in write(empty, tmp_path / "empty").text


def test_no_failures_is_said(run: RunReport, tmp_path: Path) -> None:
    assert "Nothing to show: no clip is wrong." in write(run, tmp_path / "report").text


def test_pictures_speak_and_ids_are_unique(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    assert all(image["alt"] for image in page.all("img"))
    assert all(video["aria-label"] for video in page.all("video"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    targets = {link["href"] for link in page.all("a")}
    assert targets <= {f"#{name}" for name in ids}


def test_curves_take_the_colours_of_the_page(run: RunReport, tmp_path: Path) -> None:
    charts = [svg for svg in write(run, tmp_path / "report").all("svg") if svg.get("class") == "chart"]
    assert len(charts) == 4
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "stroke: var(--val)" in html
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_hardly_any_history_is_no_error(run: RunReport, tmp_path: Path, num_epochs: int) -> None:
    models = [dataclasses.replace(one, history=one.history[:num_epochs]) for one in run.models]
    page = write(dataclasses.replace(run, models=models), tmp_path / "report")
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) == 4 * num_epochs


def test_equal_runs_give_equal_pages(run: RunReport, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(run, tmp_path / name)
    assert (tmp_path / "one/index.html").read_bytes() == (tmp_path / "two/index.html").read_bytes()


def test_counts(run: RunReport, tmp_path: Path) -> None:
    counts = write_report(tmp_path, run)
    assert counts == {"videos": 3, "page_bytes": (tmp_path / "index.html").stat().st_size}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_unknown_fraction_is_a_dash() -> None:
    assert percent(None) == percent(float("nan")) == "\u2013"
