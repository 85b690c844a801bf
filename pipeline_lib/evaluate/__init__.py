"""Trained models in; scores, predictions and attention maps of the test part out, and what they are to be measured against."""

from pipeline_lib.evaluate.comparison import Cell
from pipeline_lib.evaluate.controls import evaluate_controls
from pipeline_lib.evaluate.evaluation import evaluate_model
from pipeline_lib.evaluate.results import Controls, read_cell, read_controls, write_results

__all__ = ["Cell", "Controls", "evaluate_controls", "evaluate_model", "read_cell", "read_controls", "write_results"]
