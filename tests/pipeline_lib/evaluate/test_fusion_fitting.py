"""Score fusion: the arithmetic by hand, and nothing of the test split in what is fitted."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from pipeline_lib.evaluate.fusion_fitting import INVERSE_PENALTIES, VideoScores, fit_fusion, fit_weights
from pipeline_lib.params import FusionParams
from pipeline_lib.training.fusion import FittedFusion, fuse, fuse_attention, stack_scores

# M members, N clips, T frames of a clip, V videos, C classes

MEMBERS = ("alstm", "alstm@flow")
MEAN = FusionParams(members=MEMBERS)
WEIGHTS = FusionParams(members=MEMBERS, method="weights")
SVM = FusionParams(members=MEMBERS, method="svm")


def draw(num_videos: int, num_classes: int, margins: tuple[float, ...], seed: int = 0) -> VideoScores:
    """Return members whose logits favour the true class by their margin."""
    rng = np.random.default_rng(seed)
    label_V = np.arange(num_videos) % num_classes
    logit_MVC = rng.normal(0, 1, (len(margins), num_videos, num_classes))
    logit_MVC[:, np.arange(num_videos), label_V] += np.array(margins)[:, None]
    exp_MVC = np.exp(logit_MVC)
    return VideoScores(exp_MVC / exp_MVC.sum(axis=2, keepdims=True), label_V, np.arange(num_videos) // 3)


def fuse_videos(fitted: FittedFusion, probability_MVC: np.ndarray) -> np.ndarray:
    """Fuse videos of one clip of one frame; return probability_VC."""
    num_videos = probability_MVC.shape[1]
    members = [member_VC[:, None] for member_VC in probability_MVC]
    return fuse(fitted, members, np.ones(num_videos, dtype=int), np.arange(num_videos))[:, 0]


def accuracy(probability_VC: np.ndarray, label_V: np.ndarray) -> float:
    return float((probability_VC.argmax(axis=1) == label_V).mean())


def test_the_mean_is_that_of_the_frames_probabilities():
    first_NTC, second_NTC = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 5)).astype(np.float32)
    fused_NTC = fuse(fit_fusion(MEAN, None), [first_NTC, second_NTC], np.array([5, 2, 5]), np.array([0, 0, 1]))
    np.testing.assert_allclose(fused_NTC, (first_NTC + second_NTC) / 2, rtol=1e-6)


def test_fixed_weights_need_no_sum_and_no_validation():
    params = FusionParams(members=MEMBERS, method="weights", weights=(1, 2))
    first_NTC, second_NTC = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 5)).astype(np.float32)
    fused_NTC = fuse(fit_fusion(params, None), [first_NTC, second_NTC], np.array([5, 2, 5]), np.array([0, 0, 1]))
    np.testing.assert_allclose(fused_NTC, (first_NTC + 2 * second_NTC) / 3, rtol=1e-6)


def test_complementary_errors_are_mended_by_the_mean():
    """Each member knows one half of the videos surely and guesses wrongly, without confidence, on the other."""
    sure, wrong = [0.9, 0.05, 0.05], [0.3, 0.4, 0.3]
    members_MVC = np.array([[sure, sure, wrong, wrong], [wrong, wrong, sure, sure]])
    label_V = np.zeros(4, dtype=int)
    assert [accuracy(member_VC, label_V) for member_VC in members_MVC] == [0.5, 0.5]
    assert accuracy(fuse_videos(fit_fusion(MEAN, None), members_MVC), label_V) == 1


@pytest.mark.parametrize("method", ["mean", "weights"])
def test_a_model_fused_with_itself_is_the_model(method):
    val = draw(30, 3, (1.0,))
    twice = VideoScores(np.repeat(val.probability_MVC, 2, axis=0), val.label_V, val.group_V)
    fitted = fit_fusion(FusionParams(members=MEMBERS, method=method), twice)
    one_NTC = val.probability_MVC[0][:, None].astype(np.float32)
    np.testing.assert_array_equal(fuse(fitted, [one_NTC, one_NTC], np.ones(30, dtype=int), np.arange(30)), one_NTC)
    maps_NTKK = np.random.default_rng(0).dirichlet(np.ones(4), (30, 1)).reshape(30, 1, 2, 2).astype(np.float32)
    fused_NTKK = fuse_attention(fitted.weights, [one_NTC] * 2, [maps_NTKK] * 2, one_NTC.argmax(axis=2))
    np.testing.assert_allclose(fused_NTKK, maps_NTKK, rtol=1e-6)


def test_fitted_weights_are_at_the_maximum_of_the_likelihood():
    val = draw(200, 5, (0.8, 1.6))
    weight_M = fit_weights(val)

    def likelihood(first: float) -> float:
        mixture_VC = first * val.probability_MVC[0] + (1 - first) * val.probability_MVC[1]
        return float(np.log(mixture_VC[np.arange(200), val.label_V]).mean())

    assert weight_M.sum() == pytest.approx(1)
    assert 0.01 < weight_M[0] < 0.5
    assert likelihood(weight_M[0]) >= max(likelihood(first) for first in np.linspace(0, 1, 1001))


def test_a_member_that_only_guesses_gets_no_weight():
    val = draw(200, 5, (3.0,))
    guess_VC = np.roll(val.probability_MVC[0], 1, axis=1)
    assert fit_weights(VideoScores(np.stack([val.probability_MVC[0], guess_VC]), val.label_V, val.group_V))[1] < 0.05


def test_an_unlikely_class_does_not_break_the_weights():
    certain_VC = np.array([[1.0, 0.0], [1.0, 0.0]])
    weight_M = fit_weights(VideoScores(np.stack([certain_VC, certain_VC]), np.array([1, 0]), np.arange(2)))
    np.testing.assert_allclose(weight_M, 0.5)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_svm_is_scikit_learns(num_classes):
    val, test = draw(60, num_classes, (0.5, 1.5)), draw(40, num_classes, (0.5, 1.5), seed=1)
    fitted = fit_fusion(SVM, val)
    by_hand_VS = np.hstack([member_VC / np.sqrt((member_VC**2).sum(axis=1))[:, None] for member_VC in val.probability_MVC])
    np.testing.assert_allclose(stack_scores(val.probability_MVC), by_hand_VS)
    expected = LinearSVC(C=fitted.svm.inverse_penalty, dual=False).fit(by_hand_VS, val.label_V)
    test_VS = stack_scores(test.probability_MVC)
    assert fitted.svm.inverse_penalty in INVERSE_PENALTIES
    np.testing.assert_array_equal(fuse_videos(fitted, test.probability_MVC).argmax(axis=1), expected.predict(test_VS))
    if num_classes > 2:
        np.testing.assert_allclose(fitted.svm.decide(test_VS), expected.decision_function(test_VS), atol=1e-6)
    else:
        np.testing.assert_allclose(fitted.svm.decide(test_VS)[:, 1], expected.decision_function(test_VS), atol=1e-6)


def test_the_svm_learns_which_member_knows_which_class():
    """The first member confuses classes 2 and 3 and is always sure; the second confuses 0 and 1."""
    rng = np.random.default_rng(0)

    def members(label_V: np.ndarray) -> np.ndarray:
        blind = [np.array([0, 1, 2, 2]), np.array([0, 0, 2, 3])]
        seen_MV = np.stack([blind_C[label_V] for blind_C in blind])
        logit_MVC = rng.normal(0, 0.2, (2, len(label_V), 4)) + 3 * np.eye(4)[seen_MV] * np.array([2.0, 1.0])[:, None, None]
        exp_MVC = np.exp(logit_MVC)
        return exp_MVC / exp_MVC.sum(axis=2, keepdims=True)

    val_V, test_V = np.arange(80) % 4, np.arange(200) % 4
    test_MVC = members(test_V)
    svm = fit_fusion(SVM, VideoScores(members(val_V), val_V, np.arange(80) // 2))
    assert accuracy(fuse_videos(svm, test_MVC), test_V) > 0.98
    assert accuracy(fuse_videos(fit_fusion(MEAN, None), test_MVC), test_V) < 0.8


def test_the_svm_decides_once_a_video():
    val = draw(60, 3, (1.0, 2.0))
    first_NTC, second_NTC = np.random.default_rng(3).dirichlet(np.ones(3), (2, 3, 4)).astype(np.float32)
    valid_N, video_N = np.array([4, 1, 3]), np.array([0, 0, 1])
    fitted = fit_fusion(SVM, val)
    fused_NTC = fuse(fitted, [first_NTC, second_NTC], valid_N, video_N)
    pooled_TC = [np.concatenate([member[0], member[1, :1]]).mean(axis=0) for member in (first_NTC, second_NTC)]
    decision_C = fitted.svm.decide(stack_scores(np.stack(pooled_TC)[:, None].astype(np.float64)))[0]
    np.testing.assert_allclose(
        fused_NTC[:2].reshape(-1, 3), np.tile(np.exp(decision_C) / np.exp(decision_C).sum(), (8, 1)), rtol=1e-5
    )
    np.testing.assert_allclose(fused_NTC.sum(axis=2), 1, rtol=1e-6)


def test_an_svm_without_all_classes_falls_back_to_the_mean_and_says_so():
    val = draw(60, 4, (1.0, 2.0))
    known_V = val.label_V != 3
    fitted = fit_fusion(SVM, VideoScores(val.probability_MVC[:, known_V], val.label_V[known_V], val.group_V[known_V]))
    assert (fitted.method, fitted.weights, fitted.svm) == ("mean", (0.5, 0.5), None)
    assert "1 of 4 classes" in fitted.note
    assert "no validation videos" in fit_fusion(WEIGHTS, None).note


def test_one_group_is_too_few_to_choose_a_penalty():
    val = draw(30, 3, (1.0, 2.0))
    assert fit_fusion(SVM, VideoScores(val.probability_MVC, val.label_V, np.zeros(30))).svm.inverse_penalty == 0.1


@pytest.mark.parametrize("method", ["mean", "weights", "svm"])
def test_a_fitted_fusion_is_the_same_after_json(method):
    fitted = fit_fusion(FusionParams(members=MEMBERS, method=method), draw(60, 3, (1.0, 2.0)))
    assert FittedFusion.model_validate_json(fitted.model_dump_json()) == fitted
