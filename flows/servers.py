"""Where the servers of `har up` listen. Imports nothing, so that the `har` command can tell it at once."""

HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
