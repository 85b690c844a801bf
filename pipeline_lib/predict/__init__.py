"""Predict labels, confidence over time and attention from raw videos, consistently with evaluation.

The entry point is `predictor.Predictor`. Nothing is imported here, because logging a model must not import torchvision.
"""
