"""Speed of the pipeline beside the usual way, on the same input in the same run: `python -m benchmarks`."""
