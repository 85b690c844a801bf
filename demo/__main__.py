"""Render the demo's collection: archives, split files, groups and boxes, as a user would have HMDB-51.

`params/demo.yaml` runs the pipeline on it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo.collection import CollectionParams
from demo.packing import make_collection
from pipeline_lib.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Render what the command line asks for, unless it is there."""
    options = vars(_parser().parse_args(arguments))
    folder = options.pop("folder")
    started = time.monotonic()
    try:
        rendered = make_collection(folder, CollectionParams(**options))
    except UserError as error:
        sys.exit(f"demo: {error}")
    print(f"{folder}: rendered in {time.monotonic() - started:.0f} s" if rendered else f"{folder}: already rendered")


def _parser() -> argparse.ArgumentParser:
    default = CollectionParams()
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="where the collection goes; params/demo.yaml reads workspace/demo-collection")
    add("--videos-per-class", type=int, default=default.videos_per_class, metavar="N", help="videos of each class")
    add("--groups-per-class", type=int, default=default.groups_per_class, metavar="N", help="groups in each class")
    add("--seconds", type=float, default=default.seconds, metavar="S", help="typical length of a video")
    add("--seed", type=int, default=default.seed, metavar="N", help="another seed renders other videos")
    return parser


if __name__ == "__main__":
    main()
