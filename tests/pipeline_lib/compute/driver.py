"""A process with an engine for test_cluster.py: makes the calls that come on its standard input, and prints their outcomes."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from functools import partial
from typing import Any

from pipeline_lib.compute.engine import Needs, cancel_work, open_engine, run_at
from tests.pipeline_lib.compute import functions

_printing = threading.Lock()


def tell(number: int | None, kind: str, value: Any) -> None:
    with _printing:
        sys.stdout.write(json.dumps([number, kind, value]) + "\n")
        sys.stdout.flush()


def call(number: int, function: str, args: list[Any], needs: dict[str, Any], callbacks: list[str]) -> None:
    try:
        named = {name: partial(tell, number, "event") for name in callbacks}
        tell(number, "result", run_at(getattr(functions, function), *args, needs=Needs(**needs), callbacks=named))
    except BaseException as error:
        tell(number, type(error).__name__, str(error))


def main(address: str | None, **options: Any) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    threads = []
    with open_engine(address, **options):
        try:
            for line in sys.stdin:
                request = json.loads(line)
                request["needs"] = {name: math.inf if value == "all" else value for name, value in request["needs"].items()}
                threads.append(threading.Thread(target=call, kwargs=request))
                threads[-1].start()
        except BaseException:
            cancel_work()
            raise


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
