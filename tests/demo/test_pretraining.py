"""The demo's backbone: the pictures that it is pretrained on, and the file that the features stage reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from demo.__main__ import BACKBONE, main
from demo.collection import CollectionParams
from demo.figures import VEST
from demo.pictures import POSES, draw_pictures
from demo.pretraining import NAME, SIDE, pretrain_backbone
from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.params import load_params

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


def test_a_vest_is_in_the_pictures_that_say_so() -> None:
    pictures = draw_pictures(24, SIDE, seed=1)
    assert pictures.images_NHWC.shape == (24, SIDE, SIDE, 3)
    assert set(pictures.pose_N) <= set(range(len(POSES)))
    distance_NHW = np.abs(pictures.images_NHWC.astype(int) - VEST).max(axis=3)
    assert ((distance_NHW < 40).sum(axis=(1, 2)) > 10).tolist() == pictures.has_vest_N.astype(bool).tolist()


def test_poses_of_a_pair_are_one() -> None:
    assert {"climb", "sit"} <= set(POSES)
    assert not {"climb_down", "stand"} & set(POSES)


def test_the_weights_fit_the_network_of_the_demo_and_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.pretraining.EPOCHS", 1)
    path = tmp_path / "backbone.safetensors"
    assert pretrain_backbone(path, num_pictures=48, seed=0)
    assert not pretrain_backbone(path, num_pictures=48, seed=0)
    assert pretrain_backbone(path, num_pictures=48, seed=1)
    trained, random = (build_backbone(NAME, weights, grid=7, seed=1) for weights in (str(path), "random"))
    image = torch.rand(1, 3, SIDE, SIDE)
    assert not torch.allclose(trained(image), random(image))
    path.write_bytes(b"damaged")
    assert pretrain_backbone(path, num_pictures=48, seed=1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_equal_weights_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.pretraining.EPOCHS", 0)
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        pretrain_backbone(path, num_pictures=1, seed=0)
    assert len({path.read_bytes() for path in paths}) == 1


def test_the_demo_reads_the_file_where_it_is_written() -> None:
    params = load_params(PROJECT / "params" / "demo.yaml")
    rgb = params.features.all_streams["rgb"]
    assert (rgb.backbone, rgb.image_size) == (NAME, SIDE)
    assert Path(rgb.weights) == Path(str(params.fetch.videos)).parent / BACKBONE


def test_the_backbone_is_made_beside_a_collection_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(folder: Path, params: CollectionParams) -> bool:
        return False

    monkeypatch.setattr("demo.__main__.make_collection", nothing)
    monkeypatch.setattr("demo.pretraining.EPOCHS", 1)
    for word in ("pretrained in", "already pretrained"):
        main([str(tmp_path), "--pictures", "32"])
        assert f"{tmp_path / BACKBONE}: {word}" in capsys.readouterr().out
