"""`har verify` and `har gc` on what real runs leave."""

from __future__ import annotations

import os

from flows.gc import collect
from flows.verify import verify
from pipeline_lib.artifacts.workspace import Workspace
from tasks.mlflow.loading import DEFAULT, open_predictor
from tests.e2e.conftest import TINY
from tests.e2e.test_caching import HIT

FUTURE = -3600.0
"""An age that everything has."""


def test_silent_damage_is_found_and_the_next_run_mends_it(copy_of_finished, capsys):
    pipeline = copy_of_finished()
    assert verify(Workspace(folder=pipeline.workspace)) == 0
    file = max(pipeline.workspace.glob("artifacts/features/*/features.h5"), key=lambda path: path.stat().st_size)
    stat = file.stat()
    with file.open("r+b") as content:
        content.seek(stat.st_size // 2)
        byte = content.read(1)
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte[0] ^ 0xFF]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify(Workspace(folder=pipeline.workspace)) == 1
    assert f"DAMAGED  features/{file.parent.name}: features.h5" in capsys.readouterr().out
    assert pipeline.caches() == HIT | {"features": "partial"}
    assert verify(Workspace(folder=pipeline.workspace)) == 0


def test_gc_keeps_what_the_newest_run_used_and_never_what_is_registered(pipeline):
    pipeline.params = {"train": TINY["train"] | {"models": ["alstm", "mean_pool"]}}
    train = {"subsample": "hit", "chunk": "hit", "fetch": "hit", "features": "hit", "train": "hit"}
    pipeline.run(until="train")
    pipeline.run("train.learning_rate=0.001", until="train")
    num_trained = len(list(pipeline.workspace.glob("artifacts/train/*")))
    collect(Workspace(folder=pipeline.workspace), FUTURE, None, 1, delete=True)
    assert len(list(pipeline.workspace.glob("artifacts/train/*"))) == num_trained / 2
    assert pipeline.caches("train.learning_rate=0.001", until="train") == train
    collect(Workspace(folder=pipeline.workspace), FUTURE, None, 0, delete=True)
    assert not list(pipeline.workspace.glob("artifacts/*/*"))
    assert open_predictor(DEFAULT, Workspace(folder=pipeline.workspace)).model
    assert pipeline.caches(until="train") == dict.fromkeys(train, "miss")
