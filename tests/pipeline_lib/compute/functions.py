"""Functions that the tests have workers call: importable there, and without PyTorch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger("pipeline_lib.test_engine")


class OddError(Exception):
    """Cannot be unpickled: its constructor takes what `args` has not."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Unreadable:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not for sending")


def add(one: float, two: float, *, scale: float = 1) -> float:
    return (one + two) * scale


def where(seconds: float = 0.0) -> dict[str, Any]:
    time.sleep(seconds)
    return {
        "pid": os.getpid(),
        "thread": threading.get_ident(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "cwd": str(Path.cwd()),
        "node": os.environ.get("TEST_NODE"),
        "modules": sorted({"prefect", "mlflow", "torch"} & set(sys.modules)),
        "cores": len(os.sched_getaffinity(0)),
    }


def meet(folder: str | Path, number: int) -> dict[str, Any]:
    """Wait until so many calls, in processes of their own, are under way."""
    folder = Path(folder)
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 20
    while len(list(folder.iterdir())) < number and time.monotonic() < end:
        time.sleep(0.02)
    return where()


def fail(kind: str) -> None:
    if kind == "odd":
        raise OddError("this", "that")
    try:
        raise KeyError("first")
    except KeyError as error:
        raise FileNotFoundError(2, "no such video", "a.avi") from error


def say(number: int, on_frame: Callable[[Any], None], seconds: float = 0.0) -> int:
    for index in range(number):
        on_frame(index)
        time.sleep(seconds)
    return number


def say_changing(on_rows: Callable[[Any], None]) -> None:
    rows: list[int] = []
    for index in range(3):
        rows.append(index)
        on_rows(rows)


def say_unreadable(on_frame: Callable[[Any], None]) -> str:
    on_frame(Unreadable())
    return "done"


def log(line: str) -> None:
    logger.info("%s by %d", line, os.getpid())
    thread = threading.Thread(target=logger.info, args=("from a thread of its own",))
    thread.start()
    thread.join()
    logging.getLogger("other").info("not sent")
    warnings.warn(f"a warning of Python, {line}", stacklevel=1)  # of equal ones a process shows the first


def kill_self(on_frame: Callable[[Any], None], seconds: float = 0.5) -> None:
    on_frame("before")
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def live(file: str | Path, seconds: float) -> int:
    """Write the time and the process into the file, ten times a second."""
    file, end = Path(file), time.monotonic() + seconds
    while time.monotonic() < end:
        draft = file.with_name(f"{file.name}.draft")  # a suffix would be replaced: "0" and "0.5" had one draft
        draft.write_text(f"{os.getpid()} {time.time()}", encoding="utf-8")
        draft.rename(file)
        time.sleep(0.1)
    return os.getpid()
