"""Render the demo's collection: archives, split files, groups and boxes, as a user would have HMDB-51.

Beside them, pretrain the backbone that the demo's RGB stream uses. `params/demo.yaml` runs the pipeline on both.
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

BACKBONE, NUM_PICTURES = "backbone.safetensors", 1600


def main(arguments: Sequence[str] | None = None) -> None:
    """Render what the command line asks for, unless it is there."""
    options = vars(_parser().parse_args(arguments))
    folder, num_pictures = options.pop("folder"), options.pop("pictures")
    started = time.monotonic()
    try:
        rendered = make_collection(folder, CollectionParams(**options))
    except UserError as error:
        sys.exit(f"demo: {error}")
    print(f"{folder}: rendered in {time.monotonic() - started:.0f} s" if rendered else f"{folder}: already rendered")
    if num_pictures:
        _pretrain(folder / BACKBONE, num_pictures, options["seed"])


def _pretrain(path: Path, num_pictures: int, seed: int) -> None:
    from demo.pretraining import pretrain_backbone  # imports torch, which the workers that render do not need

    started = time.monotonic()
    made = pretrain_backbone(path, num_pictures=num_pictures, seed=seed)
    print(f"{path}: pretrained in {time.monotonic() - started:.0f} s" if made else f"{path}: already pretrained")


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
    add(
        "--pictures",
        type=int,
        default=NUM_PICTURES,
        metavar="N",
        help="pictures of single people to pretrain the backbone on; 0 for no backbone",
    )
    return parser


if __name__ == "__main__":
    main()
