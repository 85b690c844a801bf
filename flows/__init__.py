"""The DAG, its deployments, and the `har` command."""
