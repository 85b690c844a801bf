"""Downloads from a server that misbehaves in every way the real ones do."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.fetch import transfer
from pipeline_lib.fetch.download import Address, RetryPolicy, download, first_usable

ROOT = Path(__file__).resolve().parents[3]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(retries=3, timeout_seconds=5.0, backoff_seconds=0.001)


@dataclass
class Site:
    """What the server does next, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    statuses: list[int] = field(default_factory=list)
    """Answered first, one a request."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes of an answer the connection is closed, one a request."""
    honours_range: bool = True
    content_type: str = "application/octet-stream"
    sends_length: bool = True
    stalls: threading.Event | None = None
    """Waited for before anything is answered."""
    pause: threading.Event | None = None
    """Waited for in the middle of an answer."""
    ranges: list[str | None] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    """By path."""
    logins: list[str | None] = field(default_factory=list)
    """The `Authorization` of every request."""


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.ranges.append(self.headers["Range"])
        site.logins.append(self.headers["Authorization"])
        if site.stalls:
            site.stalls.wait(10)
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        if self.path in site.redirects:
            self.send_response(301)
            self.send_header("Location", site.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start()
        if start is not None and start >= len(site.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.end_headers()
            return
        self._send(start)

    def _start(self) -> int | None:
        """Return where to go on from, or None to send everything."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(asked[1]) if asked and self.site.honours_range and self.headers["If-Range"] == self.site.etag else None

    def _send(self, start: int | None) -> None:
        site = self.site
        body = site.content[start or 0 :]
        self.send_response(200 if start is None else 206)
        self.send_header("Content-Type", site.content_type)
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.sends_length:
            self.send_header("Content-Length", str(len(body)))
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if site.pause:
                self.wfile.write(body[:300_000])
                site.pause.wait(30)
                body = body[300_000:]
            self.wfile.write(body[: site.breaks.pop(0)] if site.breaks else body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}/files/hmdb51_org.rar"
        yield site
        if site.stalls:
            site.stalls.set()
        server.shutdown()
        thread.join()


def get(directory: Path, *addresses: Address | str, policy: RetryPolicy = QUICK, **options: object) -> Path:
    known = [Address(address) if isinstance(address, str) else address for address in addresses]

    def use(address: Address) -> Path:
        return download(address, directory, policy=policy, **options)  # type: ignore[arg-type]

    return first_usable(known, use, key="fetch.videos")


def test_a_whole_file_is_fetched_once_and_its_progress_told(site: Site, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    path = get(tmp_path, Address(site.url, SHA256), progress=lambda *counts: seen.append(counts))
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("hmdb51_org.rar")
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert get(tmp_path, Address(site.url, SHA256)) == path
    assert site.ranges == [None]
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_a_broken_transfer_goes_on_where_it_stopped(site: Site, tmp_path: Path):
    site.breaks = [300_000, 100_000]
    assert get(tmp_path, Address(site.url, SHA256)).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_breaks_that_bring_something_new_do_not_use_up_the_retries(site: Site, tmp_path: Path):
    site.breaks = [50_000] * 10
    assert get(tmp_path, site.url, policy=RetryPolicy(1, 5.0, 0.001)).read_bytes() == CONTENT


def test_a_later_call_takes_up_what_a_killed_one_left(site: Site, tmp_path: Path):
    def die(done_bytes: int, total_bytes: int | None) -> None:
        if done_bytes > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, site.url, progress=die)
    part = next(tmp_path.glob("*.part"))
    left_bytes = part.stat().st_size
    assert get(tmp_path, site.url).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={left_bytes}-"]


def test_a_process_killed_in_the_middle_is_taken_up_again(site: Site, tmp_path: Path):
    site.pause = threading.Event()
    program = (
        "import sys; from pathlib import Path; from pipeline_lib.fetch.download import *;"
        "download(Address(sys.argv[1]), Path(sys.argv[2]), policy=RetryPolicy())"
    )
    with subprocess.Popen([sys.executable, "-c", program, site.url, str(tmp_path)], cwd=ROOT) as process:
        deadline = time.monotonic() + 30
        while sum(path.stat().st_size for path in tmp_path.glob("*.part")) < 300_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    site.pause.set()
    site.pause = None
    assert get(tmp_path, Address(site.url, SHA256)).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=300000-"]


def test_a_part_that_was_already_whole_is_only_renamed(site: Site, tmp_path: Path):
    path = get(tmp_path, site.url)
    path.rename(path.with_name(f"{path.name}.part"))
    path.with_name(f"{path.name}.part.json").write_text('{"validator": "\\"one\\""}')
    site.honours_range = True
    assert get(tmp_path, Address(site.url, SHA256)).read_bytes() == CONTENT
    assert site.ranges[1:] == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_begun_anew(site: Site, tmp_path: Path):
    path = get(tmp_path, site.url)
    path.with_name(f"{path.name}.part").write_bytes(CONTENT + b"more")
    path.with_name(f"{path.name}.part.json").write_text('{"validator": "\\"one\\""}')
    path.unlink()
    assert get(tmp_path, Address(site.url, SHA256)).read_bytes() == CONTENT
    assert site.ranges[1:] == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("change", [{"honours_range": False}, {"etag": '"two"', "content": CONTENT[::-1]}, {"etag": None}])
def test_a_file_that_cannot_be_resumed_or_changed_is_begun_anew(site: Site, tmp_path: Path, change: dict[str, object]):
    site.breaks = [300_000]
    with pytest.raises(ValueError, match="gave up after 1 tries"):
        get(tmp_path, site.url, policy=RetryPolicy(0, 5.0, 0.001))
    for name, value in change.items():
        setattr(site, name, value)
    assert get(tmp_path, site.url).read_bytes() == site.content


def test_a_server_that_resumes_another_file_is_not_believed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site.breaks = [300_000]
    with pytest.raises(ValueError, match="gave up"):
        get(tmp_path, site.url, policy=RetryPolicy(0, 5.0, 0.001))
    site.etag, site.content = '"two"', CONTENT[::-1]
    monkeypatch.setattr(Handler, "_start", lambda self: 300_000 if self.headers["Range"] else None)
    assert get(tmp_path, site.url).read_bytes() == CONTENT[::-1]


def test_a_passing_status_is_tried_again(site: Site, tmp_path: Path):
    site.statuses = [503, 429]
    assert get(tmp_path, site.url).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_final_status_goes_to_the_next_address_at_once(site: Site, tmp_path: Path, status: int):
    site.statuses = [status]
    assert get(tmp_path, site.url, f"{site.url}?mirror").read_bytes() == CONTENT
    assert len(site.ranges) == 2


def test_a_wrong_checksum_goes_to_the_next_address_and_leaves_nothing(site: Site, tmp_path: Path):
    path = get(tmp_path, Address(site.url, "0" * 64), Address(f"{site.url}?mirror", SHA256))
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    assert len(site.ranges) == 2
    with pytest.raises(ValueError, match=rf"SHA-256 is {SHA256}, expected 0{{64}}"):
        get(tmp_path, Address(site.url, "0" * 64))


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/x-rar"])
def test_a_web_page_is_recognised(site: Site, tmp_path: Path, content_type: str):
    site.content, site.content_type = b"\n<!DOCTYPE html>\n<title>Serre Lab</title>", content_type
    with pytest.raises(
        ValueError, match=r"^fetch\.videos: .*answered with a web page, not an archive.*Set fetch\.videos to the path"
    ):
        get(tmp_path, Address(site.url, SHA256))
    assert len(site.ranges) == 1
    assert not list(tmp_path.iterdir())


LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(CONTENT)}\n".encode()


@pytest.mark.parametrize(
    ("content_type", "content", "kind"),
    [
        ("text/plain", b"<!-- moved --><html>", "a web page"),
        ("application/json", b"{}", "a JSON message"),
        ("application/zip", b'{"error": "Entry not found"}', "a JSON message"),
        ("text/plain; charset=utf-8", LFS_POINTER, "a Git LFS pointer"),
    ],
)
def test_a_text_in_place_of_an_archive_is_recognised(site: Site, tmp_path: Path, content_type: str, content: bytes, kind: str):
    site.content_type, site.content = content_type, content
    with pytest.raises(UserError, match=rf"could not be downloaded from .* \(answered with {kind}, not an archive\)"):
        get(tmp_path, site.url)
    assert not list(tmp_path.iterdir())


def test_content_that_only_begins_as_a_text_does_is_no_text():
    assert transfer.text_kind(b"<a>.avi" + bytes(93)) is None
    assert transfer.text_kind(b"Rar!\x1a\x07\x01\x00") is None


def test_another_size_goes_to_the_next_address_before_it_is_transferred(site: Site, tmp_path: Path):
    seen: list[int] = []
    wrong = Address(site.url, size_bytes=5)
    right = Address(f"{site.url}?mirror", SHA256, len(CONTENT))
    path = get(tmp_path, wrong, right, progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert seen == sorted(seen)  # nothing of the first
    site.sends_length = False
    with pytest.raises(UserError, match=rf"it has {len(CONTENT)} bytes, expected 5"):
        get(tmp_path, wrong)
    with pytest.raises(UserError, match=rf"it has {len(CONTENT)} bytes, expected 5"):
        get(tmp_path, Address(str(path), size_bytes=5))


def test_a_redirect_to_a_home_page_is_a_web_page(site: Site, tmp_path: Path):
    site.redirects = {"/files/hmdb51_org.rar": "/"}
    site.content_type, site.content = "text/html; charset=UTF-8", b"<!DOCTYPE html><title>Serre Lab</title>"
    with pytest.raises(UserError, match=r"hmdb51_org\.rar \(answered with a web page, not an archive\)"):
        get(tmp_path, site.url)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x.rar", "file:///etc/passwd", "/files/hmdb51_org.rar"])
def test_redirects_that_lead_nowhere_are_refused(site: Site, tmp_path: Path, location: str):
    site.redirects = {"/files/hmdb51_org.rar": location}
    with pytest.raises(UserError, match=r"HTTP 301: too many redirects, or a redirect to an address that is not http\(s\)"):
        get(tmp_path, site.url)


def test_a_login_in_the_address_is_used_and_never_shown(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    secret = site.url.replace("http://", "http://me:s3cr%40t@") + "?signature=s1gned"
    site.redirects = {"/files/hmdb51_org.rar?signature=s1gned": "/moved.rar"}
    site.statuses = [503]
    path = get(tmp_path, Address(secret, SHA256))
    assert [base64.b64decode((login or "").removeprefix("Basic ")) for login in site.logins] == [b"me:s3cr@t"] * 3
    path.unlink()
    site.statuses = [404]
    with pytest.raises(UserError, match=r"http://\*\*\*@127.* \(HTTP 404 Not Found\)") as caught:
        get(tmp_path, secret)
    shown = f"{caught.value}{caplog.text}{[child.name for child in tmp_path.iterdir()]}{path}"
    assert "s3cr" not in shown
    assert "s1gned" not in shown


def test_a_login_is_not_told_to_the_host_of_a_redirect(site: Site, tmp_path: Path):
    elsewhere = site.url.replace("127.0.0.1", "localhost").replace("files", "moved")
    site.redirects = {"/files/hmdb51_org.rar": elsewhere}
    assert get(tmp_path, Address(site.url.replace("http://", "http://me:secret@"), SHA256)).read_bytes() == CONTENT
    assert site.logins[0]
    assert site.logins[1:] == [None]


def test_a_length_that_is_not_told_is_accepted(site: Site, tmp_path: Path):
    site.sends_length = False
    seen: list[int | None] = []
    assert get(tmp_path, Address(site.url, SHA256), progress=lambda _, total: seen.append(total)).read_bytes() == CONTENT
    assert set(seen) == {None}


def test_a_silent_server_is_given_up(site: Site, tmp_path: Path):
    site.stalls = threading.Event()
    with pytest.raises(ValueError, match=r"no data for 0\.1 s; gave up after 2 tries"):
        get(tmp_path, site.url, policy=RetryPolicy(1, 0.1, 0.001))


def test_the_one_error_names_every_address_and_its_reason(site: Site, tmp_path: Path):
    site.statuses = [404]
    addresses = [site.url, "http://127.0.0.1:9/x.rar", "ftp://example.org/x.rar", "http://[bad/x", str(tmp_path / "none.rar")]
    with pytest.raises(ValueError, match=r"^fetch\.videos: ") as caught:
        get(tmp_path, *addresses, policy=RetryPolicy(1, 5.0, 0.001))
    message = str(caught.value)
    assert all(address in message for address in addresses)
    assert "HTTP 404" in message
    assert "Connection refused; gave up after 2 tries" in message
    assert "only http(s) addresses" in message
    assert "no such file" in message
    assert "\n" not in message


def test_local_files_are_used_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "-odd [name] #1.rar").write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = get(tmp_path / "partial", Address("~/-odd [name] #1.rar", SHA256))
    assert path == tmp_path / "-odd [name] #1.rar"
    assert not (tmp_path / "partial").exists()


def test_odd_characters_in_an_address_are_escaped(site: Site, tmp_path: Path):
    path = get(tmp_path, f"{site.url.rpartition('/')[0]}/vidéos du labo (1).rar")
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("vidéos_du_labo__1_.rar")


def test_a_disk_too_small_for_the_file_is_told_before_it_is_filled(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=rf"disk is full: another {len(CONTENT)} bytes are needed .* 1000 are free"):
        get(tmp_path, site.url, f"{site.url}?mirror")
    assert len(site.ranges) == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_what_there_is(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full:
        def write(self, block: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    write = transfer.Transfer._write
    blocks: list[int] = []

    def fill(self: transfer.Transfer, file: object, block: bytes, total_bytes: int | None) -> None:
        blocks.append(len(block))
        write(self, file if len(blocks) == 1 else Full(), block, total_bytes)

    monkeypatch.setattr(transfer.Transfer, "_write", fill)
    with pytest.raises(UserError, match=r"disk is full: another \d+ bytes are needed"):
        get(tmp_path, site.url)
    monkeypatch.undo()
    assert get(tmp_path, Address(site.url, SHA256)).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={blocks[0]}-"]


def test_waits_double_vary_and_end():
    policy = RetryPolicy(backoff_seconds=1.0)
    assert 0.5 <= policy.wait_seconds(0) <= 1.5
    assert 4 <= policy.wait_seconds(3) <= 12
    assert policy.wait_seconds(5000) <= 90
    assert len({policy.wait_seconds(1) for _ in range(5)}) > 1
