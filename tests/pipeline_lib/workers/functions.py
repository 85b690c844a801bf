"""What workers call in tests: sent to other processes, hence in a module of its own, and without torch."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time


def describe(*args, **kwargs):
    return {"args": args, "kwargs": kwargs, "pid": os.getpid()}


def place():
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {name: os.environ.get(name) for name in names} | {"cores": os.sched_getaffinity(0)}


def threads_of_torch():
    import torch

    return torch.get_num_threads()


def count_to(number, on_step):
    return [on_step(step) for step in range(number)]


def log_lines(name):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "at %d", level)


def fail(error):
    raise error


class OddError(Exception):
    """Cannot be unpickled: it wants two arguments and hands on one."""

    def __init__(self, first, second):
        super().__init__(first)


def fail_oddly():
    raise OddError("strange", "things")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


_together = threading.Barrier(3)


def meet():
    """Return once three threads of the process are here."""
    _together.wait(30)
    return os.getpid()


def sleep_for_ever(on_start):
    on_start(os.getpid())
    time.sleep(3600)
