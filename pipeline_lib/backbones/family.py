"""Families of backbones: each builds its networks in its own file, and `registry.py` lists them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pipeline_lib.backbones.network import Network
from pipeline_lib.backbones.weights import load_weights
from pipeline_lib.errors import UserError

Input = Literal["image", "clip"]
"""What a backbone takes: single images (frames, or stacks of flows), or clips."""


class Family(ABC):
    """Networks that are built in the same way."""

    input: Input
    prefix: str = ""
    """Beginning of the backbones' names, up to and including its colon."""
    pretrained: str | None = None
    """Word for `weights` that means the published weights: lower-case letters, digits and `_`."""

    def has(self, name: str) -> bool:
        """Return whether a backbone's name belongs to this family. A prefix decides alone."""
        return name.startswith(self.prefix) if self.prefix else name in self.names()

    def check(self, name: str) -> None:
        """Raise UserError, with similar names, if the family has no network with this name."""
        if name.removeprefix(self.prefix) not in self.names():
            raise unknown(name, [self.prefix + known for known in self.names()])

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return the names of the networks, without the prefix."""

    @abstractmethod
    def initialise(self, name: str, seed: int) -> Network:
        """Return the network with seeded random weights, without advancing the global random generator."""

    def download(self, name: str) -> Network:
        """Return the network with its published weights, if the family has a word for them.

        Raises:
            UserError: they cannot be downloaded.
        """
        raise NotImplementedError

    def read(self, name: str, path: Path, seed: int, channels_in: int) -> Network:
        """Return the network with the weights of a state dict.

        Raises:
            UserError: the file cannot be read, or it does not fit the network.
        """
        network = self.initialise(name, seed)
        load_weights(network, name, path, channels_in)
        return network


def unknown(name: str, known: Collection[str]) -> UserError:
    """Return the error for a name that no backbone has, with similar ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or ["vgg16"]
    return UserError(f"features.backbone = {name}: there is no backbone with this name; similar: {', '.join(near)}")


def not_downloaded(name: str, word: str, source: str, error: Exception) -> UserError:
    """Return the error for weights that could not be downloaded."""
    return UserError(
        f"features.weights = {word}: {source} could not download the weights of {name} "
        f"({' '.join(str(error).split())}); offline, set `features.weights: PATH` to a local state dict"
    )


def import_extra(name: str, package: str, extra: str) -> Any:
    """Import a package that only an extra of har installs.

    Raises:
        UserError: it is not installed.
    """
    # The Hub's client tells each of its retries before the one error that says what failed.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise _not_installed(name, package, extra, f" ({error})") from None


def check_extra(name: str, package: str, extra: str) -> None:
    """Raise UserError if a package that only an extra of har installs is absent; does not import it."""
    if importlib.util.find_spec(package) is None:
        raise _not_installed(name, package, extra)


def _not_installed(name: str, package: str, extra: str, reason: str = "") -> UserError:
    return UserError(f"features.backbone = {name}: {package} is not installed{reason}; run `pip install 'har[{extra}]'`")
