"""The Dockerfile, what goes into the image, and its pins."""

from __future__ import annotations

import re

import pytest

from tests.deploy.checking import ROOT, changed, check

DOCKERFILE = ROOT / "Dockerfile"


def pins(path):
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_hadolint_finds_nothing():
    result = check("hadolint", DOCKERFILE)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("pattern", "replacement", "rule"),
    [
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        (r"--no-install-recommends ", "", "DL3015"),
        (r"WORKDIR /opt/har", "WORKDIR opt/har", "DL3000"),
        (r"--from=environment", "--from=enviroment", "DL3022"),
    ],
)
def test_hadolint_finds_a_fault(tmp_path, pattern, replacement, rule):
    result = check("hadolint", changed(DOCKERFILE, pattern, replacement, tmp_path))
    assert result.returncode != 0
    assert rule in result.stdout


def test_the_image_runs_as_a_user_by_number():
    assert re.findall(r"^USER (.*)$", DOCKERFILE.read_text(), re.MULTILINE) == ["1000"]


def test_each_package_is_pinned_once():
    image, constraints = pins(ROOT / "deploy" / "image.txt"), pins(ROOT / "constraints.txt")
    assert image
    assert not image.keys() & constraints.keys()


def test_what_the_build_copies_is_not_ignored():
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split()} - {"."}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert sources | packages | {"params", "prefect.yaml", "prefect.toml"} <= kept
    assert {path for path in kept if not (ROOT / path).exists()} == set()
