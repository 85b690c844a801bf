"""Starts the server of `har app` and runs it until it is stopped."""

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
    """Load the models and answer until Ctrl-C.

    Raises:
        UserError: no such model, or an address that cannot be had.
    """
    listener = listen(host, port)
    with listener:
        opened = open_predictor(source, workspace, siblings=True)
        say(f"model       {opened.title}")
        if opened.note:
            say(f"            {opened.note}")
        app = make_app(opened, workspace / FOLDER, _examples(workspace, opened.checkpoint_sha256), host=host)
        shown = f"[{host}]" if ":" in host else host
        say(f"app         http://{shown}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
        if not is_loopback(host):
            say(f"            {host} is not this machine alone: whoever reaches it can use this page; there is no password")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, server_header=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything that takes long.

    Raises:
        UserError: another program has the port, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: ports are numbers from 1 to 65535, and 0 for any that is free")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
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
