"""What the server of `har app` accepts, refuses, keeps and removes."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from flows.app import jobs as jobs_module
from flows.app import server
from flows.app.access import is_loopback
from flows.app.jobs import FullError, Job, Jobs
from flows.app.results import POINTS, page_result, probability_chart
from flows.app.server import Limits, discard, make_app, middle_frame
from flows.app.serving import listen
from pipeline_lib.artifacts import file_sha256
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.examples import Example
from pipeline_lib.predict.prediction import ModelPrediction, Prediction
from pipeline_lib.subsample import SubsampledVideo
from pipeline_lib.video.ffmpeg import VideoError
from pipeline_lib.video.reading import count_frames
from tasks.mlflow.loading import Opened
from tests.listening import beyond_loopback, listening
from tests.models import CLASSES, make_bundle, make_opened, write_video

ORIGIN = "http://127.0.0.1:7860"
LIMITS = Limits(max_bytes=200_000, max_seconds=3)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return make_opened(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", 31)


@pytest.fixture
def client(opened: Opened, video: Path, tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(opened, tmp_path / "app", [Example(video, "wave", True)], limits=LIMITS)
    with TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN}) as client:
        yield client


def finish(client: httpx.Client, identity: str) -> dict[str, Any]:
    while (job := client.get(f"/jobs/{identity}").json())["state"] in ("waiting", "running"):
        time.sleep(0.01)
    return job


def upload(client: httpx.Client, content: bytes) -> tuple[str, dict[str, Any]]:
    answer = client.post("/jobs", content=content)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], finish(client, answer.json()["id"])


def test_an_upload_becomes_a_clip_with_all_models(client, opened, video, tmp_path):
    identity, job = upload(client, video.read_bytes())
    assert (job["state"], job["done"], job["total"]) == ("done", 16, 16)
    result = client.get(f"/jobs/{identity}/result").json()
    assert [model["name"] for model in result["clip"]["models"]] == ["alstm", "conv alstm", "mean pool"]
    assert (result["clip"]["frames"], result["clip"]["grid"], result["clip"]["label"]) == (16, 2, None)
    seen = client.get(f"/{result['clip']['video']}", headers={"range": "bytes=0-99"})
    assert (seen.status_code, len(seen.content)) == (206, 100)
    assert count_frames(tmp_path / "app" / identity / "seen.mp4") == 16
    assert {path.name for path in (tmp_path / "app" / identity).iterdir()} == {"seen.mp4", "page.json", "predictions.json"}


def test_what_is_downloaded_is_what_the_predictor_says(client, opened, video):
    identity, _ = upload(client, video.read_bytes())
    downloaded = client.get(f"/jobs/{identity}/predictions.json").json()
    assert downloaded["sha256"] == file_sha256(video)
    prediction = opened.predictor.predict(video)
    for name, model in downloaded["models"].items():
        expected = prediction.models[name]
        np.testing.assert_allclose(model["frame_probabilities"], expected.probability_TC, atol=1e-5)
        assert (model["label"], model["classes"]) == (expected.label, list(CLASSES))


def test_maps_of_streams_with_other_grids_are_drawn_on_the_finest() -> None:
    probability_TC = np.full((4, 3), 1 / 3, np.float32)
    maps = {"alstm": np.eye(2, dtype=np.float32)[None].repeat(4, axis=0) / 2, "conv_alstm@clip": np.full((4, 4, 4), 1 / 16)}
    models = {name: ModelPrediction(CLASSES, probability_TC, maps_TKK) for name, maps_TKK in maps.items()}
    prediction = Prediction(15.0, SubsampledVideo(4, 64, 48, 30.0, None), models)
    result = page_result(prediction, "v", None, HeatmapsParams())
    assert result["clip"]["grid"] == result["style"]["grid"] == 4
    drawn = np.frombuffer(base64.b64decode(result["clip"]["models"][0]["attention"]), "<u2").reshape(4, 4, 4)
    np.testing.assert_array_equal(drawn > 0, np.kron(np.eye(2), np.ones((2, 2)))[None].repeat(4, axis=0))


def test_a_chart_of_many_frames_shows_their_means():
    probability_TC = np.random.default_rng(0).dirichlet(np.ones(7), 3 * POINTS).astype(np.float32)
    chart = probability_chart(ModelPrediction(tuple("abcdefg"), probability_TC, None), 15.0)
    top = np.argsort(-probability_TC.mean(axis=0))[:5]
    assert [series["name"] for series in chart["series"]] == ["abcdefg"[index] for index in top]
    expected = probability_TC[:, top[1]].reshape(POINTS, 3).mean(axis=1)
    np.testing.assert_allclose(chart["series"][1]["values"], expected, atol=1e-4)
    np.testing.assert_allclose(chart["seconds"], (np.arange(POINTS) + 0.5) * 0.2, atol=1e-3)


def test_the_same_video_is_answered_at_once(client, video):
    first, _ = upload(client, video.read_bytes())
    assert client.post("/jobs", content=video.read_bytes()).json() == {"id": first}
    example = client.post("/examples/0").json()["id"]
    assert example != first  # that one has a true label
    assert finish(client, example)["state"] == "done"
    assert client.get(f"/jobs/{example}/result").json()["clip"]["label"] == "wave"
    assert client.post("/examples/0").json() == {"id": example}
    assert client.get("/examples/0/still").content == middle_frame(video)
    assert client.get("/examples/1/still").status_code == client.post("/examples/-1").status_code == 404


def parts_of(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // 1000):
        yield bytes(1000)


@pytest.mark.parametrize("content", [lambda: bytes(200_001), lambda: parts_of(300_000)], ids=["declared", "undeclared"])
def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing(client, tmp_path, content):
    answer = client.post("/jobs", content=content())
    assert (answer.status_code, answer.json()) == (413, {"detail": "larger than the 0 MB allowed here"})
    assert list((tmp_path / "app").iterdir()) == []


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/jobs",
    "headers": [(b"host", b"127.0.0.1"), (b"origin", b"http://127.0.0.1")],
    "query_string": b"",
    "http_version": "1.1",
}


def test_an_upload_that_breaks_off_leaves_nothing(opened, tmp_path):
    app = make_app(opened, tmp_path / "app", limits=LIMITS)
    messages = [{"type": "http.request", "body": b"begin", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message.get("status") != 201

    asyncio.run(app(SCOPE, receive, send))
    assert list((tmp_path / "app").iterdir()) == []


def test_uploads_that_stall_give_their_slots_back(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_WAITING", 1)
    app = make_app(opened, tmp_path / "app", limits=dataclasses.replace(LIMITS, silence_seconds=0.05))
    statuses: list[int] = []

    async def upload() -> None:
        messages = [{"type": "http.request", "body": b"begin", "more_body": True}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        await app(SCOPE, receive, send)

    async def upload_several() -> None:
        await asyncio.gather(*(upload() for _ in range(3)))
        await upload()

    asyncio.run(asyncio.wait_for(upload_several(), 20))
    assert statuses == [503, 408, 408, 408]
    assert list((tmp_path / "app").iterdir()) == []


def test_an_upload_that_trickles_ends(opened, tmp_path):
    app = make_app(opened, tmp_path / "app", limits=dataclasses.replace(LIMITS, upload_seconds=0.1))
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    asyncio.run(asyncio.wait_for(app(SCOPE, receive, send), 20))
    assert statuses[0] == 408
    assert list((tmp_path / "app").iterdir()) == []


def test_more_videos_than_are_kept_push_the_oldest_out(client, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 2)
    first, *others = (upload(client, write_video(tmp_path / "v.mp4", number).read_bytes())[0] for number in (31, 33, 35))
    assert client.get(f"/jobs/{first}").status_code == 200  # until the next one comes
    failed, _ = upload(client, b"no video")
    assert client.get(f"/jobs/{first}").json() == {"detail": "expired; upload the video again"}
    assert {path.name for path in (tmp_path / "app").iterdir()} == set(others)  # a file that failed takes no space
    assert client.get(f"/jobs/{failed}").json()["state"] == "failed"


def test_the_event_loop_neither_writes_nor_deletes_files(client, video, monkeypatch):
    threads: set[str] = set()

    def note(thread_of: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            threads.add(thread_of.__name__)
            return thread_of(*args)

        return called

    monkeypatch.setattr(server, "_store", note(server._store))
    monkeypatch.setattr(Job, "delete_files", note(Job.delete_files))
    upload(client, video.read_bytes())
    upload(client, video.read_bytes())
    assert threads == {"_store", "delete_files"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no video at all" * 99, "not a video that ffmpeg can read"),
        (b"", "the file is empty"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "a playlist, not a video"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><MPD/>", "a playlist, not a video"),
    ],
)
def test_a_file_that_is_no_video_is_told_in_a_line(client, content, reason):
    identity, job = upload(client, content)
    assert job["state"] == "failed"
    assert reason in job["error"]
    assert client.get(f"/jobs/{identity}/result").status_code == 409


def test_a_video_beyond_the_limit_is_told_so(client, tmp_path):
    _, job = upload(client, write_video(tmp_path / "long.mp4", 100).read_bytes())
    assert job["error"] == "3 s long, longer than the 3 s allowed here"


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "", "[", "127.0.0.1@evil.example"])
def test_a_foreign_name_reaches_nothing(client, host):
    for path in ("/", "/static/app.js", "/jobs/x"):
        assert client.get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:80", "192.168.1.7:7860"])
def test_names_that_nobody_else_can_have_do(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:8000", "http://127.0.0.1"])
def test_only_the_page_itself_may_send(client, tmp_path, origin):
    for path in ("/jobs", "/examples/0", "/jobs/x/cancel"):
        assert client.post(path, headers={"origin": origin}).status_code == 403
    assert list((tmp_path / "app").iterdir()) == []


def test_no_path_of_a_visitor_reaches_the_disk(client):
    for path in ("/static/server.py", "/static/..%2Fserver.py", "/jobs/..%2F..%2Fapp/video", "/jobs/../video", "/openapi.json"):
        assert client.get(path).status_code == 404, path


def test_the_page_names_what_the_models_know_and_runs_no_script_of_others(client):
    answer = client.get("/")
    assert "jump, sit, wave" in answer.text
    assert "a &lt;small&gt; model" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in ("tokens.css", "player.css", "style.css", "app.css", "player.js", "app.js", "chart.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/").headers["x-content-type-options"] == "nosniff"


def test_the_page_is_told_the_limits(opened, tmp_path):
    app = make_app(opened, tmp_path / "app", limits=Limits(max_bytes=50_000_000, max_seconds=90))
    with TestClient(app, base_url=ORIGIN) as client:
        assert "Up to 1.5 minutes and 50 MB, any common format." in client.get("/").text


def test_everything_is_removed_at_the_end(opened, video, tmp_path):
    with TestClient(make_app(opened, tmp_path / "app"), base_url=ORIGIN, headers={"origin": ORIGIN}) as client:
        upload(client, video.read_bytes())
        assert len(list((tmp_path / "app").iterdir())) == 1
    assert list((tmp_path / "app").iterdir()) == []


class Held:
    """Work that waits until it is let go, and notes what it did."""

    def __init__(self) -> None:
        self.began, self.go, self.done = threading.Event(), threading.Event(), []

    def __call__(self, job: Job) -> None:
        self.began.set()
        assert self.go.wait(10)
        job.advance(1, 2)
        self.done.append(job)


@pytest.fixture
def start_jobs(tmp_path: Path) -> Iterator[Callable[..., Jobs]]:
    started = []

    def start(work: Callable[[Job], None]) -> Jobs:
        started.append(Jobs(tmp_path / "jobs", work))
        return started[-1]

    yield start
    for jobs in started:
        jobs.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_next_waits_and_knows_how_many_are_before(start_jobs):
    work = Held()
    jobs = start_jobs(work)
    first, second, third = (jobs.create() for _ in range(3))
    for job in (first, third, second):
        jobs.submit(job)
    work.began.wait(10)
    assert [(job.state, jobs.num_ahead(job)) for job in (first, third, second)] == [
        ("running", 0),
        ("waiting", 1),
        ("waiting", 2),
    ]
    jobs.cancel(third)
    assert (third.state, jobs.num_ahead(second)) == ("cancelled", 1)
    work.go.set()
    wait_for(lambda: second.state == "done")
    assert work.done == [first, second]


def test_a_visitor_who_leaves_stops_the_work(start_jobs):
    work = Held()
    jobs = start_jobs(work)
    job = jobs.create()
    jobs.submit(job)
    work.began.wait(10)
    jobs.cancel(job)
    work.go.set()
    wait_for(lambda: job.state == "cancelled")
    assert work.done == []


def test_more_than_enough_are_sent_away(start_jobs, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_WAITING", 1)
    jobs = start_jobs(Held())
    first, _ = jobs.create(), jobs.create()
    with pytest.raises(FullError):
        jobs.create()
    jobs.remove(first)
    jobs.create()


def test_what_goes_wrong_ends_only_its_own_job(start_jobs, caplog):
    def work(job: Job) -> None:
        if job.label:
            raise VideoError(job.label) if job.label == "bad" else ZeroDivisionError

    jobs = start_jobs(work)
    bad, broken, good = jobs.create("bad"), jobs.create("broken"), jobs.create()
    for job in (bad, broken, good):
        jobs.submit(job)
    wait_for(lambda: good.state == "done")
    assert (bad.error, bad.state, broken.state) == ("bad", "failed", "failed")
    assert "internal error" in (broken.error or "")
    assert "ZeroDivisionError" in caplog.text


def test_what_is_long_over_is_removed(start_jobs, tmp_path, monkeypatch):
    for name, age_seconds in (("old", 2 * jobs_module.KEPT_SECONDS), ("new", 0)):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        os.utime(tmp_path / "jobs" / name, (time.time() - age_seconds,) * 2)
    work = Held()
    jobs = start_jobs(work)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["new"]
    running, uploading = jobs.create(), jobs.create()
    jobs.submit(running)
    work.began.wait(10)
    monkeypatch.setattr(jobs_module, "KEPT_SECONDS", -1.0)
    assert jobs.expired() == [uploading]
    jobs.remove(uploading)
    assert not uploading.folder.exists()
    work.go.set()
    wait_for(lambda: running.state == "done")
    assert jobs.expired() == [running]
    asyncio.run(discard(jobs, *jobs.expired()))
    assert jobs.get(running.id) is None
    assert not running.folder.exists()


def test_an_address_that_cannot_be_had_is_named():
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(ValueError, match=r"--port \d+: Address already in use; choose another"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="--port 99999"):
        listen("127.0.0.1", 99999)


def test_loopback_is_known():
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "192.168.1.7", "example.org"))


def test_the_command_says_where_it_is_listens_there_alone_and_ends_clean(tmp_path):
    (tmp_path / "model").mkdir()
    make_bundle(tmp_path / "parts", "mean_pool").save(tmp_path / "model")
    command = [sys.executable, "-m", "flows.cli", "app", "--model", str(tmp_path / "model"), "--port", "0"]
    process = subprocess.Popen([*command, "--workspace", str(tmp_path / "workspace")], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address = next(line.split()[1] for line in process.stdout if line.startswith("app "))
    with httpx.Client(base_url=address, headers={"origin": address}) as client:
        assert "mean pool" in client.get("/").text
        identity, job = upload(client, write_video(tmp_path / "v.mp4", 31).read_bytes())
    assert job["state"] == "done"
    assert (tmp_path / "workspace" / "app" / identity).is_dir()
    assert beyond_loopback(process.pid) == []
    assert address.removeprefix("http://") in listening(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    assert list((tmp_path / "workspace" / "app").iterdir()) == []
    process.stdout.close()
