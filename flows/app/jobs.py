"""Queue of uploaded videos, predicted by one worker thread and deleted after an hour.

Each job has a folder of its own. The event loop creates, finds and removes jobs; the worker only changes the job that it runs.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline_lib.video.ffmpeg import VideoError

KEPT_SECONDS = 3600.0
"""Lifetime of a finished job's files."""
MAX_WAITING = 10
"""Videos that wait or arrive while one is predicted."""
MAX_KEPT = 100
"""Videos kept with their results; the oldest go first."""
STOP_SECONDS = 5.0
"""Time that the worker gets to end when the server stops."""

State = Literal["uploading", "waiting", "running", "done", "failed", "cancelled"]

logger = logging.getLogger(__name__)


class FullError(Exception):
    """The queue is full."""


class CancelledJobError(Exception):
    """The user cancelled the job or left the page."""


@dataclass
class Job:
    """The upload and prediction of one video."""

    folder: Path
    label: str | None = None
    """True class, if known."""
    video: Path | None = None
    sha256: str | None = None
    """Digest of the video."""
    state: State = "uploading"
    number: int = 0
    """Position in the order of submission."""
    frames: tuple[int, int] = (0, 0)
    """Frames done and in total; (0, 0) while the video is decoded and resampled."""
    error: str | None = None
    """One line for the user."""
    is_cancelled: bool = False
    since: float = field(default_factory=time.monotonic)
    """Monotonic time of the last change of state."""

    @property
    def id(self) -> str:
        """Secret name that only its user knows."""
        return self.folder.name

    @property
    def is_pending(self) -> bool:
        """Whether the job is queued or running."""
        return self.state in ("waiting", "running")

    def enter(self, state: State) -> None:
        """Change the state."""
        self.state, self.since = state, time.monotonic()

    def delete_files(self) -> None:
        """Delete the job's folder; blocks, so not on the event loop."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def advance(self, done: int, total: int) -> None:
        """Record progress.

        Raises:
            CancelledJobError: the job was cancelled.
        """
        if self.is_cancelled:
            raise CancelledJobError
        self.frames = done, total


class Jobs:
    """The jobs of a server and its worker thread."""

    def __init__(self, folder: Path, work: Callable[[Job], None]) -> None:
        """Start the worker, which calls `work` for each job; expired job folders in `folder` are deleted."""
        self._folder, self._work = folder, work
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if time.time() - left.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        # A daemon, so that exit does not wait for ffmpeg.
        self._worker = threading.Thread(target=self._do_all, name="predict", daemon=True)
        self._worker.start()

    def create(self, label: str | None = None) -> Job:
        """Create a job that waits for its upload.

        Raises:
            FullError: the queue is full.
        """
        if sum(job.is_pending or job.state == "uploading" for job in self._jobs.values()) > MAX_WAITING:
            raise FullError
        job = Job(self._folder / secrets.token_urlsafe(18), label)
        job.folder.mkdir()
        self._jobs[job.id] = job
        return job

    def get(self, identity: str) -> Job | None:
        """Return a job, or None if it is unknown or expired."""
        return self._jobs.get(identity)

    def find_done(self, sha256: str, label: str | None) -> Job | None:
        """Return a finished job of the same video, with a renewed lifetime."""
        for job in self._jobs.values():
            if (job.state, job.sha256, job.label) == ("done", sha256, label):
                job.enter("done")
                return job
        return None

    def submit(self, job: Job) -> None:
        """Queue an uploaded job."""
        job.number = next(self._numbers)
        job.enter("waiting")
        self._queue.put(job)

    def num_ahead(self, job: Job) -> int:
        """Return the number of jobs ahead of a waiting one."""
        return sum(other.is_pending and other.number < job.number for other in self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Cancel a waiting job, or stop a running one at its next frames."""
        job.is_cancelled = True
        if job.state == "waiting":
            job.enter("cancelled")

    def forget(self, job: Job) -> None:
        """Forget a job; the caller deletes its files."""
        self._jobs.pop(job.id, None)

    def remove(self, job: Job) -> None:
        """Forget a job and delete its files."""
        self.forget(job)
        job.delete_files()

    def expired(self) -> list[Job]:
        """Return the jobs past their lifetime, and the oldest of more finished ones than are kept."""
        earliest = time.monotonic() - KEPT_SECONDS
        old = [job for job in self._jobs.values() if not job.is_pending and job.since < earliest]
        done = sorted((job for job in self._jobs.values() if job.state == "done"), key=lambda job: job.since)
        return old + [job for job in done[: max(0, len(done) - MAX_KEPT)] if job not in old]

    def close(self) -> None:
        """Stop the worker and remove all jobs."""
        self._queue.put(None)
        for job in self._jobs.values():
            self.cancel(job)
        self._worker.join(STOP_SECONDS)
        for job in list(self._jobs.values()):
            self.remove(job)

    def _do_all(self) -> None:
        while job := self._queue.get():
            if not job.is_cancelled:
                job.enter("running")
                self._do(job)
            if job.state != "done":
                job.delete_files()

    def _do(self, job: Job) -> None:
        try:
            self._work(job)
        except CancelledJobError:
            job.enter("cancelled")
        except VideoError as error:
            job.error = error.reason
            job.enter("failed")
        except Exception:
            logger.exception("job failed")
            job.error = "internal error; see the terminal of har app"
            job.enter("failed")
        else:
            job.enter("done")
