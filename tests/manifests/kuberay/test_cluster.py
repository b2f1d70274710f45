"""The manifests, as KubeRay and Ray read them. ``MFIMAGE_WRITE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.manifests.kuberay import raycluster, rayjob, rayservice
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.rayservice import ServiceOptions
from mfimage.runtime.layout import placement_resource
from tests.manifests.kuberay.samples import (
    DIGEST,
    FULL,
    IMAGE,
    JOB,
    MANIFESTS,
    cluster_of,
    parsed,
    pods_of,
)

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "kuberay"
KINDS = pytest.mark.parametrize("name", MANIFESTS)

# What the resources cannot do without, and of which type: a number where a string belongs is
# refused by the API server, or worse, is another version.
REQUIRED = {
    "apiVersion": str,
    "kind": str,
    "metadata.name": str,
    "metadata.labels.*": str,
    "metadata.annotations.*": str,
}
REQUIRED_CLUSTER = {
    "rayVersion": str,
    "authOptions.mode": str,
    "enableInTreeAutoscaling": bool,
    "headGroupSpec.rayStartParams.*": str,
    "workerGroupSpecs.*.groupName": str,
    "workerGroupSpecs.*.replicas": int,
    "workerGroupSpecs.*.minReplicas": int,
    "workerGroupSpecs.*.maxReplicas": int,
}
REQUIRED_POD = {
    "containers.*.name": str,
    "containers.*.image": str,
    "containers.*.imagePullPolicy": str,
    "containers.*.env.*.name": str,
    "containers.*.resources.requests.cpu": str,
    "containers.*.resources.limits.memory": str,
}
REQUIRED_SPEC = {
    "RayCluster": {},
    "RayJob": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "submissionMode": str,
    },
    "RayService": {"serveConfigV2": str, "excludeHeadPodFromServeSvc": bool},
}


def found(plain: Any, path: str) -> Iterator[Any]:
    first, _, rest = path.partition(".")
    if not first:
        yield plain
    elif first == "*":
        for each in plain.values() if isinstance(plain, dict) else plain:
            yield from found(each, rest)
    else:
        yield from found(plain[first], rest)


def check(plain: Any, required: dict[str, type]) -> None:
    for path, kind in required.items():
        values = list(found(plain, path))
        assert values, path
        assert {type(value) for value in values} == {kind}, path


@KINDS
def test_golden(name):
    text = MANIFESTS[name]()
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@KINDS
def test_what_is_required_is_there(name):
    manifest = parsed(MANIFESTS[name]())
    check(manifest, REQUIRED)
    check(manifest["spec"], REQUIRED_SPEC[manifest["kind"]])
    check(cluster_of(manifest), REQUIRED_CLUSTER)
    for pod in pods_of(manifest).values():
        check(pod, REQUIRED_POD)


def schemas() -> Path:
    """KubeRay's own, which are too large to stand here."""
    given = os.environ.get("MFIMAGE_KUBERAY_SCHEMAS")
    folder = Path(given) if given else ROOT.parent / "shared" / "kuberay"
    if not (folder / "validate").exists():
        pytest.skip(f"no KubeRay schemas in {folder}; MFIMAGE_KUBERAY_SCHEMAS names another folder")
    pytest.importorskip("jsonschema", reason="KubeRay's schemas need jsonschema")
    return folder


@pytest.fixture(scope="module")
def validate() -> list[str]:
    return [sys.executable, str(schemas() / "validate")]


def test_kuberays_schemas_take_all_of_them(validate):
    files = [str(GOLDEN / f"{name}.yaml") for name in MANIFESTS]
    done = subprocess.run([*validate, *files], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(MANIFESTS)} checked, 0 faults\n"


@KINDS
def test_head_and_workers_are_one_image_and_unprivileged(name):
    manifest = parsed(MANIFESTS[name]())
    containers = [
        container for pod in pods_of(manifest).values() for container in pod["containers"]
    ]
    assert len({container["image"] for container in containers}) == 1
    for pod in pods_of(manifest).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"].get("runAsUser", 1000) == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers:
        # Of the container's own: KubeRay copies it to what it puts beside it.
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("kind", ["raycluster", "rayjob", "rayservice"])
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_the_auth_mode_is_said_to_everything_that_runs_ray(kind, mode):
    cluster = dataclasses.replace(FULL, auth=mode)
    manifest = parsed(
        {
            "raycluster": lambda: raycluster.write(IMAGE, cluster),
            "rayjob": lambda: rayjob.write(IMAGE, cluster, JOB),
            "rayservice": lambda: rayservice.write(IMAGE, cluster, ServiceOptions()),
        }[kind]()
    )
    assert cluster_of(manifest)["authOptions"]["mode"] == mode
    for pod in pods_of(manifest).values():
        assert {"name": "RAY_AUTH_MODE", "value": mode} in pod["containers"][0]["env"]
    autoscaler = cluster_of(manifest)["autoscalerOptions"]
    # KubeRay tells the autoscaler of tokens, and would say it twice.
    said = [{"name": "RAY_AUTH_MODE", "value": "disabled"}]
    assert autoscaler.get("env", []) == (said if mode == "disabled" else [])


@KINDS
def test_nothing_runs_on_the_head(name):
    params = cluster_of(parsed(MANIFESTS[name]()))["headGroupSpec"]["rayStartParams"]
    assert params["num-cpus"] == "0"
    assert "resources" not in params


def test_secrets_are_for_what_runs_the_function():
    pods = pods_of(parsed(rayjob.write(IMAGE, FULL, JOB)))
    named = {name: [e["name"] for e in pod["containers"][0]["env"]] for name, pod in pods.items()}
    assert "TOKEN" in named["ray-head"]
    assert "TOKEN" in named["ray-worker"]
    assert "TOKEN" not in named["ray-job-submitter"]


def test_three_readers_find_the_placement_resource():
    """Bash, KubeRay (``getResourcesMap``) and Ray's autoscaler (``_get_custom_resources``)."""
    (group,) = cluster_of(parsed(raycluster.write(IMAGE, ClusterOptions())))["workerGroupSpecs"]
    text = group["rayStartParams"]["resources"]
    said = subprocess.run(
        ["/bin/bash", "-c", "--", f'printf "%s" --resources={text}'],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {placement_resource(DIGEST): 1000}
    assert json.loads(said.stdout.removeprefix("--resources=")) == expected
    assert json.loads(text.strip("'\"` ")) == expected
    assert json.loads(text[1:-1].replace("\\", "")) == expected
    assert placement_resource(DIGEST) == "mfimage-0123456789abcdef"


@pytest.mark.filterwarnings("ignore")
def test_rays_own_autoscaler_reads_it():
    reader = pytest.importorskip(
        "ray.autoscaler._private.kuberay.autoscaling_config", reason="needs ray[default]"
    )
    manifest = parsed(raycluster.write(IMAGE, FULL))
    config = reader._derive_autoscaling_config_from_ray_cr(manifest)
    nodes = config["available_node_types"]
    assert nodes["headgroup"]["resources"] == {"CPU": 0, "GPU": 0, "memory": 8 * 2**30}
    assert nodes["workers"]["resources"] == {
        "CPU": 4, "GPU": 2, "memory": 16 * 2**30, placement_resource(DIGEST): 1000,
    }  # fmt: skip
    assert (nodes["workers"]["min_workers"], nodes["workers"]["max_workers"]) == (1, 8)
    assert config["idle_timeout_minutes"] == 2


def test_a_service_is_ready_when_it_answers():
    pods = pods_of(parsed(rayservice.write(IMAGE, ClusterOptions(), ServiceOptions())))
    (worker,) = pods["ray-worker"]["containers"]
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    assert {"name": "serve", "containerPort": 8000} in worker["ports"]
    drained = int(worker["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pods["ray-worker"]["terminationGracePeriodSeconds"] > drained
    assert "readinessProbe" not in pods["ray-head"]["containers"][0], "KubeRay's own is right"


@pytest.mark.parametrize("policy", [None, "Never"])
def test_a_tag_is_pulled_again_a_digest_is_not(policy):
    cluster = ClusterOptions(image_pull_policy=policy)
    by_tag = dataclasses.replace(IMAGE, reference="iris:1")
    policies = [
        pods_of(parsed(raycluster.write(image, cluster)))["ray-worker"]["containers"][0][
            "imagePullPolicy"
        ]
        for image in (IMAGE, by_tag)
    ]
    assert policies == ([policy] * 2 if policy else ["IfNotPresent", "Always"])
