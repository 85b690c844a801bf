"""What models see: a feature map for each step of a clip, how it is computed and stored."""
