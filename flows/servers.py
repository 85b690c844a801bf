"""Addresses of the servers of `har up`. Imports nothing, to keep the `har` command fast."""

HOST = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
"""The address that stands for all of a machine's."""
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
