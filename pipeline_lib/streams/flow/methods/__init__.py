"""Optical flow methods, one a module; `FlowMethodName` in `pipeline_lib/params/stages.py` is their registry."""
