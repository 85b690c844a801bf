"""KubeRay's files: their own fields by a schema of what is used, their pods by Kubernetes' schema, and what a run expects."""

from __future__ import annotations

import json

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.checking import ROOT, changed, pinned

SCHEMA = json.loads((ROOT / "tests" / "deploy" / "kuberay.schema.json").read_text())
FILES = {name: ROOT / "deploy" / "kuberay" / f"{name}.yaml" for name in ("raycluster", "rayjob")}


def check_file(path):
    """Raise ValidationError for a field or a value that KubeRay or Kubernetes does not know."""
    resource = yaml.safe_load(path.read_text())
    jsonschema.validate(resource, SCHEMA)
    for group in groups(resource):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def cluster_of(resource):
    return resource["spec"].get("rayClusterSpec", resource["spec"])


def groups(resource):
    cluster = cluster_of(resource)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture(params=FILES)
def resource(request):
    return yaml.safe_load(FILES[request.param].read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_valid(name):
    check_file(FILES[name])


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("minReplicas", "minReplica"),
        ("maxReplicas: 8", "maxReplicas: many"),
        ("mode: token", "mode: disabled"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ("terminationGracePeriodSeconds: 60", "terminationGracePeriodSecond: 60"),
        ("containers:", "container:"),
        ("mountPath:", "mountpath:"),
        ("runAsUser: 1000", "runAsUser: har"),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_a_fault_is_found(tmp_path, name, pattern, replacement):
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_file(changed(FILES[name], pattern, replacement, tmp_path))


def test_the_version_is_that_of_the_image(resource):
    assert cluster_of(resource)["rayVersion"] == pinned("ray")


def test_the_gpu_group_scales_to_zero(resource):
    cluster = cluster_of(resource)
    (gpu,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert gpu["minReplicas"] == gpu["replicas"] == 0
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_every_mount_has_a_volume(resource):
    for group in groups(resource):
        spec = group["template"]["spec"]
        mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}
