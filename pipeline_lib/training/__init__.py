"""Fitting, inference, voting and checkpoints, for any model."""
