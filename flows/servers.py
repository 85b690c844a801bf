"""Addresses of the servers of `har up`. Imports nothing, to keep the `har` command fast."""

HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
