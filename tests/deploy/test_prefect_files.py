"""prefect.yaml, its counterpart for Kubernetes, and the job of a run there.

Prefect ignores a key that it does not know, so these tests do not.
"""

from __future__ import annotations

import inspect
import json
import re

import kubernetes_validate
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
TEMPLATE = ROOT / "deploy" / "kubernetes" / "job-template.json"
OF_THE_WORKER = {"command": ["prefect", "flow-run", "execute"], "labels": {}, "name": "full", "namespace": "default"}


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


def job_variables():
    (variables,) = {
        json.dumps(row["work_pool"]["job_variables"]) for row in yaml.safe_load(KUBERNETES.read_text())["deployments"]
    }
    return json.loads(variables)


def rendered(node, values):
    """Return the template with its variables' values, as Prefect renders it."""
    match node:
        case dict():
            return {key: rendered(value, values) for key, value in node.items()}
        case list():
            return [rendered(value, values) for value in node]
        case str() if whole := re.fullmatch(r"{{ (\w+) }}", node):
            return values[whole[1]]
        case str():
            return re.sub(r"{{ (\w+) }}", lambda match: str(values[match[1]]), node)
        case _:
            return node


MISPLACED = ("completions", "parallelism")
"""Fields of a job that Prefect's worker demands in the pod's specification, where Kubernetes ignores them."""


def check_job(template):
    """Raise KeyError for a variable that has no value, ValidationError for a job that Kubernetes refuses."""
    env = [{"name": name, "value": value} for name, value in job_variables()["env"].items()]
    values = OF_THE_WORKER | job_variables() | {"env": env}
    job = rendered(template["job_configuration"]["job_manifest"], values)
    pod = job["spec"]["template"]["spec"]
    assert [pod.pop(name) for name in MISPLACED] == [1, 1]
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    return pod


def test_the_pools_variables_are_those_of_its_template():
    variables = json.loads(TEMPLATE.read_text())["variables"]
    assert job_variables().keys() <= variables["properties"].keys()
    assert set(variables["required"]) <= job_variables().keys()


def test_kubernetes_takes_the_job_of_a_run():
    pod = check_job(json.loads(TEMPLATE.read_text()))
    assert pod["containers"][0]["image"] == "har:1.0"
    assert "with_gpus.py 4" in pod["containers"][0]["command"][2]


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [('"restartPolicy"', '"restartpolicy"'), ('"backoffLimit": 0', '"backoffLimit": "none"'), ("{{ image }}", "{{ picture }}")],
)
def test_a_fault_in_the_job_is_found(tmp_path, pattern, replacement):
    template = json.loads(changed(TEMPLATE, pattern, replacement, tmp_path).read_text())
    with pytest.raises((KeyError, kubernetes_validate.ValidationError)):
        check_job(template)
