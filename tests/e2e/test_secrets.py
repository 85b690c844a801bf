"""Passwords and signatures in addresses are nowhere in what a run leaves behind: searched for in every byte of it."""

from __future__ import annotations

import functools
import json
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.har import har
from flows.settings import conceal
from tests.conftest import PREFECT
from tests.e2e.tracking_server import TrackingServer

SIGNATURE, PASSWORD = "S1gnatureOfVideos", "Passw0rdOfMlflow"
SECRETS = (SIGNATURE.encode(), PASSWORD.encode())


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture(scope="module")
def archives(tiny_collection, tmp_path_factory):
    """Return signed addresses of the tiny collection's videos and splits, which a local server answers."""
    folder = tmp_path_factory.mktemp("archives")
    for name in ("videos", "splits"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((tiny_collection / name).rglob("*.*")):
                archive.write(path, path.relative_to(tiny_collection / name).as_posix())
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        yield {name: f"{base}/{name}.zip?X-Amz-Signature={SIGNATURE}&X-Amz-Expires=60" for name in ("videos", "splits")}
        server.shutdown()


def leaks(*folders: Path) -> list[Path]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert paths
    return [path for path in paths if any(secret in path.read_bytes() for secret in SECRETS)]


def run(pipeline, archives, *settings, until=None):
    """Run as `har run --set` does, from archives behind signed addresses."""
    fetch = ["fetch.kind=archive", f"fetch.videos={archives['videos']}", f"fetch.splits=['{archives['splits']}']"]
    return har(str(pipeline.write_params()), conceal([*fetch, "train.models=[alstm]", *settings]), until)


def test_nothing_that_a_run_leaves_holds_a_secret(pipeline, archives, caplog, capfd):
    summary = run(pipeline, archives)
    assert leaks(pipeline.workspace, PREFECT) == []
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "X-Amz-Signature=***" in page
    out, err = capfd.readouterr()
    assert not any(secret.decode() in text for secret in SECRETS for text in (out, err, caplog.text, json.dumps(summary)))
    signed_anew = {name: address.replace(SIGNATURE, "another").replace("=60", "=70") for name, address in archives.items()}
    assert run(pipeline, signed_anew, until="fetch")["stages"]["fetch"]["cache"] == "hit"


@pytest.mark.parametrize("by", ["parameter", "environment"])
def test_a_tracking_server_behind_a_password_is_not_told_it(pipeline, archives, monkeypatch, caplog, capfd, by):
    with TrackingServer() as server:
        uri = server.uri.replace("//", f"//me:{PASSWORD}@")
        if by == "environment":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        summary = run(pipeline, archives, *([f"tracking.uri={uri}"] if by == "parameter" else []), until="chunk")
        server.answers_left = 8
        run(pipeline, archives, *([f"tracking.uri={uri}"] if by == "parameter" else []), until="fetch")
        assert not any(secret in body or secret.decode() in path for path, body in server.requests for secret in SECRETS)
    assert set(server.runs.values()) >= {"FINISHED"}
    assert summary["mlflow"]["tracking_uri"] == server.uri.replace("//", "//***@")
    assert leaks(pipeline.workspace, PREFECT) == []
    out, err = capfd.readouterr()
    assert "does not answer" in caplog.text
    assert not any(secret.decode() in text for secret in SECRETS for text in (out, err, caplog.text))


def test_an_archive_that_is_not_there_is_named_without_its_signature(pipeline, archives):
    missing = {"videos": archives["videos"].replace("videos.zip", "gone.zip"), "splits": archives["splits"]}
    with pytest.raises(ValueError, match=r"gone\.zip") as error:
        run(pipeline, missing, "fetch.retries=0", until="fetch")
    assert SIGNATURE not in str(error.value)
    assert leaks(pipeline.workspace, PREFECT) == []
