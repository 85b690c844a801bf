"""Deletion and insertion with toy models whose curves are known."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipeline_lib.evaluate import masking
from pipeline_lib.evaluate.masking import STEPS, cell_counts, choose_clips, masked_curves
from pipeline_lib.training.batches import Batch

GRID, FRAMES = 5, 3
CELLS = GRID * GRID
SURE = 1 / (1 + np.exp(-9.0))


class LooksAtOneCell(nn.Module):
    """Is sure of class 1 in every frame in which one cell fires, and undecided in the others."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, features_BTKKD, valid_steps_B):
        fires_BT = (features_BTKKD.flatten(2, 3)[:, :, self.cell, 0] > 0).float()
        return torch.stack([torch.zeros_like(fires_BT), 9 * fires_BT], dim=2), None, None


@dataclass
class Clips:
    """Clips of nothing but ones, in place of a `ClipLoader`."""

    valid_frames: list[int]

    def batches(self, batch_size):
        for first in range(0, len(self.valid_frames), batch_size):
            valid_B = torch.tensor(self.valid_frames[first : first + batch_size])
            features_BTKKD = torch.ones(len(valid_B), FRAMES, GRID, GRID, 2, dtype=torch.float16)
            yield Batch(features_BTKKD, valid_B, torch.ones_like(valid_B))


def attention_on(cell, num_clips=1):
    attention_NTI = np.full((num_clips, FRAMES, CELLS), 0.5 / (CELLS - 1))
    attention_NTI[:, :, cell] = 0.5
    return attention_NTI


def curves_of(attention_NTI, cell=7, valid_frames=None, batch_size=64):
    valid_frames = valid_frames or [FRAMES] * len(attention_NTI)
    names = [f"clip {number}" for number in range(len(attention_NTI))]
    return masked_curves(LooksAtOneCell(cell), Clips(valid_frames), names, attention_NTI, batch_size)


def test_a_map_on_the_cell_that_counts_takes_all_at_the_first_step_and_gives_all_back():
    curves = curves_of(attention_on(7))
    np.testing.assert_allclose(curves.fraction_F, [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(curves.probability_NF["model", "deletion"][0], [SURE, *[0.5] * 5], rtol=1e-6)
    np.testing.assert_allclose(curves.probability_NF["model", "insertion"][0], [0.5, *[SURE] * 5], rtol=1e-6)
    areas = curves.areas()
    assert areas["model", "deletion"][0] == pytest.approx(0.5 + 0.1 * (SURE - 0.5))
    assert areas["model", "insertion"][0] == pytest.approx(SURE - 0.1 * (SURE - 0.5))


def test_the_centre_ranks_the_middle_cell_first_and_a_corner_last():
    middle, corner = (curves_of(attention_on(0), cell).probability_NF["centre", "deletion"][0] for cell in (CELLS // 2, 0))
    np.testing.assert_allclose(middle, [SURE, *[0.5] * 5], rtol=1e-6)
    np.testing.assert_allclose(corner, [*[SURE] * 5, 0.5], rtol=1e-6)


def test_a_random_order_takes_the_cell_that_counts_half_way_on_average():
    curves = curves_of(attention_on(7, num_clips=400))
    expected_F = SURE - (SURE - 0.5) * curves.fraction_F
    for measure in ("deletion", "insertion"):
        mean_F = curves.probability_NF["uniform", measure].mean(axis=0)
        np.testing.assert_allclose(mean_F, expected_F if measure == "deletion" else expected_F[::-1], atol=0.04)


def test_equal_cells_of_a_map_are_ranked_as_the_random_order_ranks_them():
    curves = curves_of(np.full((50, FRAMES, CELLS), 1 / CELLS)).probability_NF
    np.testing.assert_array_equal(curves["model", "deletion"], curves["uniform", "deletion"])
    assert 0.1 < (curves["model", "deletion"][:, 2] > 0.6).mean() < 0.9


def test_masks_follow_the_map_from_frame_to_frame():
    attention_NTI = attention_on(7)
    attention_NTI[0, 1, 7] = 0
    two_thirds_gone = (0.5 * 2 + SURE) / 3
    curve_F = curves_of(attention_NTI).probability_NF["model", "deletion"][0]
    np.testing.assert_allclose(curve_F, [SURE, *[two_thirds_gone] * 4, 0.5], rtol=1e-6)


def test_padded_frames_do_not_count():
    attention_NTI = attention_on(7)
    attention_NTI[0, 1:] = np.roll(attention_NTI[0, 1:], 5, axis=1)
    padded = curves_of(attention_NTI, valid_frames=[1]).probability_NF["model", "deletion"][0]
    np.testing.assert_allclose(padded, [SURE, *[0.5] * 5], rtol=1e-6)


def test_neither_batches_nor_the_order_of_clips_matter():
    attention_NTI = np.random.default_rng(0).dirichlet(np.ones(CELLS), (9, FRAMES))
    whole = curves_of(attention_NTI).probability_NF
    for key, curve_NF in curves_of(attention_NTI, batch_size=2).probability_NF.items():
        np.testing.assert_array_equal(curve_NF, whole[key])
    names = [f"clip {number}" for number in range(9)]
    backwards = masked_curves(LooksAtOneCell(7), Clips([FRAMES] * 9), names[::-1], attention_NTI[::-1], 64)
    for key, curve_NF in backwards.probability_NF.items():
        np.testing.assert_array_equal(curve_NF[::-1], whole[key])


@pytest.mark.parametrize("num_cells", [4, 9, 25, 49, 196])
def test_every_count_of_cells_has_its_complement(num_cells):
    counts = cell_counts(num_cells)
    assert (len(counts), counts[0], counts[-1]) == (STEPS + 1, 0, num_cells)
    np.testing.assert_array_equal(num_cells - counts[::-1], counts)


def test_a_clip_of_every_video_is_masked_up_to_a_limit(monkeypatch):
    rows = [(f"v{number}", first) for first in (30, 0) for number in range(20)]
    test = pd.DataFrame(rows, columns=["video", "first_frame"])
    assert choose_clips(test).tolist() == list(range(20, 40))
    monkeypatch.setattr(masking, "MAX_VIDEOS", 6)
    chosen = set(test.loc[choose_clips(test), "video"])
    assert len(chosen) == 6
    shuffled = test.sample(frac=1, random_state=0).reset_index(drop=True)
    assert set(shuffled.loc[choose_clips(shuffled), "video"]) == chosen
