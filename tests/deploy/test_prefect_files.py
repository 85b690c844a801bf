"""prefect.yaml and its counterpart for Kubernetes. Prefect ignores a key that it does not know, so these tests do not."""

from __future__ import annotations

import inspect

import pytest
import yaml

from flows.deployments import deployment_names, deployment_parameters
from flows.har import har
from tests.deploy.checking import ROOT, changed

PROCESS = ROOT / "prefect.yaml"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "prefect.yaml"
FILE_KEYS = {"name", "definitions", "deployments", "pull"}
DEPLOYMENT_KEYS = {"name", "description", "entrypoint", "parameters", "tags", "concurrency_limit", "work_pool"}
POOL_KEYS = {"name", "job_variables"}
JOB_TEMPLATE = ROOT / "deploy" / "kubernetes" / "job-template.json"


def check_file(path):
    """Raise AssertionError for a key that Prefect would ignore, or a parameter that the flow has not."""
    file = yaml.safe_load(path.read_text())
    assert file.keys() <= FILE_KEYS
    for row in file["deployments"]:
        assert row.keys() <= DEPLOYMENT_KEYS
        assert row["work_pool"].keys() <= POOL_KEYS
        assert {"name", "entrypoint", "work_pool", "concurrency_limit"} <= row.keys()
        assert row.get("parameters", {}).keys() <= inspect.signature(har.fn).parameters.keys()
        module, function = row["entrypoint"].split(":")
        assert (ROOT / module).is_file()
        assert function == har.fn.__name__


@pytest.mark.parametrize("path", [PROCESS, KUBERNETES])
def test_every_key_is_known(path):
    check_file(path)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("concurrency_limit", "concurency_limit"),
        ("work_pool:", "workpool:"),
        ("entrypoint: flows/har.py:har", "entrypoint: flows/hare.py:har"),
        (r"parameters: \{until", "parameters: {untill"),
        (r"parameters: \{params", "parameter: {params"),
        ("deployments:\n  -", "pulls: []\ndeployments:\n  -"),
    ],
)
@pytest.mark.parametrize("path", [PROCESS, KUBERNETES])
def test_a_typo_is_found(tmp_path, path, pattern, replacement):
    with pytest.raises((AssertionError, KeyError)):
        check_file(changed(path, pattern, replacement, tmp_path))


@pytest.mark.parametrize("path", [PROCESS, KUBERNETES])
def test_both_files_offer_the_deployments_of_har_up(path):
    rows = yaml.safe_load(path.read_text())["deployments"]
    offered = {row["name"]: row.get("parameters", {}) for row in rows}
    assert offered == {name: deployment_parameters(name) for name in deployment_names()}
