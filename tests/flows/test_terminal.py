from __future__ import annotations

from flows import terminal
from flows.run import StageResult
from tasks.stage import Ref


def ref(**counts):
    return Ref(stage="features", key="k", content_key="c", counts=counts, seconds=2.0, made=True)


def test_a_stage_is_one_line_with_its_counts_summed_over_shards(capsys):
    terminal.say_stage("features", StageResult([ref(clips=3, frames=1000), ref(clips=4, frames=500)]))
    assert capsys.readouterr().out == "features   made               4.0 s   7 clips, 1,500 frames\n"


def test_cache_states():
    made, found = ref(), ref().model_copy(update={"made": False})
    results = [StageResult(refs) for refs in ([made, made], [made, found], [found, found])]
    assert [result.cache for result in results] == ["miss", "partial", "hit"]
    assert [result.seconds for result in results] == [4.0, 2.0, 0.0]


def test_the_summary_shows_models_beside_chance(capsys):
    scores = {"frame_accuracy": 0.5, "clip_accuracy": 0.625, "video_accuracy": 0.75, "chance": 0.25, "majority_class": 0.3}
    pointing = {"pointing": {"accuracy": 0.9, "chance": 0.1, "num_frames": 3}}
    summary = {"models": {"alstm": scores | pointing}, "report": None, "mlflow": {"tracking_uri": "sqlite:///x"}}
    terminal.say_summary(summary)
    out = capsys.readouterr().out
    assert all(text in out for text in ("alstm", "62.5 %", "90.0 %", "chance", "25.0 %", "10.0 %", "commonest", "30.0 %"))


def test_a_download_shows_its_rate():
    assert terminal._megabytes(5e6, 2e9, 1.5e6) == "5 of 2,000 MB, 1.5 MB/s"
    assert terminal._megabytes(5e6, None, None) == "5 MB"
