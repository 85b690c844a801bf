"""MLflow: tracking of runs, the model registry, and models loaded from either."""
