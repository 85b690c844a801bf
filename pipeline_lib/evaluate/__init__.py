"""The evaluate stage: scores, predictions and attention maps of models and fusions on the test split, and the controls."""

from pipeline_lib.evaluate.comparison import TrainingRun
from pipeline_lib.evaluate.controls import evaluate_controls
from pipeline_lib.evaluate.evaluation import evaluate_model
from pipeline_lib.evaluate.fusion_evaluation import evaluate_fusion
from pipeline_lib.evaluate.results import Controls, read_controls, read_training_run, write_results

__all__ = [
    "Controls",
    "TrainingRun",
    "evaluate_controls",
    "evaluate_fusion",
    "evaluate_model",
    "read_controls",
    "read_training_run",
    "write_results",
]
