"""From raw video to label, confidence over time and attention, equal to what evaluation finds."""

from pipeline_lib.predict.parts import Parts, Preparation
from pipeline_lib.predict.predictor import ModelPrediction, Prediction, Predictor

__all__ = ["ModelPrediction", "Parts", "Prediction", "Predictor", "Preparation"]
