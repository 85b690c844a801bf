"""Which hyper-parameters mattered."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial

from pipeline_lib.sweep.trials import Trial


def weigh(trials: Sequence[Trial], points: Sequence[FrozenTrial], names: list[str]) -> dict[str, float]:
    """Return each hyper-parameter's share in the variance of accuracy, by fANOVA; in sum 1.

    Pruned trials take part with the accuracy they had when they were stopped: where bad learning rates are pruned, all complete
    trials have good ones, and it would seem not to matter.

    Args:
        trials: complete and pruned ones.
        points: the same as Optuna has them.
        names: of the hyper-parameters.
    """
    study = optuna.create_study(direction="maximize")
    for trial, point in zip(trials, points, strict=True):
        study.add_trial(optuna.create_trial(params=point.params, distributions=point.distributions, value=trial.value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return {name: float(share) for name, share in shares.items()}
