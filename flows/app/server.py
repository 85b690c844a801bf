"""HTTP server of the page. Answers its own origin only; no path or name from a request is used on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from markupsafe import Markup
from PIL import Image
from starlette.requests import ClientDisconnect

from flows.app.access import LOCAL, Access, Guard, Site, add_sign_in
from flows.app.jobs import FullError, Job, Jobs
from flows.app.results import file_result, page_result, title_of
from pipeline_lib.artifacts import file_sha256
from pipeline_lib.predict.examples import Example
from pipeline_lib.predict.videos import MAX_BYTES, MAX_SECONDS
from pipeline_lib.report import page as report_page
from pipeline_lib.report.player import ASSETS as REPORT_ASSETS
from pipeline_lib.report.player import PLAYER_FILES
from pipeline_lib.video.reading import count_frames, read_frames
from tasks.mlflow.loading import Opened

ASSETS = Path(__file__).parent
SWEEP_SECONDS = 60.0
SEEN = "seen.mp4"
"""The resampled video in a job's folder."""
PAGE_RESULT, FILE_RESULT = "page.json", "predictions.json"
STILL_WIDTH = 240


@dataclass(frozen=True)
class Limits:
    """Limits of uploads."""

    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    silence_seconds: float = 30.0
    """Timeout for the next chunk of an upload."""
    upload_seconds: float = 1800.0
    """Timeout for an upload."""


class TooLargeError(Exception):
    """The upload exceeds the limit."""


def make_app(
    opened: Opened, folder: Path, examples: Sequence[Example] = (), *, limits: Limits = Limits(), site: Site = LOCAL
) -> FastAPI:
    """Create the web application.

    Args:
        opened: the models.
        folder: folder of uploaded videos, kept for an hour or until the server ends.
        examples: example videos of the page.
        limits: limits of uploads.
        site: where the page is reached, and the token that it asks for.
    """
    jobs = Jobs(folder, lambda job: predict_job(job, opened, limits))
    access = Access(site, site.token) if site.token else None
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lambda _: keep_tidy(jobs))
    app.middleware("http")(Guard(site, access))
    if access:
        add_sign_in(app, access, render_sign_in)
    _add_page(app, render_page(opened, examples, limits, can_sign_out=access is not None))
    _add_examples(app, jobs, examples)
    _add_uploads(app, jobs, limits)
    _add_jobs(app, jobs)
    return app


@asynccontextmanager
async def keep_tidy(jobs: Jobs) -> AsyncIterator[None]:
    """Remove expired jobs while the server runs, and all jobs when it ends."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await discard(jobs, *jobs.expired())

    sweeping = asyncio.create_task(sweep())
    yield
    sweeping.cancel()
    await asyncio.to_thread(jobs.close)


async def discard(jobs: Jobs, *unwanted: Job) -> None:
    """Forget jobs immediately and delete their files in a thread."""
    for job in unwanted:
        jobs.forget(job)
    for job in unwanted:
        await asyncio.to_thread(job.delete_files)


def predict_job(job: Job, opened: Opened, limits: Limits) -> None:
    """Predict a job's video by all models, and write the results to the job's folder.

    Raises:
        VideoError: the video cannot be decoded, or is too long.
        CancelledJobError: the job was cancelled.
    """
    assert job.video is not None
    prediction = opened.predictor.predict(
        job.video, subsampled=job.folder / SEEN, max_seconds=limits.max_seconds, on_progress=job.advance
    )
    if job.video.parent == job.folder:
        job.video.unlink()
    address = f"jobs/{job.id}/video"
    header = {"model": opened.title, "sha256": job.sha256, "true_label": job.label}
    _write_json(job.folder / PAGE_RESULT, page_result(prediction, address, job.label, opened.drawing))
    _write_json(job.folder / FILE_RESULT, file_result(prediction, header))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def render_sign_in(problem: str | None) -> str:
    """Render the page that asks for the token, with what was wrong before."""
    return _templates().get_template("sign_in.html.j2").render(problem=problem)


def render_page(opened: Opened, examples: Sequence[Example], limits: Limits, *, can_sign_out: bool = False) -> str:
    """Render the page, which is the same for every user."""
    predictor = opened.predictor
    classes = predictor.classes(opened.model)
    data = {"model": title_of(opened.model), "num_classes": len(classes), "max_bytes": limits.max_bytes}
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=opened.title,
            model=title_of(opened.model),
            classes=classes,
            examples=examples,
            max_megabytes=limits.max_bytes // 1_000_000,
            max_minutes=limits.max_seconds / 60,
            can_sign_out=can_sign_out,
            data=Markup(json.dumps(data, ensure_ascii=False).replace("<", r"\u003c")),
        )
    )


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _add_page(app: FastAPI, page: str) -> None:
    files = {name: REPORT_ASSETS / name for name in (*PLAYER_FILES, "style.css")}
    files |= {name: ASSETS / name for name in ("app.css", "app.js", "sign_in.js")}
    files["chart.js"] = Path(str(resources.files("chartkick").joinpath(report_page.CHART_LIBRARY)))

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/static/{name}")
    async def show_file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name])


def _add_examples(app: FastAPI, jobs: Jobs, examples: Sequence[Example]) -> None:
    digests = [file_sha256(example.video) for example in examples]
    stills: dict[int, bytes] = {}

    @app.get("/examples/{number}/still")
    def show_still(number: int) -> Response:
        if not 0 <= number < len(examples):
            raise HTTPException(404)
        if number not in stills:
            stills[number] = middle_frame(examples[number].video)
        return Response(stills[number], media_type="image/jpeg")

    @app.post("/examples/{number}", status_code=201)
    async def try_example(number: int) -> dict[str, str]:
        if not 0 <= number < len(examples):
            raise HTTPException(404)
        label, sha256 = examples[number].label, digests[number]
        if known := jobs.find_done(sha256, label):
            return {"id": known.id}
        job = await _create(jobs, label)
        job.video, job.sha256 = examples[number].video, sha256
        jobs.submit(job)
        return {"id": job.id}


def middle_frame(video: Path) -> bytes:
    """Return the middle frame of a video as a small JPEG."""
    middle = count_frames(video) // 2
    with closing(read_frames(video)) as frames:  # type: ignore[type-var]  # it is a generator
        frame_HW3 = next(islice(frames, middle, None))
    picture = Image.fromarray(frame_HW3)
    picture.thumbnail((STILL_WIDTH, STILL_WIDTH))
    content = BytesIO()
    picture.save(content, "JPEG", quality=80)
    return content.getvalue()


def _add_uploads(app: FastAPI, jobs: Jobs, limits: Limits) -> None:
    @app.post("/jobs", status_code=201)
    async def upload(request: Request) -> dict[str, str]:
        if int(request.headers.get("content-length", "0")) > limits.max_bytes:
            raise HTTPException(413, _too_large(limits))
        job = await _create(jobs)
        job.video = job.folder / "upload"
        try:
            job.sha256 = await receive(request, job.video, limits)
        except BaseException as error:
            await discard(jobs, job)
            if isinstance(error, TooLargeError | ClientDisconnect | OSError):
                raise _refusal(error, limits) from None
            raise
        if known := jobs.find_done(job.sha256, None):
            await discard(jobs, job)
            return {"id": known.id}
        jobs.submit(job)
        return {"id": job.id}


def _refusal(error: TooLargeError | ClientDisconnect | OSError, limits: Limits) -> HTTPException:
    if isinstance(error, TooLargeError):
        return HTTPException(413, _too_large(limits))
    if isinstance(error, TimeoutError):  # an OSError, too
        longest = f"{limits.upload_seconds / 60:g} minutes"
        return HTTPException(408, f"upload stalled for {limits.silence_seconds:g} s, or took more than {longest}; try again")
    if isinstance(error, OSError):
        return HTTPException(507, f"cannot be stored on the server: {error.strerror}")
    return HTTPException(400, "the upload was interrupted")


def _add_jobs(app: FastAPI, jobs: Jobs) -> None:
    def find(identity: str) -> Job:
        job = jobs.get(identity)
        if job is None:
            raise HTTPException(404, "expired; upload the video again")
        return job

    def serve(identity: str, name: str) -> FileResponse:
        job = find(identity)
        if job.state != "done":
            raise HTTPException(409, "the result is not ready")
        return FileResponse(job.folder / name)

    @app.get("/jobs/{identity}")
    async def show_state(identity: str) -> dict[str, Any]:
        job = find(identity)
        done, total = job.frames
        return {"state": job.state, "before": jobs.num_ahead(job), "done": done, "total": total, "error": job.error}

    @app.post("/jobs/{identity}/cancel", status_code=204)
    async def cancel(identity: str) -> None:
        jobs.cancel(find(identity))

    @app.get("/jobs/{identity}/result")
    async def show_result(identity: str) -> FileResponse:
        return serve(identity, PAGE_RESULT)

    @app.get("/jobs/{identity}/predictions.json")
    async def download(identity: str) -> FileResponse:
        return serve(identity, FILE_RESULT)

    @app.get("/jobs/{identity}/video")
    async def show_video(identity: str) -> FileResponse:
        return serve(identity, SEEN)


async def _create(jobs: Jobs, label: str | None = None) -> Job:
    await discard(jobs, *jobs.expired())
    try:
        return jobs.create(label)
    except FullError:
        raise HTTPException(503, "the queue is full; try again in a few minutes") from None


def _too_large(limits: Limits) -> str:
    return f"larger than the {limits.max_bytes // 1_000_000} MB allowed here"


async def receive(request: Request, destination: Path, limits: Limits) -> str:
    """Write a request's body to a new file without blocking the event loop; return its SHA-256.

    Raises:
        TooLargeError: the body exceeds the limit.
        TimeoutError: the upload stalled, or took too long.
        ClientDisconnect: the client disconnected.
    """
    digest, num_bytes = hashlib.sha256(), 0
    parts = request.stream()
    deadline = asyncio.get_running_loop().time() + limits.upload_seconds
    with destination.open("xb") as file:
        while True:
            async with asyncio.timeout_at(deadline), asyncio.timeout(limits.silence_seconds):
                part = await anext(parts, None)
            if part is None:
                return digest.hexdigest()
            num_bytes += len(part)
            if num_bytes > limits.max_bytes:
                raise TooLargeError
            await asyncio.to_thread(_store, part, file, digest)


def _store(part: bytes, file: BinaryIO, digest: Any) -> None:
    digest.update(part)
    file.write(part)
