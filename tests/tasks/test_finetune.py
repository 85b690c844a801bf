from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.params import ChunkParams, FinetuneParams, StreamParams
from tasks import features, finetune
from tasks.stage import Context, Ref

MADE = Ref(stage="chunk", key="0", content_key="0", counts={}, seconds=0, made=True)


def test_weights_that_do_not_exist_are_told_with_their_stream(tmp_path: Path) -> None:
    context = Context(workspace=Workspace(folder=tmp_path))
    motion = StreamParams(input="flow", weights="nowhere.pth")
    with pytest.raises(ValueError, match=r"^stream motion: features\.weights: .*nowhere\.pth does not exist"):
        finetune.recipe(context, "motion", MADE, [MADE], FinetuneParams(), motion)
    with pytest.raises(ValueError, match=r"^stream motion: features\.weights: .*nowhere\.pth does not exist"):
        features.recipes(context, "shard", MADE, {}, {"rgb": StreamParams(), "motion": motion}, ChunkParams(), 15.0)
