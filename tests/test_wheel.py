"""An installed package has all that a run needs from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
FIND = "from pipeline_lib.params import load_params; print(load_params(sys.argv[1]).fetch.kind)"
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder with the contents of a wheel, built from a copy since the build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "workspace", "site", "tests", "docs", "*.egg-info", "build", "__pycache__")
    shutil.copytree(REPOSITORY, folder / "source", ignore=ignore)
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_has_parameter_files_pages_types_and_licence(installed):
    for pattern in ("params/*.yaml", "flows/**/*.j2", "pipeline_lib/**/*.js", "pipeline_lib/**/*.css", "pipeline_lib/py.typed"):
        ours = {path.relative_to(REPOSITORY) for path in REPOSITORY.glob(pattern)}
        assert ours
        assert ours <= {path.relative_to(installed) for path in installed.glob(pattern)}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_a_wheel_has_no_tests(installed):
    assert not (installed / "tests").exists()
    assert not (installed / "benchmarks").exists()


def test_shipped_parameters_are_found_from_another_folder(installed, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); {FIND}"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, "hmdb51"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout == "hmdb51\n", result.stderr
