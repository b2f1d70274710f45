"""Checks of the contracts of other platforms: the image, started and called as a platform does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from mfimage.image.checks.client import wait_until_ready
from mfimage.image.checks.contract import platform_checks
from mfimage.image.checks.report import Recorder
from mfimage.image.checks.runner import Address, Container, ContainerOptions, ImageRunner
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.serving.served import Served
from mfimage.runtime.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """How a platform starts an image, and where it asks whether it is ready."""

    ready: str
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    users: tuple[str | None, ...] = (None,)  # uid:gid; None: the image's own


PLATFORMS: Mapping[str, Hosting] = {
    "oip": Hosting(ready="/v2/health/ready"),
    "kserve": Hosting(ready="/v2/health/ready"),
    "sagemaker": Hosting(
        ready="/ping",
        env={"SAGEMAKER_REGION": "us-east-1"},
        command=("serve",),
        users=("0:0", "1000:1000"),
    ),
    "vertex": Hosting(
        ready="/health",
        env={
            "AIP_HTTP_PORT": "8080",
            "AIP_HEALTH_ROUTE": "/health",
            "AIP_PREDICT_ROUTE": "/predictions",
            "AIP_STORAGE_URI": "gs://bucket/model",
        },
    ),
    "mlflow": Hosting(ready="/ping"),
}


def check_platform(
    runner: ImageRunner,
    served: Served,
    recorder: Recorder,
    name: str,
    *,
    timeout: float,
    tolerance: Tolerance,
) -> None:
    """Start an image as a platform does, and make the checks of its contract."""
    platform = PLATFORMS[name]
    env = dict(platform.env)
    if served.default is None:
        # Most platforms have requests that name no function.
        default = _called(served)
        served = replace(served, default=default)
        env["MFIMAGE_DEFAULT_FUNCTION"] = default
    settings = Settings.from_environ({**runner.info.env, **env})
    served = served.placed(settings)
    checks = platform_checks(served, name)
    for user in platform.users:
        title = f"{name}-{user.partition(':')[0]}" if user else name
        launch = ContainerOptions(port=settings.port, env=env, command=platform.command, user=user)
        with runner.start(launch) as container:
            addresses: list[Address] = []
            ready = partial(_ready, container, platform.ready, timeout, addresses)
            started = recorder.run(f"{title}-ready", ready)
            seen: Counter[str] = Counter()
            for check in checks:
                of = f"-{check.function}" if served.several and check.function else ""
                label = f"{title}{of}-{check.name}"
                seen[label] += 1
                label += f"-{seen[label]}" if seen[label] > 1 else ""
                if started:
                    recorder.run(label, partial(check.run, addresses[0], served, tolerance))
                else:
                    recorder.skip((label,), "it was never ready")


def _called(served: Served) -> str:
    """Return the first function, of those with examples if there are any."""
    names = [name for name, spec in served.specs.items() if spec.examples]
    return next(iter(names or served.specs))


def _ready(container: Container, path: str, timeout: float, found: list[Address]) -> str:
    found.append(wait_until_ready(container, path, timeout))
    return f"GET {path}: 200"
