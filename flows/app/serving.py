"""Run the server of `har app` until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn

from flows.app.server import make_app
from flows.terminal import say
from pipeline_lib.artifacts import Store
from pipeline_lib.errors import UserError
from pipeline_lib.predict.examples import Example, find_examples
from tasks.mlflow.loading import open_predictor

FOLDER = "app"


def serve(source: str, workspace: Path, host: str, port: int) -> int:
    """Load the models and serve the page until Ctrl-C.

    Raises:
        UserError: the model does not exist, or the address is not available.
    """
    listener = listen(host, port)
    with listener:
        opened = open_predictor(source, workspace, siblings=True)
        say(f"model       {opened.title}")
        if opened.note:
            say(f"            {opened.note}")
        app = make_app(opened, workspace / FOLDER, _examples(workspace, opened.checkpoint_sha256), host=host)
        shown = f"[{host}]" if ":" in host else host
        say(f"app         http://{shown}:{listener.getsockname()[1]}  (Ctrl-C to stop)")
        if not is_loopback(host):
            say(f"            {host} is reachable from other machines, and the page has no password")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, server_header=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; called before the slow loading of models.

    Raises:
        UserError: the port is in use, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be 1 to 65535, or 0 for any free port")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another port or host") from None


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _examples(workspace: Path, checkpoint_sha256: str) -> list[Example]:
    if not workspace.is_dir():
        return []
    store = Store(workspace)
    try:
        return find_examples(store, checkpoint_sha256)
    finally:
        store.close()
