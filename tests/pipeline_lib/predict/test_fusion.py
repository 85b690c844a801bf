"""A fusion predicts what its members' probabilities say together, and lies in one folder with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.fusion_fitting import VideoScores, fit_fusion
from pipeline_lib.params import FusionParams
from pipeline_lib.predict.bundle import InputSpec, ModelBundle
from pipeline_lib.predict.fusion import FusionBundle, FusionSpec, fuse_predictions, is_fusion
from pipeline_lib.predict.prediction import ModelPrediction
from pipeline_lib.training.fusion import FittedFusion

NAMES = ("conv_alstm", "conv_alstm@flow")
WEIGHTS = FittedFusion(method="weights", weights=(0.25, 0.75))
SPEC = FusionSpec(name="two_stream", members=NAMES, fitted=WEIGHTS)
CLASSES = ("jump", "sit", "wave")


def draw_prediction(seed: int, *, frames: int = 5, attends: bool = True) -> ModelPrediction:
    rng = np.random.default_rng(seed)
    maps_TKK = rng.dirichlet(np.ones(4), frames).reshape(frames, 2, 2).astype(np.float32) if attends else None
    return ModelPrediction(CLASSES, rng.dirichlet(np.ones(3), frames).astype(np.float32), maps_TKK)


@pytest.fixture
def predictions():
    return {name: draw_prediction(seed) for seed, name in enumerate((*NAMES, "lrcn"))}


@pytest.fixture
def bundle(tmp_path):
    """Return a bundle whose members are stand-ins: nothing opens their files."""
    members = []
    for number, name in enumerate(NAMES):
        checkpoint, backbone = (tmp_path / f"{number}_{kind}" for kind in ("checkpoint", "backbone"))
        for path in (checkpoint, backbone):
            path.write_text(path.name)
        members.append(ModelBundle(InputSpec(name=name, fps=15.0, crf=16, frames=6), checkpoint, (backbone,)))
    return FusionBundle.of_members("two_stream", WEIGHTS, members)


def test_frames_are_the_weighted_mean_of_the_members(predictions):
    fused = fuse_predictions(SPEC, predictions)
    expected_TC = 0.25 * predictions[NAMES[0]].probability_TC + 0.75 * predictions[NAMES[1]].probability_TC
    np.testing.assert_allclose(fused.probability_TC, expected_TC, rtol=1e-6)
    assert fused.label_by_mean == CLASSES[expected_TC.mean(axis=0).argmax()]
    frame, label = 2, expected_TC[2].argmax()
    shares = [
        0.25 * predictions[NAMES[0]].probability_TC[frame, label],
        0.75 * predictions[NAMES[1]].probability_TC[frame, label],
    ]
    maps = [predictions[name].attention_TKK[frame] for name in NAMES]
    np.testing.assert_allclose(fused.attention_TKK[frame], np.average(maps, axis=0, weights=shares), rtol=1e-5)


def test_an_svm_gives_all_frames_the_decision_of_the_video(predictions):
    rng = np.random.default_rng(0)
    scores = VideoScores(rng.dirichlet(np.ones(3), (2, 30)), np.arange(30) % 3, np.arange(30))
    fitted = fit_fusion(FusionParams(members=NAMES, method="svm"), scores)
    fused = fuse_predictions(SPEC.model_copy(update={"fitted": fitted}), predictions)
    units = [mean_C / np.linalg.norm(mean_C) for mean_C in (predictions[name].probability_TC.mean(axis=0) for name in NAMES)]
    assert set(fused.frame_labels) == {CLASSES[fitted.svm.decide(np.concatenate(units)[None])[0].argmax()]} == {fused.label}


def test_members_without_attention_leave_the_others_map(predictions):
    blind = predictions | {NAMES[0]: draw_prediction(0, attends=False)}
    np.testing.assert_allclose(fuse_predictions(SPEC, blind).attention_TKK, blind[NAMES[1]].attention_TKK, rtol=1e-6)
    assert fuse_predictions(SPEC, dict.fromkeys(NAMES, blind[NAMES[0]])).attention_TKK is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({NAMES[1]: None}, "conv_alstm@flow, which did not predict"),
        ({NAMES[1]: draw_prediction(1, frames=4)}, "other classes or frames"),
        ({NAMES[1]: replace(draw_prediction(1), classes=("a", "b", "c"))}, "other classes or frames"),
    ],
)
def test_members_that_do_not_fit_are_refused(predictions, changes, words):
    changed = {name: value for name, value in (predictions | changes).items() if value}
    with pytest.raises(UserError, match=words):
        fuse_predictions(SPEC, changed)


def test_a_folder_gives_the_same_fusion(bundle, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    assert not is_fusion(folder)
    bundle.save(folder)
    again = FusionBundle.of_folder(folder)
    assert is_fusion(folder)
    assert again.spec == bundle.spec
    assert again.digest == bundle.digest
    assert [member.checkpoint.read_text() for member in again.members] == ["0_checkpoint", "1_checkpoint"]
    other = FusionBundle.of_members("two_stream", FittedFusion(method="mean", weights=(0.5, 0.5)), bundle.members)
    assert other.digest != bundle.digest


def test_damaged_folders_are_one_line(bundle, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no fusion to predict with \(no fusion.json\)"):
        FusionBundle.of_folder(folder)
    bundle.save(folder)
    (folder / "member_1" / "predictor.json").write_text(bundle.members[0].input_spec.model_dump_json())
    with pytest.raises(UserError, match=r"member_1: holds conv_alstm, but two_stream needs conv_alstm@flow"):
        FusionBundle.of_folder(folder)
    (folder / "fusion.json").write_text("{}")
    with pytest.raises(UserError, match="another version"):
        FusionBundle.of_folder(folder)
