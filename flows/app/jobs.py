"""Videos in turn for their prediction: one worker, and nothing of them stays for long.

All that belongs to a job lies in its own folder. The event loop makes, finds and forgets jobs; the worker only changes the one
that it runs.
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
"""How long a finished job's files stay."""
WAITING_AT_MOST = 10
STOP_SECONDS = 5.0
"""How long the end of the server waits for the worker."""

State = Literal["uploading", "waiting", "running", "done", "failed", "cancelled"]

logger = logging.getLogger(__name__)


class FullError(Exception):
    """Too many videos wait already."""


class CancelledJobError(Exception):
    """The visitor has left."""


@dataclass
class Job:
    """One video's way from the visitor to the result."""

    folder: Path
    label: str | None = None
    """What the video shows, where that is known."""
    video: Path | None = None
    sha256: str | None = None
    """Of the video."""
    state: State = "uploading"
    turn: int = 0
    frames: tuple[int, int] = (0, 0)
    """Frames done, and all of them; (0, 0) while the video is brought to the models' rate."""
    error: str | None = None
    """One line for the visitor."""
    is_cancelled: bool = False
    since: float = field(default_factory=time.monotonic)
    """When its state last changed."""

    @property
    def id(self) -> str:
        """What only its visitor knows."""
        return self.folder.name

    @property
    def is_pending(self) -> bool:
        """Whether it is, or will be, the worker's."""
        return self.state in ("waiting", "running")

    def enter(self, state: State) -> None:
        """Change the state."""
        self.state, self.since = state, time.monotonic()

    def delete_files(self) -> None:
        """Delete its folder; not on an event loop, which this may hold up."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def advance(self, done: int, total: int) -> None:
        """Note progress.

        Raises:
            CancelledJobError: nobody waits for it any more.
        """
        if self.is_cancelled:
            raise CancelledJobError
        self.frames = done, total


class Jobs:
    """All jobs of a server, and the thread that does them in turn."""

    def __init__(self, folder: Path, work: Callable[[Job], None]) -> None:
        """Prepare to do jobs by `work`, in folders of their own in `folder`; what a killed server left long ago is removed."""
        self._folder, self._work = folder, work
        self._jobs: dict[str, Job] = {}
        self._turns = itertools.count(1)
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if time.time() - left.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        # A daemon: Python's end must not wait for an ffmpeg that nobody needs.
        self._worker = threading.Thread(target=self._do_all, name="predict", daemon=True)
        self._worker.start()

    def create(self, label: str | None = None) -> Job:
        """Return a new job, whose video is still to come.

        Raises:
            FullError: enough wait already.
        """
        if sum(job.is_pending or job.state == "uploading" for job in self._jobs.values()) > WAITING_AT_MOST:
            raise FullError
        job = Job(self._folder / secrets.token_urlsafe(18), label)
        job.folder.mkdir()
        self._jobs[job.id] = job
        return job

    def get(self, identity: str) -> Job | None:
        """Return a job, unless there never was such a one or it is long over."""
        return self._jobs.get(identity)

    def find_done(self, sha256: str, label: str | None) -> Job | None:
        """Return a job that has the result of the same video already; it stays for as long again."""
        for job in self._jobs.values():
            if (job.state, job.sha256, job.label) == ("done", sha256, label):
                job.enter("done")
                return job
        return None

    def submit(self, job: Job) -> None:
        """Let a job, whose video is there, wait for its turn."""
        job.turn = next(self._turns)
        job.enter("waiting")
        self._queue.put(job)

    def place(self, job: Job) -> int:
        """Return how many jobs come before a waiting one."""
        return sum(other.is_pending and other.turn < job.turn for other in self._jobs.values())

    def cancel(self, job: Job) -> None:
        """Do not begin a job, or stop it at its next frames."""
        job.is_cancelled = True
        if job.state == "waiting":
            job.enter("cancelled")

    def forget(self, job: Job) -> None:
        """Know nothing of a job any more; its files are the caller's to delete."""
        self._jobs.pop(job.id, None)

    def remove(self, job: Job) -> None:
        """Forget a job and delete its files."""
        self.forget(job)
        job.delete_files()

    def over(self) -> list[Job]:
        """Return the jobs that are long over."""
        earliest = time.monotonic() - KEPT_SECONDS
        return [job for job in self._jobs.values() if not job.is_pending and job.since < earliest]

    def close(self) -> None:
        """Stop the worker and remove everything."""
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
            job.error = "something went wrong here; the terminal of har app tells what"
            job.enter("failed")
        else:
            job.enter("done")
