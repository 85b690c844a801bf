"""Backbones: networks that compute the feature map of a frame, and their weights."""
