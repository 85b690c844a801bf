"""From raw video to label, confidence over time and attention, equal to what evaluation finds.

`predictor.Predictor` is the way in. Nothing is imported here: a run that only logs a model's parts needs no torchvision.
"""
