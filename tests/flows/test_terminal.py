from __future__ import annotations

from pathlib import Path

from flows import terminal
from flows.execution import StageResult
from pipeline_lib.report.overview import HEADINGS, WITH_INTERVAL, pairs_overview
from tasks.mlflow.tracking import sqlite_uri
from tasks.stage import Ref


def ref(stage="features", **counts):
    return Ref(stage=stage, key="k", content_key="c", counts=counts, seconds=2.0, made=True)


def test_a_stage_is_one_line_with_its_counts_summed_over_shards(capsys):
    terminal.say_stage("features", StageResult([ref(clips=3, frames=1000), ref(clips=4, frames=500)]))
    assert capsys.readouterr().out == "features   computed           4.0 s   7 clips, 1,500 frames\n"


def test_the_videos_of_all_folds_are_the_same_and_counted_once(capsys):
    folds = [ref("chunk", classes=5, videos={"train": train, "test": 193 - train}, clips=541) for train in (100, 120)]
    terminal.say_stage("chunk", StageResult(folds))
    assert capsys.readouterr().out == "chunk      computed           4.0 s   5 classes, 193 videos, 541 clips\n"


def test_what_a_stage_was_busy_with_is_told_of_what_was_made(capsys):
    made = [ref(clips=1, busy_seconds={"network": 1.5, "writing": 0.5, "all": 2.0}) for _ in range(2)]
    found = ref(clips=1, busy_seconds={"network": 9.0, "writing": 9.0, "all": 9.0}).model_copy(update={"made": False})
    terminal.say_stage("features", StageResult([*made, found]))
    assert capsys.readouterr().out == "features   partly cached      4.0 s   3 clips (network 75%, writing 25%)\n"


def test_cache_states():
    made, found = ref(), ref().model_copy(update={"made": False})
    results = [StageResult(refs) for refs in ([made, made], [made, found], [found, found])]
    assert [result.cache for result in results] == ["miss", "partial", "hit"]
    assert [result.seconds for result in results] == [4.0, 2.0, 0.0]


def test_the_summary_shows_models_and_what_needs_none(capsys):
    mean = {"video_accuracy": 0.75, "chance": 0.25, "majority_class": 0.3, "majority_class_video": 0.3}
    mean |= {"num_videos": 8, "num_groups": 4}
    row = {"num_training_runs": 1, "mean": mean, "standard_deviation": {}, "intervals": {"video_accuracy": [0.5, 1.0]}}
    pair = {"first": "alstm", "second": "lrcn", "difference": 0.1, "p_holm": 0.5}
    results = {"models": [row | {"model": "alstm"}, row | {"model": "lrcn"}], "controls": {}, "pairs": [pair]}
    terminal.say_summary(
        {"dataset": {}, "models": {"alstm": {}}, "results": results, "report": None, "mlflow": {"tracking_uri": "sqlite:///x"}},
        Path(),
    )
    out = capsys.readouterr().out
    assert all(text in out for text in ("alstm", "75.0 [50, 100]", "majority class", "chance", "25.0", "+10.0 [0.5]"))


def test_more_paired_tests_than_fit_are_told_by_those_that_are_significant(capsys):
    names = [f"conv_alstm@stream{number}" for number in range(14)]
    pairs = [
        {"first": first, "second": second, "difference": 0.25, "p_holm": 0.003 if second == names[-1] else 1.0}
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    ]
    terminal._say_pairs(pairs_overview({"pairs": pairs}), pairs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "91 paired tests of video accuracy, 13 significant after Holm; the report has all"
    assert lines[2] == "  conv_alstm@stream0 \u2212 conv_alstm@stream13: +25.0 pp [0.003]"
    assert len(lines) == 2 + 13


def test_the_widest_results_are_shown_whole(capsys):
    mean = dict.fromkeys(HEADINGS, 1.0) | {"num_videos": 8, "num_groups": 4, "pointing_accuracy": 0.574}
    mean |= {"chance": 0.1, "majority_class": 0.2, "majority_class_video": 0.2}
    ends = {name: [0.62, 1.0] for name in WITH_INTERVAL}
    row = {"num_training_runs": 1, "mean": mean, "standard_deviation": {}, "intervals": ends}
    results = {"models": [row | {"model": "logistic_regression"}], "controls": {}, "pairs": []}
    terminal.say_summary({"dataset": {}, "models": {}, "results": results, "mlflow": {"tracking_uri": "sqlite:///x"}}, Path())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "logistic regression" in line]
    assert line.count("100.0 [62, 100]") == len(WITH_INTERVAL)
    assert line.split()[-1] == "57.4"


def test_a_run_that_ended_before_training_prints_no_table(capsys):
    terminal.say_summary(
        {
            "dataset": {"cut": {"leaked": 184}},
            "models": {},
            "results": {},
            "report": None,
            "mlflow": {"tracking_uri": "sqlite:///x"},
        },
        Path(),
    )
    assert capsys.readouterr().out.startswith("leak        184 test videos")


def test_how_records_are_shown_is_told_where_they_are(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder, hint in (("workspace", "  (har up shows"), ("my cache", f"  (har up --workspace '{tmp_path}/my cache' shows")):
        uri = sqlite_uri(tmp_path / folder)
        terminal.say_summary({"dataset": {}, "mlflow": {"tracking_uri": uri}}, tmp_path / folder)
        assert capsys.readouterr().out == f"MLflow      {uri}{hint} it in a browser)\n"
    terminal.say_summary({"dataset": {}, "mlflow": {"tracking_uri": "http://server:5000"}}, tmp_path / "workspace")
    assert capsys.readouterr().out == "MLflow      http://server:5000\n"


def test_a_download_shows_its_rate():
    assert terminal._megabytes(5e6, 2e9, 1.5e6) == "5 of 2,000 MB, 1.5 MB/s"
    assert terminal._megabytes(5e6, None, None) == "5 MB"
