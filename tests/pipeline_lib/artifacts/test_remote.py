"""The object store's side, against a real S3 server on loopback."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore import exceptions

from pipeline_lib.artifacts import Manifest, file_sha256
from pipeline_lib.artifacts.manifest import FileRecord
from pipeline_lib.artifacts.remote import PART_BYTES, DamagedError, Remote
from pipeline_lib.errors import UserError

pytestmark = pytest.mark.integration


@pytest.fixture
def remote(with_object_store, request) -> Remote:
    return Remote(f"s3://lab/{request.node.name}")


def manifest_of(folder: Path, created: str = "") -> Manifest:
    paths = sorted(folder.iterdir())
    files = [FileRecord(path=path.name, size_bytes=path.stat().st_size, sha256=file_sha256(path)) for path in paths]
    return Manifest(
        stage="chunk",
        key="k",
        version="1",
        params={},
        inputs={},
        counts={},
        seconds=1.0,
        created=created,
        tools={},
        files=tuple(files),
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with a file of several parts, two equal files and an empty one."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(2 * PART_BYTES + 5))
    for name in ("one", "two"):
        (folder / name).write_text("equal")
    (folder / "empty").touch()
    return folder


def test_files_go_up_and_come_down_the_same(remote, folder, tmp_path):
    manifest, moved = manifest_of(folder), []
    remote.upload("chunk", "k", folder, manifest.files, moved.append)
    assert remote.manifest("chunk", "k") is None
    assert remote.publish(manifest) == manifest
    assert remote.manifest("chunk", "k") == manifest
    assert sum(moved) == 2 * PART_BYTES + 5 + len("equal")
    for file in manifest.files:
        remote.download("chunk", "k", file, tmp_path / "copy" / file.path)
        assert (tmp_path / "copy" / file.path).read_bytes() == (folder / file.path).read_bytes()
    before = {one.path: one.modified for one in remote.objects("artifacts/")}
    time.sleep(1.1)
    remote.upload("chunk", "k", folder, manifest.files)
    assert {one.path: one.modified for one in remote.objects("artifacts/")} == before, "what is there is not sent again"


def test_of_publishers_at_once_one_wins(remote, folder):
    manifests, published = [manifest_of(folder, created=str(number)) for number in range(16)], []
    threads = [threading.Thread(target=lambda one=one: published.append(remote.publish(one))) for one in manifests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert published == [published[0]] * 16
    assert remote.manifest("chunk", "k") == published[0]


@pytest.mark.slow  # SeaweedFS takes 20 s to come back
def test_a_store_that_is_away_for_seconds_is_waited_for(remote, object_store):
    remote.put("before", b"1")
    object_store.kill()
    back = threading.Timer(2.0, object_store.start)
    back.start()
    try:
        remote.put("after", b"2")
        assert remote.get("after") == b"2"
        assert remote.get("before") == b"1"
    finally:
        back.join()


def test_a_store_that_is_gone_is_one_line(with_object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = r"^workspace: s3://lab/x: the object store does not answer; finished work is kept in the cache"
    with pytest.raises(UserError, match=message) as caught:
        Remote("s3://lab/x", retry_seconds=1).get("some")
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_secret_is_one_line(with_object_store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY") as caught:
        Remote("s3://lab/x").put("some", b"")
    assert len(str(caught.value).splitlines()) == 1
    assert "wrong" not in str(caught.value)
    with pytest.raises(UserError, match=r"access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        list(Remote("s3://lab/x").objects("artifacts/"))


class NoBucket(BaseHTTPRequestHandler):
    """Answers as S3 does if there is no such bucket; SeaweedFS makes one instead."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchBucket</Code></Error>'
        self.send_response(404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = answer

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_bucket_that_does_not_exist_is_one_line(with_object_store, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), NoBucket) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        remote = Remote("s3://nowhere/x")
        for request in (lambda: remote.put("some", b""), lambda: list(remote.objects("artifacts/"))):
            with pytest.raises(UserError, match=r"^workspace: s3://nowhere/x: no such bucket; create it first") as caught:
                request()
            assert len(str(caught.value).splitlines()) == 1
        server.shutdown()


def test_an_environment_without_credentials_is_one_line(with_object_store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"s3://lab/x: .*AccessKeyId; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY") as caught:
        Remote("s3://lab/x")
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    message = r"^workspace: s3://lab/x: no credentials were found; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    with pytest.raises(UserError, match=message):
        Remote("s3://lab/x", retry_seconds=1).get("some")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "objects.lab", "htp://objects.lab"])
def test_an_endpoint_that_is_no_address_is_one_line(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=f"^AWS_ENDPOINT_URL: {endpoint}: give an address such as https://"):
        Remote("s3://lab/x")


def test_changed_and_lost_files_are_found(remote, folder, tmp_path):
    manifest = manifest_of(folder)
    remote.upload("chunk", "k", folder, manifest.files)
    large = next(file for file in manifest.files if file.path == "large")
    remote.put(f"artifacts/chunk/k/{large.sha256}", b"x" * large.size_bytes)
    with pytest.raises(DamagedError, match="large does not hold what was written"):
        remote.download("chunk", "k", large, tmp_path / "copy")
    remote.remove("chunk", "k")
    with pytest.raises(DamagedError, match="large is gone"):
        remote.download("chunk", "k", large, tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize(
    ("address", "named"),
    [("gs://lab/x", "GOOGLE_SERVICE_ACCOUNT"), ("az://lab/x", "AZURE_STORAGE_ACCOUNT_NAME"), ("file://{}/x", "the folder's")],
)
def test_where_access_is_denied_the_variables_of_that_store_are_named(address, named, monkeypatch, tmp_path):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
    remote = Remote(address.format(tmp_path))
    with pytest.raises(UserError, match=f"access is denied; check {named}") as caught, remote._explained():
        raise exceptions.PermissionDeniedError("403")
    assert "AWS_" not in str(caught.value)
