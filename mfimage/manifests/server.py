"""Our HTTP server in a container: its options, and its part of a manifest."""
# ruff: noqa: RUF009  (`option` declares a field)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mfimage.errors import OptionError
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.manifests.checks import (
    KEY,
    LABEL_VALUE,
    check_number,
    default_name,
    parse_cpu,
    parse_memory,
    resource_name,
)
from mfimage.manifests.image import ServerImage
from mfimage.manifests.measured import Measured
from mfimage.manifests.options import option
from mfimage.manifests.shared import (
    IMAGE_VARIABLES,
    NO_PRIVILEGES,
    EnvironmentOptions,
    ObjectOptions,
    PodOptions,
    VariableOptions,
)
from mfimage.runtime.settings import VARIABLES, Settings

NAME_LABEL = "app.kubernetes.io/name"
ALIVE, READY, METRICS = "/healthz", "/readyz", "/metrics"
MIB = 1024**2

# What PID 1 may need beyond MFIMAGE_GRACE to report what it cut off, and to end.
MARGIN = 5
# Seconds in which Kubernetes removes a pod that stops from all load balancers.
_PROPAGATION = 5
# The time to start that probes allow: a multiple of what was measured, since nodes are slower and
# fetch the image; without a measurement, what the largest images need.
_START_FACTOR, _SHORTEST_START, _UNKNOWN_START, _START_PERIOD = 10, 30, 300, 2
# Of the memory measured, for requests that are larger than the recorded examples.
_MEMORY_FACTOR = 1.25
# Labels of images that identify what runs.
_LINEAGE = ("function.name", "function.digest", "functions.count", "task", "version")


@dataclass(frozen=True, kw_only=True)
class SizeOptions(VariableOptions):
    """What a server needs."""

    cpu: str | None = option("CPUs to request; by default one for each of MFIMAGE_WORKERS.", "CPUS")
    memory: str | None = option(
        "Memory to request, which is the limit, too; by default as measured.", "SIZE"
    )
    measured: Measured | None = option(
        "Report of `mfimage test --json`, with the time to start and the memory.", "FILE",
        parse=Measured.read,
    )  # fmt: skip

    def check_size(self) -> None:
        """Check each option."""
        if self.cpu is not None:
            parse_cpu(self.cpu, field="cpu")
        if self.memory is not None:
            parse_memory(self.memory, field="memory")

    def settings(self, image: Mapping[str, str]) -> Settings:
        """Return the server's settings, from the image's variables and the user's."""
        return Settings.from_environ({**image, **self.env})

    def memory_bytes(self, image: Mapping[str, str]) -> tuple[int, int] | None:
        """Return how much memory to request, and the limit; None if it is not known."""
        if self.memory is not None:
            size = parse_memory(self.memory, field="memory")
            return size, size
        if self.measured is None:
            return None
        settings = self.settings(image)
        # The test ran as many processes as the image says.
        processes = settings.workers / Settings.from_environ(image).workers
        request = _whole_mib(self.measured.memory_bytes * processes * _MEMORY_FACTOR)
        # What requests in flight may hold, see docs/serving.md, was not needed in the test.
        return request, _whole_mib(request + settings.workers * settings.max_held)

    @property
    def start_seconds(self) -> int:
        """How long the server may take to become ready."""
        if self.measured is None:
            return _UNKNOWN_START
        return max(_SHORTEST_START, math.ceil(self.measured.start_seconds * _START_FACTOR))


@dataclass(frozen=True, kw_only=True)
class ServerOptions(SizeOptions, EnvironmentOptions, PodOptions, ObjectOptions):
    """A server in a pod."""

    gpus: int = option("GPUs of each pod.", "N", 0)
    gpu_resource: str = option("Kubernetes' name of a GPU.", "NAME", "nvidia.com/gpu")

    def __post_init__(self) -> None:
        self.check_object(NAME_LABEL, "the name")
        self.check_pod()
        self.check_variables(self.owned)
        self.check_size()
        check_number(self.gpus, field="gpus")
        KEY.check(self.gpu_resource, field="gpu-resource")
        for variable in VARIABLES:
            if variable.name in self.env_from_secret:
                raise OptionError(
                    f"env-from-secret: {variable.name} is a setting that the manifest depends on",
                    hint=f"--env {variable.name}=VALUE",
                )

    @property
    def owned(self) -> Mapping[str, str]:
        """Variables that the user cannot set, with what sets them."""
        return IMAGE_VARIABLES


@dataclass(frozen=True)
class ServerPod:
    """An image with options, from which each kind takes its parts."""

    image: ServerImage
    options: ServerOptions
    name_length: int = 63

    @cached_property
    def name(self) -> str:
        """Name of all objects."""
        rule = resource_name(self.name_length)
        name = self.options.name or default_name(self.image.name, rule)
        rule.check(name, field="name")
        return name

    @cached_property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.options.settings(self.image.env)

    @property
    def termination_seconds(self) -> int:
        """How long a pod needs to stop."""
        return self.propagation_seconds + math.ceil(self.settings.grace) + MARGIN

    @property
    def propagation_seconds(self) -> int:
        """How long to wait before SIGTERM: what MFIMAGE_DRAIN is too short by."""
        drain = min(self.settings.drain, self.settings.grace)
        return max(0, math.ceil(_PROPAGATION - drain))

    @cached_property
    def lineage(self) -> tuple[dict[str, str], dict[str, str]]:
        """What the image is of, as labels; and as annotations what no label can have."""
        has = self.image.labels
        found = {name: has.get(f"{LABEL_PREFIX}{name}", "") for name in _LINEAGE}
        # No label can have a pathspec, but its parts: what came from a flow can be selected.
        found |= dict(zip(("flow", "run", "step"), found["task"].split("/"), strict=False))
        labels: dict[str, str] = {}
        annotations: dict[str, str] = {}
        for name, value in found.items():
            if value:
                fits = LABEL_VALUE.accepts(value)
                (labels if fits else annotations)[f"io.mfimage/{name}"] = value
        return labels, annotations

    @property
    def labels(self) -> dict[str, str]:
        """Labels of objects and pods."""
        managed = {NAME_LABEL: self.name, "app.kubernetes.io/managed-by": "mfimage"}
        return {**managed, **self.lineage[0], **self.options.labels}

    @property
    def selector(self) -> dict[str, str]:
        """Labels that select the pods, the same for each image."""
        return {NAME_LABEL: self.name}

    def metadata(self, more: Mapping[str, str | None] | None = None) -> dict[str, Any]:
        """Return an object's metadata; ``more`` are annotations."""
        return {
            "name": self.name,
            "namespace": self.options.namespace,
            "labels": self.labels,
            "annotations": self.annotations(more),
        }

    def annotations(self, more: Mapping[str, str | None] | None = None) -> dict[str, Any] | None:
        """Return annotations of an object or pod, with more of them."""
        return {**self.lineage[1], **(more or {})} or None

    def pod(self, container: dict[str, Any]) -> dict[str, Any]:
        """Return a pod's spec, without what only some kinds have."""
        options = self.options
        return {
            "serviceAccountName": options.service_account,
            # The server does not call Kubernetes; what the function calls has an account.
            "automountServiceAccountToken": None if options.service_account else False,
            # Variables of other Services may have the names of the function's own.
            "enableServiceLinks": False,
            "imagePullSecrets": options.pull_secrets,
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }

    def container(self, name: str, port: str, first: Mapping[str, str]) -> dict[str, Any]:
        """Return the container; ``port`` is its name, ``first`` are variables before the user's."""
        options, image = self.options, self.image
        return {
            "name": name,
            "image": image.reference,
            "imagePullPolicy": options.pull_policy(pinned=image.pinned),
            "ports": [{"name": port, "containerPort": self.settings.port}],
            "env": list(options.variables(first)) or None,
            "envFrom": options.sources,
            "resources": self._resources(),
            "securityContext": {**NO_PRIVILEGES, "readOnlyRootFilesystem": True},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (of a pod)
        }

    def _resources(self) -> dict[str, Any]:
        options = self.options
        memory = options.memory_bytes(self.image.env)
        request = limit = options.memory
        if memory and options.memory is None:
            request, limit = (f"{size // MIB}Mi" for size in memory)
        gpus = {options.gpu_resource: options.gpus or None}
        limits = {"memory": limit, **gpus}
        return {
            "requests": {
                "cpu": options.cpu or str(self.settings.workers),
                "memory": request,
                **gpus,
            },
            "limits": limits if any(limits.values()) else None,
        }

    def probes(self, port: str | int) -> dict[str, Any]:
        """Return the probes of a port, by its name or number."""

        def get(path: str, period: int, failures: int) -> dict[str, Any]:
            return {
                "httpGet": {"path": path, "port": port},
                "periodSeconds": period,
                "timeoutSeconds": 2,
                "failureThreshold": failures,
            }

        starts = math.ceil(self.options.start_seconds / _START_PERIOD)
        return {
            "startupProbe": get(READY, _START_PERIOD, starts),
            "readinessProbe": get(READY, 5, 2),
            "livenessProbe": get(ALIVE, 10, 3),
        }

    def shutdown(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of a pod, and of its container, that let it finish requests."""
        wait = self.propagation_seconds
        hook = {"preStop": {"sleep": {"seconds": wait}}} if wait else None
        return {"terminationGracePeriodSeconds": self.termination_seconds}, {"lifecycle": hook}


def _whole_mib(size: float) -> int:
    return math.ceil(size / MIB) * MIB
