"""Trained models in, scores, predictions and attention maps of the test part out."""

from pipeline_lib.evaluate.evaluation import evaluate_model

__all__ = ["evaluate_model"]
