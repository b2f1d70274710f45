"""A plan and a base as an OCI configuration and manifest: data, no effects."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfimage.image.oci.base_python import environment_of
from mfimage.image.oci.images import CONFIG, StoredImage, StoredLayer, encode
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.descriptors import INDEX, MANIFEST, Descriptor
from mfimage.package.spec import sha256_digest
from mfimage.runtime.layout import PROGRAMS, VENV

_OCI_LABELS = "org.opencontainers.image."


@dataclass(frozen=True, kw_only=True)
class NewLayer:
    """A layer of ours.

    Attributes
    ----------
    name, reason : str
        As of `BuiltLayer`.
    layer : StoredLayer
        What it holds.
    """

    name: str
    reason: str
    layer: StoredLayer


@dataclass(frozen=True, kw_only=True)
class Composed:
    """An image for one platform, ready to be written or pushed.

    Attributes
    ----------
    config, manifest : bytes
        JSON.
    layers : tuple of StoredLayer
        Lowest first.
    platform : str
        As ``linux/amd64``.
    """

    config: bytes
    manifest: bytes
    layers: tuple[StoredLayer, ...]
    platform: str

    @property
    def id(self) -> str:
        """The configuration's digest."""
        return sha256_digest(self.config)

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return sha256_digest(self.manifest)

    @property
    def descriptor(self) -> Descriptor:
        """What an index says of it."""
        kind = json.loads(self.manifest).get("mediaType", MANIFEST)
        return Descriptor(media_type=kind, digest=self.digest, size=len(self.manifest))


def compose(
    plan: ImagePlan, base: StoredImage, layers: Sequence[NewLayer], *, epoch: int
) -> Composed:
    """Put an image together.

    Parameters
    ----------
    plan : ImagePlan
        What it shall be.
    base : StoredImage
        What it stands on.
    layers : sequence of NewLayer
        What comes on top, lowest first.
    epoch : int
        When it was made, as it says.
    """
    stacked = (*base.layers, *(new.layer for new in layers))
    config = encode(_config(plan, base, layers, epoch))
    described = Descriptor(media_type=CONFIG, digest=sha256_digest(config), size=len(config))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described.to_dict(),
        "layers": [layer.descriptor.to_dict() for layer in stacked],
        # Registries show these, and never look into a configuration.
        "annotations": {
            name: text for name, text in plan.labels.items() if name.startswith(_OCI_LABELS)
        },
    }
    return Composed(
        config=config, manifest=encode(manifest), layers=stacked, platform=plan.platform
    )


def _config(
    plan: ImagePlan, base: StoredImage, layers: Sequence[NewLayer], epoch: int
) -> dict[str, Any]:
    # Whatever the base says of Windows, variants and volumes stays.
    plain = {key: value for key, value in base.config.items() if key not in _DOCKERS}
    created = timestamp(epoch)
    ours = [
        {"created": created, "created_by": f"mfimage {new.name}", "comment": new.reason}
        for new in layers
    ]
    settings = {
        "created": created,
        "created_by": f"mfimage {plan.version} configuration",
        "empty_layer": True,
    }
    return {
        **plain,
        "created": created,
        "config": _settings(plan, base),
        "history": [*(base.config.get("history") or ()), *ours, settings],
        "rootfs": {
            "type": "layers",
            "diff_ids": [
                *(layer.diff_id for layer in base.layers),
                *(new.layer.diff_id for new in layers),
            ],
        },
    }


# Of the container that a legacy builder made the base in.
_DOCKERS = ("container", "container_config", "docker_version", "id", "parent", "throwaway")


def _settings(plan: ImagePlan, base: StoredImage) -> dict[str, Any]:
    plain: dict[str, Any] = dict(base.config.get("config") or {})
    for key in ("Image", "Hostname", "Domainname", "OnBuild", "ArgsEscaped"):
        plain.pop(key, None)
    ports: dict[str, Any] = {f"{port}/tcp": {} for port in plan.ports}
    return {
        **plain,
        "Env": [f"{name}={value}" for name, value in environment(plan, base).items()],
        "Labels": {**(plain.get("Labels") or {}), **plan.labels},
        "User": plan.user,
        "WorkingDir": plan.workdir,
        "Entrypoint": list(plan.entrypoint),
        "Cmd": list(plan.cmd),
        "ExposedPorts": {**(plain.get("ExposedPorts") or {}), **ports},
        "StopSignal": plan.stop_signal,
        # Docker's own: the base's, if it has one, is of another program.
        "Healthcheck": {"Test": ["NONE"]},
    }


def environment(plan: ImagePlan, base: StoredImage) -> Mapping[str, str]:
    """Return an image's variables, in order."""
    found = environment_of(base)
    path = f"{VENV}/bin:{found['PATH']}" + (f":{PROGRAMS}" if plan.programs else "")
    return {**found, "PATH": path, **plan.env}


def compose_index(images: Sequence[Composed]) -> bytes:
    """Return the index of images, one a platform."""
    entries = []
    for image in sorted(images, key=lambda image: image.platform):
        system, _, machine = image.platform.partition("/")
        platform = {"os": system, "architecture": machine}
        entries.append({**image.descriptor.to_dict(), "platform": platform})
    return encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def timestamp(epoch: int) -> str:
    """Return seconds since 1970 as an image's configuration has them."""
    moment = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def recompose(image: StoredImage) -> Composed:
    """Return an image as it lies somewhere; one without a manifest gets one."""
    manifest = image.raw_manifest or encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(
                media_type=CONFIG,
                digest=sha256_digest(image.raw_config),
                size=len(image.raw_config),
            ).to_dict(),
            "layers": [layer.descriptor.to_dict() for layer in image.layers],
        }
    )
    return Composed(
        config=image.raw_config, manifest=manifest, layers=image.layers, platform=image.platform
    )
