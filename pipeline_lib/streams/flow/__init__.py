"""Optical flow between the frames of a video, computed while features are extracted and never stored.

All but `opening` and methods that need a device is also imported by decoder processes, so it imports neither PyTorch nor
parameters.
"""
