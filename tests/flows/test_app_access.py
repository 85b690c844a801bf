"""Who gets to the page of `har app`: the token, guesses, other origins, reverse proxies, what is printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from flows.app import access
from flows.app.access import MAX_GUESSES, TOKEN_VARIABLE, Guesses, Site, open_site
from flows.app.server import make_app
from flows.app.serving import configure, describe_site, listen
from pipeline_lib.errors import UserError
from tasks.mlflow.loading import Opened
from tests.models import make_bundle, make_opened, write_video
from tests.reverse_proxy import reverse_proxy

TOKEN = "a-token-of-the-tests"
ORIGIN = "http://192.168.1.7:7860"
SITE = Site(host="0.0.0.0", token=TOKEN)
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return make_opened(tmp_path_factory.mktemp("models"), ["mean_pool"])


@contextmanager
def client_of(opened: Opened, folder: Path, site: Site = SITE, address: str = ORIGIN) -> Iterator[TestClient]:
    app = make_app(opened, folder / "app", site=site)
    with TestClient(app, base_url=address, follow_redirects=False, client=("10.0.0.1", 5000)) as client:
        yield client


@pytest.fixture
def client(opened: Opened, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(opened, tmp_path) as client:
        yield client


def sign_in(client: httpx.Client, token: str = TOKEN, origin: str = ORIGIN) -> httpx.Response:
    return client.post("sign-in", data={"token": token}, headers={"origin": origin})


def test_this_machine_alone_is_asked_nothing(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert open_site(host, 7860, None) == Site(host)


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", None), ("192.168.1.7", None), ("", None), ("127.0.0.1", "https://a.org/har")]
)
def test_others_need_a_token_that_is_new_each_time(monkeypatch, host, url):
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    first, second = (open_site(host, 7860, url) for _ in range(2))
    assert first.token != second.token
    assert len(first.token or "") == 32
    assert describe_site(first)[0].endswith(f"/#token={first.token}  (Ctrl-C to stop)")
    assert first.token not in repr(first)


def test_the_token_of_the_environment_is_neither_printed_nor_left_to_other_programs(monkeypatch):
    for host in ("0.0.0.0", "127.0.0.1"):
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        site = open_site(host, 7860, None)
        assert site.token == TOKEN
        assert TOKEN_VARIABLE not in os.environ
        assert TOKEN not in "".join(describe_site(site))


@pytest.mark.parametrize("token", ["short", "with a space in it", "nicht-ausdrücklich", "line\nbreak-line"])
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused_untold(monkeypatch, token):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(UserError, match=TOKEN_VARIABLE) as error:
        open_site("0.0.0.0", 7860, None)
    assert token not in str(error.value)


@pytest.mark.parametrize(
    "url", ["lab.example.org", "ftp://a.org", "https://", "https://a.org:no", "https://u:p@a.org", "http://a.org/?a"]
)
def test_an_address_that_no_browser_can_open_is_refused(url):
    with pytest.raises(UserError, match="--public-url"):
        open_site("127.0.0.1", 7860, url)


def test_a_stranger_reaches_the_sign_in_page_and_nothing_else(client, tmp_path):
    assert (client.get("/").status_code, client.get("/").headers["location"]) == (303, "/sign-in")
    assert "mean pool" not in client.get("/sign-in").text
    for path in ("/jobs/x", "/jobs/x/result", "/jobs/x/video", "/examples/0/still", "/static", "/jobs/%2e%2e/static/app.css"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (401, "signed out; reload the page to sign in"), path
    for path in ("/jobs", "/examples/0", "/jobs/x/cancel", "/sign-out"):
        assert client.post(path, content=b"a video", headers={"origin": ORIGIN}).status_code == 401
    for name in ("tokens.css", "style.css", "app.css", "sign_in.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/..%2F..%2Fjobs").status_code == 404
    assert list((tmp_path / "app").iterdir()) == []


def test_the_token_opens_the_page_until_sign_out(client):
    answer = sign_in(client, f" {TOKEN} ")  # as pasted
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(r"har_app_7860=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie)
    assert TOKEN not in cookie
    assert "Sign out" in client.get("/").text
    assert client.post("/jobs", content=b"", headers={"origin": ORIGIN}).status_code == 201
    assert client.post("/jobs", content=b"", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/sign-out", headers={"origin": ORIGIN}).headers["location"] == "/sign-in"
    assert client.get("/").status_code == 303


def test_the_token_in_a_header_opens_all_for_scripts(client):
    assert client.get("/", headers=BEARER).status_code == 200
    assert client.post("/jobs", content=b"", headers=BEARER).status_code == 201  # curl sends no origin
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer{TOKEN}", "Bearer ", "Bearer ä".encode()):
        assert client.post("/jobs", content=b"", headers={"authorization": wrong}).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", TOKEN])
def test_no_other_cookie_opens_it(client, cookie):
    assert client.get("/", headers={"cookie": f"har_app_7860={cookie}"}).status_code == 303


def test_a_cookie_is_worth_nothing_after_a_restart(client, opened, tmp_path):
    sign_in(client)
    with client_of(opened, tmp_path / "next") as next_one:
        next_one.cookies.update(client.cookies)
        assert next_one.get("/").status_code == 303
    assert client.get("/").status_code == 200


def test_no_other_page_may_sign_in_here(client):
    for origin in ("http://evil.example", "null", ""):
        assert sign_in(client, origin=origin).status_code == 403
    assert client.get("/sign-in", headers={"host": "evil.example"}).status_code == 403


def test_who_guesses_waits_and_others_do_not(client, monkeypatch):
    for guess in ("", "wrong", "x" * 5000, *map(str, range(MAX_GUESSES - 4))):
        answer = sign_in(client, guess)
        assert (answer.status_code, "That is not the token." in answer.text) == (401, True)
    assert client.get("/jobs/x", headers={"authorization": "Bearer wrong"}).status_code == 401  # counts as well
    for answer in (sign_in(client), client.get("/jobs/x", headers=BEARER)):  # even the right one
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "300")
    assert "too many wrong tokens; try again in 5 minutes" in sign_in(client).text
    assert (
        sign_in(TestClient(client.app, base_url=ORIGIN, follow_redirects=False, client=("10.0.0.2", 5000))).status_code == 303
    )
    monkeypatch.setattr(access, "GUESS_SECONDS", 0.0)
    assert sign_in(client).status_code == 303


def test_guesses_of_a_whole_ipv6_network_count_together(opened, tmp_path):
    with client_of(opened, tmp_path) as client:
        statuses = [
            sign_in(TestClient(client.app, base_url=ORIGIN, client=(f"2001:db8::{number}", 5000)), "wrong").status_code
            for number in range(MAX_GUESSES + 1)
        ]
    assert statuses == [401] * MAX_GUESSES + [429]


def test_guesses_from_everywhere_fill_no_memory(monkeypatch):
    monkeypatch.setattr(access, "MAX_CLIENTS", 3)
    guesses = Guesses()
    for client in "abcd":
        for _ in range(MAX_GUESSES):
            guesses.note(client)
    assert [guesses.are_spent(client) for client in "abcd"] == [False, True, True, True]


def test_a_proxy_that_nobody_declared_is_refused(opened, tmp_path):
    with client_of(opened, tmp_path, Site(), "http://127.0.0.1:7860") as client:
        assert client.get("/").status_code == 200
        for header in ("x-forwarded-for", "x-forwarded-host", "forwarded"):
            answer = client.get("/", headers={header: "lab.example.org"})
            assert (answer.status_code, "--public-url" in answer.text) == (403, True)


@pytest.mark.parametrize("host", ["lab.example.org", "127.0.0.1:7860"], ids=["kept", "renamed"])
@pytest.mark.parametrize("path", ["/har/", "/"], ids=["path kept", "path taken off"])
def test_behind_a_proxy_with_tls(opened, tmp_path, host, path):
    site = Site(public_url="https://lab.example.org:443/har", token=TOKEN)
    with client_of(opened, tmp_path, site) as client:
        client.headers["host"] = host
        assert client.get(path).headers["location"] == "/har/sign-in"
        assert client.get("/har").headers["location"] == "/har/"
        answer = client.post(f"{path}sign-in", data={"token": TOKEN}, headers={"origin": "https://lab.example.org"})
        assert answer.headers["location"] == "/har/"
        assert answer.headers["set-cookie"].endswith("; HttpOnly; Path=/har/; SameSite=strict; Secure")
        cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
        assert "mean pool" in client.get(path, headers=cookie).text
        for origin, status in (("https://lab.example.org", 201), ("http://lab.example.org:81", 403), ("https://a.org", 403)):
            assert client.post(f"{path}jobs", headers=cookie | {"origin": origin}).status_code == status
        assert client.get(path, headers={"host": "lab.example.com"}).status_code == 403


@contextmanager
def serve(opened: Opened, folder: Path, prefix: str = "/har", **options: bool) -> Iterator[str]:
    """Serve the app behind a real reverse proxy, and yield the page's address there."""
    with listen("127.0.0.1", 0) as listener, reverse_proxy(listener.getsockname()[1], prefix, **options) as proxy_port:
        site = Site("127.0.0.1", listener.getsockname()[1], f"http://lab.localhost:{proxy_port}{prefix}", TOKEN)
        server = uvicorn.Server(configure(make_app(opened, folder, site=site), site))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield site.url.replace("lab.localhost", "127.0.0.1")
        server.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("strips", [True, False], ids=["path taken off", "path kept"])
def test_a_video_goes_through_a_real_proxy(opened, tmp_path, strips):
    with serve(opened, tmp_path / "app", strips=strips) as url, httpx.Client(base_url=url, follow_redirects=True) as client:
        origin = url.removesuffix("/har").replace("127.0.0.1", "lab.localhost")
        assert client.get("").url.path == "/har/sign-in"
        assert "mean pool" in sign_in(client, origin=origin).text
        video = write_video(tmp_path / "v.mp4", 31).read_bytes()
        identity = client.post("jobs", content=video, headers={"origin": origin}).json()["id"]
        while (job := client.get(f"jobs/{identity}").json())["state"] != "done":
            assert job["state"] in ("waiting", "running")
        result = client.get(f"jobs/{identity}/result").json()
        assert client.get(result["clip"]["video"]).headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.9.9.9"])
def test_only_a_proxy_that_is_trusted_says_who_guesses(opened, tmp_path, monkeypatch, trusted):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with serve(opened, tmp_path / "app") as url, httpx.Client(base_url=url) as client:

        def ask(sender: str, headers: Mapping[str, str]) -> int:
            return client.get("jobs/x", headers={"client": sender, **headers}).status_code

        statuses = [ask("203.0.113.1", {"authorization": "Bearer wrong"}) for _ in range(MAX_GUESSES)]
        assert statuses == [401] * MAX_GUESSES
        assert ask("203.0.113.1", BEARER) == 429
        assert ask("203.0.113.2", BEARER) == (404 if trusted == "127.0.0.1" else 429)


@pytest.mark.integration
@pytest.mark.parametrize("is_chosen", [pytest.param(True, marks=pytest.mark.slow), False], ids=["chosen", "generated"])
def test_the_command_tells_a_token_once_and_logs_none(tmp_path, is_chosen):
    (tmp_path / "model").mkdir()
    make_bundle(tmp_path / "parts", "mean_pool").save(tmp_path / "model")
    command = [sys.executable, "-m", "flows.cli", "app", "--model", str(tmp_path / "model"), "--port", "0", "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    process = subprocess.Popen(
        [*command, "--workspace", str(tmp_path / "workspace")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment | ({TOKEN_VARIABLE: TOKEN} if is_chosen else {}),
    )  # fmt: skip
    assert process.stdout
    lines = [next(line for line in process.stdout if line.startswith("app "))]
    url, _, token = lines[0].split()[1].partition("/#token=")
    token = token or TOKEN
    address = f"http://127.0.0.1:{url.rpartition(':')[2]}"
    with httpx.Client(base_url=address, follow_redirects=True) as client:
        assert "Token" in client.get("/").text
        assert sign_in(client, "wrong", address).status_code == 401
        assert "mean pool" in sign_in(client, token, address).text
        assert client.get(f"/?token={token}").status_code == 200
        assert client.get("/jobs/x", headers={"authorization": f"Bearer {token}"}).status_code == 404
    process.send_signal(signal.SIGINT)
    lines += process.stdout.read().splitlines()
    assert process.wait(15) == 0
    process.stdout.close()
    assert sum(token in line for line in lines) == (0 if is_chosen else 1)
    assert not any(token.encode() in path.read_bytes() for path in (tmp_path / "workspace").rglob("*") if path.is_file())
