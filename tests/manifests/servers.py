"""An image of a server, and a manifest of each kind with few and with all options."""

from __future__ import annotations

from typing import Any

import yaml

from mfimage.manifests import compose, deployment, knative, kserve
from mfimage.manifests.compose import ComposeOptions
from mfimage.manifests.deployment import DeploymentOptions
from mfimage.manifests.image import ServerImage
from mfimage.manifests.knative import KnativeOptions
from mfimage.manifests.kserve import KServeOptions
from mfimage.manifests.measured import Measured
from mfimage.manifests.options import SecretRef, Toleration, VariableSource

IMAGE = ServerImage(
    reference="registry.example.com/team/iris:1@sha256:" + "ab" * 32,
    name="predict_iris",
    labels={
        "io.mfimage.function.name": "predict_iris",
        "io.mfimage.function.digest": "sha256:" + "cd" * 32,
        "io.mfimage.task": "IrisFlow/12/train/3",
        "io.mfimage.version": "0.1.0",
        "io.mfimage.schema.input": "{}",
    },
    env={"PATH": "/opt/venv/bin:/usr/bin"},
)
MEASURED = Measured(start_seconds=7.31, memory_bytes=301_465_600)
_SETTINGS = {"PORT": "8080", "MFIMAGE_DRAIN": "2.5", "MFIMAGE_GRACE": "90", "MFIMAGE_WORKERS": "2"}
_POD: dict[str, Any] = {
    "name": "iris",
    "namespace": "models",
    "labels": {"team": "1e3"},
    "service_account": "iris-reader",
    "image_pull_secrets": ("registry",),
    "image_pull_policy": "Always",
    "run_as_user": None,
    "env": {"GREETING": 'say "hello" to $(USER)\n\\ # all: größe', "NUMBER": "010", **_SETTINGS},
    "env_from_secret": {"TOKEN": SecretRef(secret="iris.secrets", key="token.txt")},
    "env_from": (
        VariableSource(kind="secret", name="keys"),
        VariableSource(kind="configmap", name="flags"),
    ),
    "gpus": 1,
}
_KNATIVE = {
    **_POD,
    "env": {k: v for k, v in _POD["env"].items() if k != "PORT"},
    "min_replicas": 0,
    "max_replicas": 9,
    "concurrency": 64,
}
_PLACE: dict[str, Any] = {
    "node_selector": {"kubernetes.io/arch": "amd64"},
    "tolerations": (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
}
FULL = DeploymentOptions(
    **_POD,
    **_PLACE,
    measured=MEASURED,
    min_replicas=2,
    max_replicas=8,
    target_cpu=70,
    disruption_budget="25%",
    allow_from=("ingress", "models"),
    metrics="service-monitor",
)
MANIFESTS = {
    "deployment": lambda: deployment.write(IMAGE, DeploymentOptions()),
    "deployment-full": lambda: deployment.write(IMAGE, FULL),
    "deployment-annotated": lambda: deployment.write(
        IMAGE,
        DeploymentOptions(
            replicas=3, cpu="500m", memory="1Gi", disruption_budget=1, metrics="annotations"
        ),
    ),
    "knative": lambda: knative.write(IMAGE, KnativeOptions()),
    "knative-full": lambda: knative.write(
        IMAGE, KnativeOptions(**_KNATIVE, target_concurrency=32, measured=MEASURED)
    ),
    "kserve": lambda: kserve.write(IMAGE, KServeOptions()),
    "kserve-full": lambda: kserve.write(
        IMAGE, KServeOptions(**_POD, **_PLACE, max_replicas=8, target_cpu=70, memory="2Gi")
    ),
    "kserve-knative": lambda: kserve.write(IMAGE, KServeOptions(**_KNATIVE, mode="knative")),
    "compose": lambda: compose.write(IMAGE, ComposeOptions()),
    "compose-full": lambda: compose.write(
        IMAGE,
        ComposeOptions(
            name="iris",
            env=_POD["env"],
            env_files=("iris.env",),
            publish="127.0.0.1:80",
            cpu="1500m",
            measured=MEASURED,
        ),
    ),
}


def documents(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a manifest by kind."""
    return {each.get("kind", "compose"): each for each in yaml.safe_load_all(MANIFESTS[name]())}
