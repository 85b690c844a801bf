"""Who may use the page: requests of its own origin, and beyond this machine only those who have the token."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.requests import ClientDisconnect

from pipeline_lib.errors import UserError

TOKEN_VARIABLE = "HAR_APP_TOKEN"
MIN_CHARACTERS = 12
"""Shortest token that a user may choose."""
MAX_GUESSES, GUESS_SECONDS = 10, 300.0
"""Wrong tokens that a client may send within this time."""
MAX_CLIENTS = 10_000
"""Clients whose wrong tokens are remembered."""
MAX_FORM_BYTES = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host")
"""Headers that a reverse proxy adds."""
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers would send forms without their origin
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Site:
    """Where the page is reached, and the token that it asks for, if any."""

    host: str = "127.0.0.1"
    """Address that the server listens at."""
    port: int = 7860
    public_url: str | None = None
    """Address of the page at the reverse proxy in front of the server."""
    token: str | None = field(default=None, repr=False)
    is_generated: bool = False
    """Whether the token was made here, and must be told."""

    @property
    def url(self) -> str:
        """The address for browsers, without a slash at its end."""
        if self.public_url:
            return self.public_url
        name = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}"

    @property
    def root_path(self) -> str:
        """Path of the page at the reverse proxy, without a slash at its end."""
        return urlsplit(self.public_url).path if self.public_url else ""

    @property
    def names(self) -> set[str]:
        """Host names of the page."""
        public = urlsplit(self.public_url).hostname if self.public_url else None
        return {"localhost", socket.gethostname().lower(), self.host.lower()} | ({public} if public else set())

    @property
    def origin(self) -> str | None:
        """Origin of the page at the reverse proxy, as browsers send it."""
        if self.public_url is None:
            return None
        parts = urlsplit(self.public_url.lower())
        return f"{parts.scheme}://{parts.netloc.removesuffix(f':{DEFAULT_PORTS[parts.scheme]}')}"


LOCAL = Site()
"""A page for this machine, without a token."""


def open_site(host: str, port: int, public_url: str | None) -> Site:
    """Return the site with the token of the environment, or a new one where others than this machine's users may reach it.

    Raises:
        UserError: the public address is not one, or the token is too short.
    """
    public_url = None if public_url is None else _checked(public_url)
    token = os.environ.pop(TOKEN_VARIABLE, "")  # child processes need not see it
    if token and (len(token) < MIN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(
            f"{TOKEN_VARIABLE}: must have {MIN_CHARACTERS} or more characters, all ASCII and none a space; "
            "`openssl rand -hex 16` makes one"
        )
    is_generated = not token and (public_url is not None or not is_loopback(host))
    return Site(host, port, public_url, secrets.token_urlsafe(24) if is_generated else token or None, is_generated)


def _checked(public_url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(public_url)
        is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and (parts.port is None or parts.port > 0)
        if parts.scheme in DEFAULT_PORTS and parts.hostname and is_plain:
            return public_url.rstrip("/")
    raise UserError(f"--public-url {public_url}: must be an address such as https://lab.example.org/har")


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class TooManyError(Exception):
    """A client has sent too many wrong tokens."""


class Guesses:
    """Counts each client's wrong tokens of the last minutes."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def are_spent(self, client: str) -> bool:
        """Return whether a client has sent `MAX_GUESSES` wrong tokens within `GUESS_SECONDS`."""
        times = self._times.get(client, deque())
        return len(times) == MAX_GUESSES and times[0] > time.monotonic() - GUESS_SECONDS

    def note(self, client: str) -> None:
        """Count a wrong token."""
        self._times.setdefault(client, deque(maxlen=MAX_GUESSES)).append(time.monotonic())
        if len(self._times) > MAX_CLIENTS:
            del self._times[next(iter(self._times))]


class Access:
    """Checks tokens, limits guesses, and knows the browsers that signed in since the server started."""

    def __init__(self, site: Site, token: str) -> None:
        self.root_path = site.root_path
        self._token = token
        self._cookie_name = f"har_app_{site.port}"  # browsers share cookies among the ports of a host
        self._cookie = secrets.token_urlsafe(32)
        self._is_https = site.url.startswith("https:")
        self._guesses = Guesses()

    def has_cookie(self, request: Request) -> bool:
        """Return whether the browser has signed in."""
        return _are_equal(request.cookies.get(self._cookie_name, ""), self._cookie)

    def has_token(self, request: Request) -> bool:
        """Return whether the request has the token in its `Authorization: Bearer` header.

        Raises:
            TooManyError: as of `check`.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.check(token.strip(), request)

    def check(self, token: str, request: Request) -> bool:
        """Return whether a token is right.

        Raises:
            TooManyError: the client has sent too many wrong ones; then a right one does not count either.
        """
        client = _client(request)
        if self._guesses.are_spent(client):
            raise TooManyError
        is_right = _are_equal(token, self._token)
        if not is_right:
            self._guesses.note(client)
        return is_right

    def sign_in(self, response: Response) -> Response:
        """Set the browser's cookie, which is valid until the browser or the server ends."""
        response.set_cookie(
            self._cookie_name,
            self._cookie,
            path=f"{self.root_path}/",
            secure=self._is_https,
            httponly=True,
            samesite="strict",
        )
        return response

    def sign_out(self, response: Response) -> Response:
        """Delete the browser's cookie."""
        response.delete_cookie(self._cookie_name, path=f"{self.root_path}/", secure=self._is_https, httponly=True)
        return response


def _are_equal(given: str, expected: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _client(request: Request) -> str:
    """Return the client's address; of IPv6 its network of 64 bits, whose addresses are all the client's."""
    host = request.client.host if request.client else ""
    with suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return str(ipaddress.ip_network(f"{host}/64", strict=False))
    return host


class Guard:
    """Middleware that rejects cross-origin requests, asks for the token, and adds `HEADERS`."""

    def __init__(self, site: Site, access: Access | None) -> None:
        """Accept the names of the site and IP addresses, which guards against DNS rebinding."""
        self._names, self._origin, self._root_path, self._access = site.names, site.origin, site.root_path, access

    async def __call__(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Reject or answer a request."""
        request.scope["root_path"] = self._root_path  # routes are found below it, too, if the proxy does not take it off
        response = self._refusal(request) or await call_next(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    def _refusal(self, request: Request) -> Response | None:
        if not self._is_ours(request.headers.get("host", "")):
            return PlainTextResponse("Unknown host name: use the address that har app prints, or tell it --public-url.", 403)
        if self._root_path and request.scope["path"] == self._root_path:
            return RedirectResponse(f"{self._root_path}/", 307)  # addresses in the page begin at the slash
        if self._access is None:
            return self._refuse_proxy(request) or self._refuse_foreign(request)
        return self._refuse_stranger(request, self._access)

    def _is_ours(self, host: str) -> bool:
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ipaddress.ip_address(name))
        return False

    def _refuse_proxy(self, request: Request) -> Response | None:
        """Refuse what comes through a reverse proxy while no token is asked."""
        if not any(name in request.headers for name in FORWARDED):
            return None
        return PlainTextResponse("Behind a reverse proxy, start har app with --public-url and the address of this page.", 403)

    def _refuse_foreign(self, request: Request) -> Response | None:
        origin = request.headers.get("origin", "")
        is_own = origin.partition("://")[2] == request.headers["host"] or origin == self._origin
        return None if request.method == "GET" or is_own else PlainTextResponse("Cross-origin request refused.", 403)

    def _refuse_stranger(self, request: Request, access: Access) -> Response | None:
        path = request.scope["path"].removeprefix(access.root_path)
        if access.has_cookie(request) or path == SIGN_IN or path.startswith("/static/"):
            return self._refuse_foreign(request)
        try:
            if access.has_token(request):  # no browser sends it by itself
                return None
        except TooManyError:
            return JSONResponse({"detail": _too_many()}, 429, {"Retry-After": f"{GUESS_SECONDS:.0f}"})
        if request.method == "GET" and path == "/":
            return RedirectResponse(access.root_path + SIGN_IN, 303)
        return JSONResponse({"detail": "signed out; reload the page to sign in"}, 401, {"WWW-Authenticate": "Bearer"})


def add_sign_in(app: FastAPI, access: Access, render: Callable[[str | None], str]) -> None:
    """Add the routes to sign in and out; `render` returns the page with the given problem."""

    @app.get(SIGN_IN)
    async def show_form() -> HTMLResponse:
        return HTMLResponse(render(None))

    @app.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        try:
            if access.check(await _sent_token(request), request):
                return access.sign_in(RedirectResponse(f"{access.root_path}/", 303))
        except TooManyError:
            return HTMLResponse(render(_too_many()), 429, {"Retry-After": f"{GUESS_SECONDS:.0f}"})
        return HTMLResponse(render("That is not the token."), 401, {"WWW-Authenticate": "Bearer"})

    @app.post(SIGN_OUT)
    async def sign_out() -> Response:
        return access.sign_out(RedirectResponse(access.root_path + SIGN_IN, 303))


async def _sent_token(request: Request) -> str:
    """Return the token of a form; nothing if the form is too large."""
    body = bytearray()
    with suppress(ClientDisconnect):
        async for part in request.stream():
            body += part
            if len(body) > MAX_FORM_BYTES:
                return ""
    return parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()


def _too_many() -> str:
    return f"too many wrong tokens; try again in {GUESS_SECONDS / 60:.0f} minutes"
