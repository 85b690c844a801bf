"""One Prefect task for each stage, and what they share."""
