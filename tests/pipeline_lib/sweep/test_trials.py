"""Which of two trials is better."""

import pytest

from pipeline_lib.sweep.trials import Trial, best_of, kept_epoch, score


def row(accuracy, loss, epoch=1):
    return {"epoch": epoch, "val_calibrated_loss": loss, "val_clip_accuracy": accuracy}


def trial(number, accuracy, loss, state="complete"):
    return Trial(number, state, {}, accuracy, (row(accuracy, loss),))


def test_the_kept_epoch_is_the_first_with_the_lowest_loss_not_the_most_accurate():
    history = [row(0.2, 0.9, 1), row(0.5, 0.7, 2), row(0.6, 0.7, 3), row(0.9, 0.8, 4)]
    assert kept_epoch(history)["epoch"] == 2
    assert Trial(0, "pruned", {}, 0.5, tuple(history)).kept == history[1]


def test_accuracy_decides_then_loss_then_who_was_first():
    trials = [trial(0, 0.5, 0.1), trial(1, 0.6, 2.0), trial(2, 0.6, 1.5), trial(3, 0.6, 1.5), trial(4, 0.9, 0.1, "pruned")]
    assert best_of(trials).number == 2


@pytest.mark.parametrize("val_clips", [1, 2, 7, 1000])
def test_no_loss_outweighs_a_clip(val_clips):
    right = [number / val_clips for number in range(val_clips + 1)]
    scores = [score([row(accuracy, loss)], val_clips) for accuracy in right for loss in (1e9, 1.0, 0.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)
