from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.compute import cores
from pipeline_lib.compute.cores import num_cores

ROOT = Path(cores.__file__).parents[2]


@pytest.fixture
def sixty_four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, whose cgroups are in the folder that is returned."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(cores, "PROCESS_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def test_without_cgroups_the_affinity_counts(sixty_four_cores: Path):
    assert num_cores() == 64


@pytest.mark.parametrize(("limit", "expected"), [("max", 64), ("200000", 2), ("150000", 2), ("50000", 1), ("9900000", 64)])
def test_a_container_of_version_2_has_its_quota(sixty_four_cores: Path, limit: str, expected: int):
    write(sixty_four_cores / "self", "0::/\n")
    write(sixty_four_cores / "cgroup/cpu.max", f"{limit} 100000\n")
    assert num_cores() == expected


def test_the_least_quota_on_the_way_up_counts(sixty_four_cores: Path):
    write(sixty_four_cores / "self", "0::/user.slice/job\n")
    write(sixty_four_cores / "cgroup/user.slice/cpu.max", "300000 100000\n")
    write(sixty_four_cores / "cgroup/user.slice/job/cpu.max", "max 100000\n")
    assert num_cores() == 3


@pytest.mark.parametrize(("limit", "expected"), [("-1", 64), ("400000", 4)])
@pytest.mark.parametrize("path", ["/", "/docker/0123"], ids=["own", "the host's"])
def test_a_container_of_version_1_has_its_quota(sixty_four_cores: Path, limit: str, expected: int, path: str):
    write(sixty_four_cores / "self", f"5:memory:/else\n4:cpu,cpuacct:{path}\n0::/\n")
    write(sixty_four_cores / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", f"{limit}\n")
    write(sixty_four_cores / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert num_cores() == expected


WITHOUT_LINUX = """
import importlib, os, pkgutil
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "pidfd_open", "memfd_create"):
    delattr(os, name)
for package in ("pipeline_lib", "tasks", "flows"):
    for module in pkgutil.walk_packages([package], package + "."):
        if "alstm_kernels" not in module.name:
            importlib.import_module(module.name)
from pipeline_lib.compute.cores import core_numbers, num_cores
assert 1 <= num_cores() <= len(core_numbers()) == os.cpu_count()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_nothing_of_linux_is_needed_to_import_everything():
    """As on macOS, which has neither these functions nor Triton."""
    subprocess.run([sys.executable, "-c", WITHOUT_LINUX], cwd=ROOT, check=True, timeout=300)
