"""Feature streams, the input of models: compute and store a feature map for each step of a clip."""
