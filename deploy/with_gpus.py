"""Run a command on a Ray cluster that scales, once it has the GPUs that the command shall use.

    python deploy/with_gpus.py 4 har run hmdb51 --engine auto

`har run` counts the GPUs when it joins a cluster, and refuses work that no node can hold. A group of nodes that has scaled to
zero would stay there. So this asks Ray's autoscaler for nodes with so many GPUs, waits for them, and lets them go at the end.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources

SECONDS_BETWEEN_CHECKS = 2.0


def main() -> int:
    """Return the exit code of the command; exit with 1 if the GPUs did not come in time."""
    options = _parser().parse_args()
    ray.init(address="auto", log_to_driver=False)
    request_resources(bundles=[{"GPU": 1}] * options.gpus)
    try:
        if not wait_for_gpus(options.gpus, options.minutes):
            sys.exit(f"with_gpus: {options.gpus} GPUs did not join the cluster within {options.minutes:g} minutes")
        return run([options.command, *options.arguments])
    finally:
        request_resources(bundles=[])


def wait_for_gpus(number: int, minutes: float) -> bool:
    """Return whether the cluster has so many GPUs, for which it gets some minutes."""
    end = time.monotonic() + 60 * minutes
    while ray.cluster_resources().get("GPU", 0) < number:
        if time.monotonic() > end:
            return False
        time.sleep(SECONDS_BETWEEN_CHECKS)
    return True


def run(command: list[str]) -> int:
    """Run a command, hand on SIGINT and SIGTERM to it, and return its exit code."""
    process = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run a command once a Ray cluster that scales has its GPUs.")
    parser.add_argument("gpus", type=int, metavar="GPUS", help="number of GPUs to wait for")
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to wait for the GPUs; default: %(default)g")
    return parser


if __name__ == "__main__":
    sys.exit(main())
