"""The page: what it says, that it stands alone, and that names of users' files cannot break it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline_lib.evaluate.claims import CLAIMS
from pipeline_lib.report import RunReport, SweepReport, write_report
from pipeline_lib.report.attention import QUESTIONS
from pipeline_lib.report.numbers import decimal, duration, headlines, percent
from tests.pipeline_lib.report.example import CLASSES, EVIL, make_model, make_run, write_maps, write_tubes

pytestmark = pytest.mark.integration

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Elements of a page, its text, what its inert elements hold, and whether its tags balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.text = ""
        self.inert: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, name = self.open[-1] if self.open else ("", None)
        if tag == "script" and name:
            self.inert[name] = self.inert.get(name, "") + data
        elif tag not in ("style", "script"):
            self.text += " " + " ".join(data.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> Any:
        return json.loads(self.inert["page-data"])

    @property
    def words(self) -> str:
        """The text with plain spaces, one at a time."""
        return " ".join(self.text.replace("\u202f", " ").split())


@pytest.fixture
def run(tmp_path: Path) -> RunReport:
    models = [make_model(tmp_path, "alstm", 0), make_model(tmp_path, "conv_alstm", 1)]
    return make_run([*models, make_model(tmp_path, "lrcn", 2, attends=False)])


def write(run: RunReport, directory: Path) -> Page:
    directory.mkdir()
    write_report(directory, run)
    page = Page((directory / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_numbers_stand_beside_chance_and_majority(run: RunReport, tmp_path: Path) -> None:
    words = write(run, tmp_path / "report").words
    for expected in ("alstm 100.0 % [80, 100]", "conv alstm 66.7 % [80, 100]", "chance 25.0 %", "majority class 40.0 %"):
        assert expected in words


def test_headlines_go_by_accuracy_and_end_with_references(run: RunReport) -> None:
    results = run.summary["results"]
    reversed_rows = {**results, "models": results["models"][::-1]}
    rows = headlines(reversed_rows, {"conv_alstm", "lrcn"})
    assert [(row.model, row.is_reference) for row in rows] == [("lrcn", False), ("conv alstm", False), ("alstm", True)]


def test_several_training_runs_have_their_deviation(run: RunReport) -> None:
    results = run.summary["results"]
    row = {**results["models"][0], "num_training_runs": 3, "intervals": {}, "standard_deviation": {"video_accuracy": 0.025}}
    (headline,) = headlines({"models": [row]}, {"alstm"})
    assert headline.spread == "\u00b1 2.5"
    assert (headline.low, headline.high) == (0.975, 1.0)


def test_results_have_their_intervals_and_comparisons(run: RunReport, tmp_path: Path) -> None:
    words = write(run, tmp_path / "report").words
    for expected in (
        "40 videos of 8 groups, in percent [95 % CI over groups]",
        "100.0 [80, 100]",
        "majority class",
        "\u22122.5 [0.031]",
        "Row \u2212 column, video accuracy (pp) [Holm-adjusted p]",
    ):
        assert expected in words


def test_boxes_are_there_where_they_are_known(run: RunReport, tmp_path: Path) -> None:
    plain = write(run, tmp_path / "plain")
    assert {clip["truth"] for clip in plain.data["clips"]} == {None}
    assert "dashed" not in plain.words
    write_tubes(run.models[0])
    page = write(run, tmp_path / "report")
    (clip,) = [clip for clip in page.data["clips"] if clip["truth"]]
    assert clip["truth"] == [[0.1, 0.2, 0.3, 0.444]] * 11 + [[]]
    assert clip["models"][0]["tube"] == {"boxes": [[0.1, 0.2, 0.3, 0.4]] * 12, "iou": [0.8] * 11 + [None]}
    assert [model["tube"] for model in clip["models"][1:]] == [None, None]
    assert "dashed ones are the actors" in page.words


def test_weights_of_frames_are_there_for_a_model_that_attends_over_time(run: RunReport, tmp_path: Path) -> None:
    assert "an equal weight" not in write(run, tmp_path / "plain").words
    with h5py.File(run.models[0].evaluation / "attention.h5", "r+") as file:
        num_clips, num_frames = file["attention"].shape[:2]
        weights_T = np.arange(num_frames) / np.arange(num_frames).sum()
        file.create_dataset("importance", data=np.tile(weights_T, (num_clips, 1)))
    page = write(run, tmp_path / "report")
    for clip in page.data["clips"]:
        first, *others = [model["importance"] for model in clip["models"]]
        assert first == pytest.approx(weights_T * num_frames, abs=1e-3)
        assert others == [None] * len(others)
    assert "the line is an equal weight" in page.words


def test_measures_of_boxes_have_the_best_box_of_whole_cells(run: RunReport, tmp_path: Path) -> None:
    write_maps(run.models[0])
    path = run.models[0].evaluation / "maps.json"
    maps = json.loads(path.read_text())
    values = {"model": 0.31, "interval": [0.2, 0.4], "uniform": 0.1, "centre": 0.2, "oracle": 0.71}
    maps["measures"]["tube_iou"] = {"title": "IoU of tubes", "unit": "mean", "better": "higher", **values}
    maps["boxes"] = {"videos": 3, "frames": 90, "frames_with_several": 7, "frames_without": 12}
    path.write_text(json.dumps(maps))
    words = write(run, tmp_path / "report").words
    assert "0.31 [0.20, 0.40] uniform 0.10 \u00b7 centre 0.20 \u00b7 best box of whole cells 0.71" in words
    assert "Boxes of actors are known in 90 frames of 3 videos (7 frames with several" in words


def test_a_map_that_is_not_attention_is_marked_and_other_maps_stand_below_the_models(run: RunReport, tmp_path: Path) -> None:
    for model, kind in zip(run.models[:2], ("attention", "grad_cam"), strict=True):
        write_maps(model)
        path = model.evaluation / "maps.json"
        maps = json.loads(path.read_text())
        maps["measures"]["pointing"] |= {"grad_cam": 0.61, "flow": 0.42} if kind == "attention" else {}
        path.write_text(json.dumps({**maps, "kind": kind}))
    words = write(run, tmp_path / "report").words
    assert "Measure alstm conv alstm (Grad-CAM)" in words
    assert "uniform 0.12 \u00b7 centre 0.25 \u00b7 Grad-CAM 0.61 \u00b7 optical flow 0.42" in words


def test_every_claim_answers_a_question() -> None:
    assert QUESTIONS.keys() == set(CLAIMS)


def test_each_question_has_its_own_answers(run: RunReport, tmp_path: Path) -> None:
    write_maps(run.models[0])
    claim = run.summary["results"]["attention_claims"][0]
    motion = {**claim, "first": "motion_conv_alstm", "second": "conv_alstm"}
    results = {**run.summary["results"], "attention_claims": [claim, motion]}
    words = write(dataclasses.replace(run, summary={**run.summary, "results": results}), tmp_path / "report").words
    assert "Does ConvALSTM attend better than ALSTM, as the article claims?" in words
    assert "Does ConvALSTM attend better when motion guides it, as VideoLSTM claims?" in words


def test_each_chosen_clip_is_there_once_with_all_models(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    clips = page.data["clips"]
    assert len({clip["id"] for clip in clips}) == len(clips) == 6
    for clip in clips:
        assert [model["name"] for model in clip["models"]] == ["alstm", "conv alstm", "lrcn"]
        assert [model["attention"] is None for model in clip["models"]] == [False, False, True]
        assert len(clip["models"][0]["predicted"]) == clip["frames"] == 12
    assert "success of alstm, failure of conv alstm" in page.words
    assert "alstm: failures: none to show" in page.words


def test_clips_of_models_on_streams_with_other_grids_are_drawn_on_the_finest(run: RunReport, tmp_path: Path) -> None:
    finer = run.models[1]
    assert finer.heatmaps
    with h5py.File(finer.evaluation / "attention.h5", "a") as file:
        maps_NTKK = file["attention"][:].repeat(2, axis=2).repeat(2, axis=3) / 4
        del file["attention"]
        file["attention"] = maps_NTKK
    content = json.loads((finer.heatmaps / "heatmaps.json").read_text())
    (finer.heatmaps / "heatmaps.json").write_text(json.dumps(content | {"grid": 14}))
    page = write(run, tmp_path / "report")
    assert page.data["style"]["grid"] == 14
    for model in page.data["clips"][0]["models"][:2]:
        assert len(base64.b64decode(model["attention"])) == 12 * 14 * 14 * 2


def test_where_models_disagree_comes_first(run: RunReport, tmp_path: Path) -> None:
    clips = write(run, tmp_path / "report").data["clips"]
    disagree = [len({model["verdict"] == clip["label"] for model in clip["models"]}) > 1 for clip in clips]
    assert disagree == sorted(disagree, reverse=True)
    assert {True, False} == set(disagree)


def test_clips_lie_in_the_page(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    heatmaps = run.models[0].heatmaps
    assert heatmaps is not None
    for clip in page.data["clips"]:
        assert base64.b64decode(page.inert[clip["video"]]) == (heatmaps / "plain.mp4").read_bytes()
        assert base64.b64decode(page.inert[clip["still"]]) == (heatmaps / "still.jpg").read_bytes()
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]


def test_without_attention_there_are_results_and_no_gallery(run: RunReport, tmp_path: Path) -> None:
    models = [dataclasses.replace(model, heatmaps=None) for model in run.models]
    page = write(dataclasses.replace(run, models=models), tmp_path / "report")
    assert page.data["clips"] == []
    assert "No clips to show" in page.words
    assert "None of this run\u2019s models has attention" in page.words
    assert "100.0 %" in page.words


def test_maps_that_were_not_measured_are_said_to_be_so(run: RunReport, tmp_path: Path) -> None:
    assert "This run did not evaluate its attention maps." in write(run, tmp_path / "report").words


def test_maps_stand_beside_their_controls(run: RunReport, tmp_path: Path) -> None:
    write_maps(run.models[0])
    page = write(run, tmp_path / "report")
    for expected in (
        "Entropy share of the uniform map's; lower is better 0.83 [0.80, 0.86] uniform 1.00 \u00b7 centre 0.91",
        "Drift share of attention moved from frame to frame 0.20 [0.10, 0.30]",
        "Pointing game share of frames; higher is better 0.87 [0.80, 0.95] uniform 0.12 \u00b7 centre 0.25",
        "run 2 0.77 \u2013",
        "yes Entropy: conv alstm \u2212 alstm \u22120.07 [\u22120.10, \u22120.04]",
        "undecided Deletion: conv alstm \u2212 alstm 0.01",
    ):
        assert expected in page.words
    assert {"alstm: deletion", "alstm: insertion"} <= page.data["charts"].keys()


def test_a_claim_that_could_not_be_tested_is_said_to_be_so(run: RunReport, tmp_path: Path) -> None:
    write_maps(run.models[0])
    results = {**run.summary["results"], "attention_claims": []}
    untested = dataclasses.replace(run, summary={**run.summary, "results": results})
    assert "This run cannot test that" in write(untested, tmp_path / "untested").words
    assert "This run cannot test that" not in write(run, tmp_path / "tested").words


def test_confusions_are_counted(run: RunReport, tmp_path: Path) -> None:
    matrices = write(run, tmp_path / "report").data["matrices"]
    assert [matrix["model"] for matrix in matrices] == ["alstm", "conv alstm", "lrcn"]
    assert matrices[0] == {"model": "alstm", "classes": list(CLASSES), "cells": [[0, 0, 2], [1, 1, 2], [2, 2, 2]]}
    assert sum(count for row, column, count in matrices[1]["cells"] if row != column) == 2


def test_charts_have_their_numbers_as_tables(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    charts = page.data["charts"]
    assert sorted(str(canvas["data-chart"]) for canvas in page.all("canvas")) == sorted(charts)
    assert len(charts) == 2 + 2 * 3
    assert "epoch train val 1 1.000 1.500 2 0.500 0.750" in page.words
    bars, reliable = (charts[title] for title in list(charts)[:2])
    assert bars["ticks"] == list(CLASSES)
    assert [series["values"] for series in bars["series"]][:1] == [[1.0, 1.0, 1.0]]
    assert reliable["series"][1]["values"] == [None] * 8 + [pytest.approx(2 / 3, abs=1e-4), None]


def test_several_folds_say_which_one_is_shown(run: RunReport, tmp_path: Path) -> None:
    models = [dataclasses.replace(one, label=f"{one.name} fold 2") for one in run.models]
    params = {**run.params, "chunk": {**run.params["chunk"], "fold": [2, 3]}}
    words = write(dataclasses.replace(run, models=models, params=params), tmp_path / "report").words
    assert "conv alstm fold 2" in words
    assert "fold 2, 3" in words


def test_test_videos_of_training_groups_are_counted(run: RunReport, tmp_path: Path) -> None:
    assert "whose group is also in the training split" not in write(run, tmp_path / "none").words
    dataset = {**run.summary["dataset"], "cut": {"leaked": 184}}
    leaking = dataclasses.replace(run, summary={**run.summary, "dataset": dataset})
    assert "whose group is also in the training split 184" in write(leaking, tmp_path / "report").words


def test_a_search_shows_what_mattered_and_leaves_a_parameter_file(run: RunReport, tmp_path: Path) -> None:
    counts = {"trials": 30, "pruned": 11, "failed": 0, "default_val_clip_accuracy": 0.5, "best_val_clip_accuracy": 0.75}
    best = {"dropout": 0.1234, "units": 64, "scorer": "local"}
    sweep = SweepReport("alstm", counts, best, {"importance": {"dropout": 0.8, "units": 0.2}, "trials": 30, "note": None})
    page = write(dataclasses.replace(run, sweeps=[sweep], best_params={"train": {"dropout": 0.1234}}), tmp_path / "report")
    for expected in (
        "11 of them pruned",
        "50.0 % with the default hyper-parameters",
        "75.0 % with the best",
        "dropout 80.0 % 0.123",
        "train: dropout: 0.1234",
    ):
        assert expected in page.words
    assert {"href": "best.yaml"} in page.all("a")
    assert (tmp_path / "report/best.yaml").read_text() == "train:\n  dropout: 0.1234\n"


def test_classes_are_listed_as_they_are_called(run: RunReport, tmp_path: Path) -> None:
    for model in run.models:
        names = {"run": "nan", "sit": "007", EVIL: "None"}
        predictions = pd.read_parquet(model.evaluation / "predictions.parquet")
        predictions = predictions.replace({"class_name": names, "predicted": names})
        predictions.to_parquet(model.evaluation / "predictions.parquet")
        (model.evaluation / "per_class.csv").write_text("class,clips,recall\nnan,4,0.515\n007,0,\nNone,2,1\n")
    page = write(run, tmp_path / "report")
    assert "nan 4 51.5 %" in page.words
    assert "007 0 \u2013" in page.words
    assert page.data["matrices"][0]["classes"] == ["nan", "007", "None"]


def test_dataset_protocol_stages_parameters_tools_and_ids_are_told(run: RunReport, tmp_path: Path) -> None:
    words = write(run, tmp_path / "report").words
    for expected in (
        "99 videos",
        "official protocol, fold 1",
        "train miss 2 min 5 s",
        "fetch hit 0.4 s",
        "percentile: 80",
        "torch 2.15.0",
        "short padded 7",
        "train 60, test 39",
        "MLflow run abc123",
        "conv alstm run-of-conv_alstm",
    ):
        assert expected in words


def test_several_training_runs_have_their_own_mlflow_runs(run: RunReport, tmp_path: Path) -> None:
    runs = [{"fold": fold, "seed": 0, "mlflow_run_id": f"run-{fold}"} for fold in (1, 2)]
    summary = {**run.summary, "models": {"conv_alstm": {"mlflow_run_id": "run-1", "training_runs": runs}}}
    assert "conv alstm fold 2 seed 0 run-2" in write(dataclasses.replace(run, summary=summary), tmp_path / "report").words


def test_nothing_is_fetched_from_elsewhere(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    addresses = [pair[1] for _, pairs in page.elements for pair in pairs.items() if pair[0] in ("src", "href", "poster")]
    assert len(addresses) > 6
    assert all(address is not None and address.startswith(("data:", "#")) for address in addresses)


def test_names_of_users_stay_text(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    executable = [script for script in page.all("script") if "type" not in script]
    assert len(executable) == 1
    assert not page.all("b")
    assert " ".join(EVIL.split()) in page.words
    assert EVIL in page.data["matrices"][0]["classes"]
    assert "A run & its maps" in page.text


def test_quarantined_videos_have_their_reason(run: RunReport, tmp_path: Path) -> None:
    assert "moov atom is missing" in write(run, tmp_path / "report").text
    empty = dataclasses.replace(run, quarantined=run.quarantined.head(0))
    assert "could not be decoded" not in write(empty, tmp_path / "empty").text


def test_pictures_speak_and_ids_are_unique(run: RunReport, tmp_path: Path) -> None:
    page = write(run, tmp_path / "report")
    assert all(canvas["aria-label"] for canvas in page.all("canvas"))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    targets = {link["href"] for link in page.all("a")}
    assert targets <= {f"#{name}" for name in ids}


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_hardly_any_history_is_no_error(run: RunReport, tmp_path: Path, num_epochs: int) -> None:
    models = [dataclasses.replace(one, history=one.history[:num_epochs]) for one in run.models]
    page = write(dataclasses.replace(run, models=models), tmp_path / "report")
    assert len(page.data["charts"]) == 2 + 6 * num_epochs


def test_equal_runs_give_equal_pages(run: RunReport, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(run, tmp_path / name)
    assert (tmp_path / "one/index.html").read_bytes() == (tmp_path / "two/index.html").read_bytes()


def test_counts(run: RunReport, tmp_path: Path) -> None:
    counts = write_report(tmp_path, run)
    assert counts == {"clips": 6, "page_bytes": (tmp_path / "index.html").stat().st_size}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_unknown_number_is_a_dash() -> None:
    assert percent(None) == percent(float("nan")) == decimal(None) == "\u2013"
