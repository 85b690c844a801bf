"""Hyper-parameters searched for, model by model, on the train and val splits alone.

`search.search` is the stage. It is not imported here, so that Optuna is imported by searches alone.
"""
