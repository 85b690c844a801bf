"""compose.yaml, by docker-compose itself and by the specification."""

from __future__ import annotations

import json

import pytest

from tests.deploy.checking import ROOT, changed, check

COMPOSE = ROOT / "compose.yaml"
GPU = ROOT / "deploy" / "compose.gpu.yaml"
NAMES = [line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"]
SECRETS = {name: f"secret-of-{name}" for name in NAMES}


def config(*files, **environment):
    options = [option for file in files for option in ("--file", file)]
    return check("docker-compose", "--project-directory", ROOT, *options, "config", "--format=json", **environment)


@pytest.fixture(scope="module")
def services():
    result = config(COMPOSE, GPU, **SECRETS)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["services"]


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_that_is_missing_or_empty_stops_compose(name):
    result = config(COMPOSE, **SECRETS | {name: ""})
    assert result.returncode != 0
    assert name in result.stderr


def test_the_specification_is_kept():
    for file in (COMPOSE, GPU):
        result = check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("condition: service_healthy", "condition: service_helthy"),
        ("healthcheck:", "healthchek:"),
        ("retries: 20", "retries: [20]"),
    ],
)
def test_both_find_a_fault(tmp_path, pattern, replacement):
    file = changed(COMPOSE, pattern, replacement, tmp_path)
    assert config(file, **SECRETS).returncode != 0
    assert check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file).returncode != 0


def test_only_loopback_ports_are_published(services):
    published = {name: [port.get("host_ip") for port in service.get("ports", ())] for name, service in services.items()}
    assert {address for addresses in published.values() for address in addresses} == {"127.0.0.1"}
    assert {name for name, addresses in published.items() if addresses} == {"prefect", "mlflow", "ray-head"}


def test_every_ray_node_has_the_token(services):
    nodes = [service for service in services.values() if "ray start" in " ".join(service["command"] or ())]
    assert len(nodes) == 3
    assert {node["environment"]["RAY_AUTH_TOKEN"] for node in nodes} == {SECRETS["RAY_AUTH_TOKEN"]}


def test_whoever_is_waited_for_healthy_has_a_healthcheck(services):
    waited_for = {
        name
        for service in services.values()
        for name, on in service.get("depends_on", {}).items()
        if on["condition"] == "service_healthy"
    }
    assert waited_for == {name for name, service in services.items() if "healthcheck" in service}


def test_all_of_har_shares_one_workspace(services):
    workspaces = {
        volume["source"]
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume["target"] == "/opt/har/workspace"
    }
    assert workspaces == {"workspace"}
