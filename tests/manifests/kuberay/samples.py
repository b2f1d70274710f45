"""An image, and everything that can be asked of it."""

from __future__ import annotations

from typing import Any

import yaml

from mfimage.manifests.kuberay import raycluster, rayjob, rayservice
from mfimage.manifests.kuberay.image import RayImage
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.rayjob import JobOptions
from mfimage.manifests.kuberay.rayservice import ServiceOptions
from mfimage.manifests.options import Resources, SecretRef, Toleration

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = RayImage(
    reference="registry.example.com/team/iris:1@sha256:" + "ab" * 32,
    ray_version="2.60.0",
    python_version="3.11.7",
    function="predict_iris",
    digest=DIGEST,
    parts=("default", "serve"),
)
# Known by its tag alone.
DISTANT = RayImage(reference="iris:1", ray_version="2.60", function="predict_iris")
JOB = JobOptions(input="s3://bucket/in/*.jsonl", output="s3://bucket/out")
FULL = ClusterOptions(
    name="iris",
    namespace="models",
    labels={"kueue.x-k8s.io/queue-name": "batch", "team": "1e3"},
    head=Resources(cpu="1500m", memory="8Gi"),
    worker=Resources(cpu="4", memory="16Gi", gpus=2),
    replicas=2,
    min_replicas=1,
    max_replicas=8,
    autoscaling=True,
    idle_timeout=120,
    service_account="iris-reader",
    node_selector={"kubernetes.io/arch": "amd64"},
    worker_node_selector={"gpu": "yes"},
    tolerations=(
        Toleration(key="nvidia.com/gpu", effect="NoSchedule"),
        Toleration(key="team", value="data"),
    ),
    image_pull_secrets=("registry",),
    image_pull_policy="Always",
    env={"GREETING": 'say "hello" to $(USER)\n\\ # all: größe 🐍', "NUMBER": "010", "EMPTY": ""},
    env_from_secret={"TOKEN": SecretRef(secret="iris.secrets", key="token.txt")},
    auth="disabled",
    python_match="minor",
    run_as_user=None,
)
FULL_JOB = JobOptions(
    input="/data/in 2026/**/[a-c]?.parquet",
    output="s3://bucket/out",
    format="parquet",
    output_format="jsonl",
    batch_size=1024,
    num_actors=16,
    num_cpus=0.5,
    num_gpus=1,
    allow_errors=True,
    ttl=0,
    backoff_limit=3,
    deadline=7200,
)
FULL_SERVICE = ServiceOptions(
    replicas=4, min_replicas=2, max_replicas=16, ongoing_requests=2.5, cpus=0.5, gpus=0.25
)
MANIFESTS = {
    "raycluster": lambda: raycluster.write(DISTANT, ClusterOptions()),
    "raycluster-full": lambda: raycluster.write(IMAGE, FULL),
    "rayjob": lambda: rayjob.write(IMAGE, ClusterOptions(), JOB),
    "rayjob-full": lambda: rayjob.write(IMAGE, FULL, FULL_JOB),
    "rayservice": lambda: rayservice.write(IMAGE, ClusterOptions(), ServiceOptions()),
    "rayservice-full": lambda: rayservice.write(
        IMAGE, ClusterOptions(worker=Resources(gpus=1), max_replicas=9, autoscaling=True,
                              auth_secret="ray-token"), FULL_SERVICE),
}  # fmt: skip


def parsed(text: str) -> dict[str, Any]:
    """Read one manifest."""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the RayClusterSpec in a manifest of any kind."""
    spec: dict[str, Any] = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def pods_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every pod's spec, by its container's name."""
    cluster = cluster_of(manifest)
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    if "submitterPodTemplate" in manifest["spec"]:
        templates.append(manifest["spec"]["submitterPodTemplate"])
    return {each["spec"]["containers"][0]["name"]: each["spec"] for each in templates}
