"""Networks that turn a frame into a feature map, and their weights."""
