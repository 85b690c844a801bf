"""Run the server of `har app` until it is stopped."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from flows.app.access import TOKEN_VARIABLE, Site, open_site
from flows.app.server import Limits, make_app
from flows.terminal import say
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.errors import UserError
from pipeline_lib.predict.examples import Example, find_examples
from tasks.mlflow.loading import open_predictor

FOLDER = "app"


def serve(source: str, workspace: Workspace, host: str, port: int, public_url: str | None, limits: Limits) -> int:
    """Load the models and serve the page until Ctrl-C.

    Raises:
        UserError: the model does not exist, an address is not available, or the token is too short.
    """
    site = open_site(host, port, public_url)
    listener = listen(host, port)
    with listener:
        site = replace(site, port=listener.getsockname()[1])
        opened = open_predictor(source, workspace, siblings=True)
        say(f"model       {opened.title}")
        if opened.note:
            say(f"            {opened.note}")
        app = make_app(
            opened, workspace.folder / FOLDER, _examples(workspace, opened.checkpoint_sha256), limits=limits, site=site
        )
        for line in describe_site(site):
            say(line)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(configure(app, site)).run(sockets=[listener])
    return 0


def configure(app: FastAPI, site: Site) -> uvicorn.Config:
    """Return the server's settings. `FORWARDED_ALLOW_IPS` names the reverse proxy whose headers are believed."""
    return uvicorn.Config(
        app,
        log_level="warning",  # requests are not logged
        timeout_graceful_shutdown=3,
        server_header=False,
        proxy_headers=site.public_url is not None,
    )


def describe_site(site: Site) -> list[str]:
    """Return lines with the address, and how to sign in."""
    end = f"/#token={site.token}" if site.is_generated else "/" if site.root_path else ""
    lines = [f"app         {site.url}{end}  (Ctrl-C to stop)"]
    if site.token:
        lines.append(f"            asks for {'this token' if site.is_generated else f'the token in {TOKEN_VARIABLE}'}")
    if site.token and site.url.startswith("http:"):
        lines.append("            not encrypted: use it in a network that you trust, or behind a reverse proxy (--public-url)")
    return lines


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


def _examples(workspace: Workspace, checkpoint_sha256: str) -> list[Example]:
    if not workspace.exists:
        return []
    store = workspace.open()
    try:
        return find_examples(store, checkpoint_sha256)
    finally:
        store.close()
