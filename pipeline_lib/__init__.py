"""The craft: archives, video, clips, backbones, features, models, training, evaluation, heatmaps. No Prefect, no MLflow."""
