"""Fused videos and attention maps, by hand. What is fitted is tested with `pipeline_lib.evaluate.fusion_fitting`."""

import numpy as np

from pipeline_lib.training.fusion import fuse_attention, resample_maps, video_means

# N clips, T frames of a clip, V videos, C classes, K grid side


def test_padded_frames_do_not_count():
    probability_NTC = np.array([[[0.9, 0.1], [0.0, 1.0]], [[0.5, 0.5], [0.3, 0.7]]])
    mean_VC = video_means(probability_NTC, np.array([1, 2]), np.array([0, 0]))
    np.testing.assert_allclose(mean_VC, [[(0.9 + 0.5 + 0.3) / 3, (0.1 + 0.5 + 0.7) / 3]])


def test_fused_attention_follows_the_member_that_is_sure_of_the_prediction():
    first_NTC, second_NTC = np.array([[[0.8, 0.2]]]), np.array([[[0.4, 0.6]]])
    maps = np.array([[[[1.0, 0.0], [0.0, 0.0]]]]), np.array([[[[0.0, 0.0], [0.0, 1.0]]]])
    fused_NTKK = fuse_attention((1 / 3, 2 / 3), [first_NTC, second_NTC], maps, np.array([[0]]))
    np.testing.assert_allclose(fused_NTKK[0, 0], [[0.5, 0], [0, 0.5]])  # 1/3 * 0.8 and 2/3 * 0.4, of predicted class 0
    np.testing.assert_allclose(
        fuse_attention((1 / 3, 2 / 3), [first_NTC, second_NTC], [maps[0], None], np.array([[1]])), maps[0]
    )
    assert fuse_attention((0.5, 0.5), [first_NTC, second_NTC], [None, None], np.array([[0]])) is None


def test_a_member_without_weight_still_gives_a_map_where_it_is_the_only_one():
    maps_NTKK = np.full((1, 1, 2, 2), 0.25)
    members = [np.array([[[1.0, 0.0]]]), np.array([[[0.5, 0.5]]])]
    np.testing.assert_allclose(fuse_attention((0.0, 1.0), members, [maps_NTKK, None], np.array([[0]])), maps_NTKK)


def test_maps_of_another_grid_keep_their_mass_and_place():
    maps_NTKK = np.random.default_rng(0).dirichlet(np.ones(9), (2, 1)).reshape(2, 1, 3, 3)
    finer_NTKK = resample_maps(maps_NTKK, 6)
    np.testing.assert_allclose(finer_NTKK.reshape(2, 1, 3, 2, 3, 2).sum(axis=(3, 5)), maps_NTKK)
    np.testing.assert_allclose(resample_maps(maps_NTKK, 4).sum(axis=(2, 3)), 1)
    np.testing.assert_allclose(resample_maps(np.full((1, 1, 3, 3), 1 / 9), 4), np.full((1, 1, 4, 4), 1 / 16))
