"""Bad input ends in one clear line that says what is wrong, where, and how to mend it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline_lib.artifacts.workspace_lock import hold_workspace
from pipeline_lib.errors import UserError
from tests.e2e.conftest import Pipeline

PROJECT = Path(__file__).parents[2]


def har(*arguments, **environment):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=PROJECT, env=os.environ | environment, check=False
    )


def fails_with(pipeline: Pipeline, *words: str, settings: tuple[str, ...] = (), until: str | None = None) -> None:
    with pytest.raises(UserError) as error:
        pipeline.run(*settings, until=until)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert all(word in message for word in words), message


def test_the_command_prints_one_line_and_fails(pipeline, prefect_server):
    pipeline.collection = pipeline.folder / "nowhere"
    result = har("run", pipeline.write_params(), "--until", "fetch")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("har: ")
    assert "nowhere" in result.stderr


def test_an_unknown_parameter(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("fetch: {kind: hmdb51}\ntrain: {epoch: 3}")
    result = har("run", path)
    assert result.returncode == 1
    assert "unknown key train.epoch" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_stage():
    result = har("run", "params/demo.yaml", "--until", "trian")
    assert result.returncode == 2
    assert "trian" in result.stderr
    assert "evaluate" in result.stderr


def test_a_missing_folder(pipeline):
    pipeline.collection = pipeline.folder / "nowhere"
    fails_with(pipeline, "nowhere", "no such")


def test_an_empty_class(copy_of_finished):
    pipeline = copy_of_finished()
    (pipeline.collection / "videos" / "run").mkdir()
    fails_with(pipeline, "run", "no video")


def test_a_class_without_training_videos(copy_of_finished):
    pipeline = copy_of_finished()
    split_file = pipeline.collection / "splits" / "wave_test_split1.txt"
    split_file.write_text(split_file.read_text().replace(" 1 ", " 0 "))
    fails_with(pipeline, "wave", "train")


def test_a_malformed_split_line(copy_of_finished):
    pipeline = copy_of_finished()
    split_file = pipeline.collection / "splits" / "wave_test_split1.txt"
    split_file.write_text(split_file.read_text() + "only_a_name.mp4\n")
    fails_with(pipeline, "wave_test_split1.txt", "only_a_name.mp4")


def test_a_video_that_no_split_file_lists(copy_of_finished):
    pipeline = copy_of_finished()
    split_file = pipeline.collection / "splits" / "wave_test_split1.txt"
    lines = split_file.read_text().splitlines(keepends=True)
    split_file.write_text("".join(lines[1:]))
    fails_with(pipeline, "wave", lines[0].split(" 1")[0])


def test_more_quarantined_than_allowed_and_as_many_as_allowed(copy_of_finished):
    pipeline = copy_of_finished()
    video = sorted((pipeline.collection / "videos" / "wave").iterdir())[0]
    video.write_bytes(b"this is no video")
    fails_with(pipeline, "subsample.max_quarantined", "1 of 16", video.name, until="subsample")
    summary = pipeline.run("subsample.max_quarantined=0.1", "train.models=[mean_pool]")
    assert summary["dataset"]["quarantined"] == 1
    assert sum(summary["dataset"]["cut"]["videos"].values()) == 15


def test_weights_that_do_not_fit_the_backbone(finished, tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    fails_with(finished[0], "weights.pth", "vgg_small", settings=(f"features.weights={tmp_path / 'weights.pth'}",))


def test_weights_that_are_not_there(finished):
    fails_with(finished[0], "features.weights", "nothing.pth", settings=("features.weights=nothing.pth",))


def test_an_unknown_backbone(finished):
    fails_with(finished[0], "vgg_17", settings=("features.backbone=vgg_17",))


def test_a_mistake_in_a_stream_is_found_before_the_collection_is_fetched(pipeline):
    pipeline.collection = pipeline.folder / "nowhere"
    fails_with(pipeline, "stream rgb: features.backbone = vgg_17", settings=("features.backbone=vgg_17",))
    fails_with(pipeline, "stream rgb: features.weights", settings=("features.weights=nothing.pth",))
    fails_with(pipeline, "nowhere", settings=("features.weights=nothing.pth",), until="chunk")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_and_absent(finished):
    fails_with(finished[0], "features.device", "cuda", settings=("features.device=cuda", "features.seed=1"))


def test_two_runs_at_once_in_one_workspace(pipeline):
    with hold_workspace(pipeline.workspace):
        fails_with(pipeline, str(pipeline.workspace), f"process {os.getpid()}", "workspace=")


def test_a_tracking_server_that_does_not_answer(pipeline):
    fails_with(pipeline, "tracking.uri", "http://127.0.0.1:9", settings=("tracking.uri=http://127.0.0.1:9",))


def test_a_port_taken_by_another_program(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = har("up", "--workspace", tmp_path, "--prefect-port", port)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"har: har up: port {port}, wanted for prefect, is taken by another program; "
        "stop it, or choose another port with --prefect-port"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a full disk needs root to be made")
def test_a_full_disk(pipeline, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    try:
        path = pipeline.write_params()
        values = yaml.safe_load(path.read_text()) | {"workspace": str(disk / "workspace")}
        path.write_text(yaml.safe_dump(values))
        result = har("run", path, "--until", "subsample", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")
        assert result.returncode == 1
        assert "No space left" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    finally:
        subprocess.run(["umount", disk], check=True)
