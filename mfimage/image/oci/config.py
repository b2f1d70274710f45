"""Composes the OCI configuration and manifest of an image from a plan, a base and layers."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfimage.image.oci.base import environment_of
from mfimage.image.oci.images import CONFIG, StoredImage, StoredLayer, encode
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.descriptors import INDEX, MANIFEST, Descriptor
from mfimage.package.spec import sha256_digest
from mfimage.runtime.layout import PROGRAMS, VENV

_OCI_LABELS = "org.opencontainers.image."


@dataclass(frozen=True, kw_only=True)
class NewLayer:
    """A layer above the base, with name and reason as in `BuiltLayer`."""

    name: str
    reason: str
    layer: StoredLayer


@dataclass(frozen=True, kw_only=True)
class Composed:
    """An image for one platform that can be written or pushed."""

    config: bytes  # JSON
    manifest: bytes  # JSON
    layers: tuple[StoredLayer, ...]  # lowest first
    platform: str  # as ``linux/amd64``

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
        """Its entry in an index."""
        kind = json.loads(self.manifest).get("mediaType", MANIFEST)
        return Descriptor(media_type=kind, digest=self.digest, size=len(self.manifest))


def compose(
    plan: ImagePlan, base: StoredImage, layers: Sequence[NewLayer], *, epoch: int
) -> Composed:
    """Compose an image of a base and the layers above it, lowest first, created at ``epoch``."""
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
    kept = {key: base.config[key] for key in _KEPT if base.config.get(key)}
    created = _timestamp(epoch)
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
        **kept,
        "created": created,
        "config": _settings(plan, base),
        "history": [*map(_entry, base.config.get("history") or ()), *ours, settings],
        "rootfs": {
            "type": "layers",
            "diff_ids": [
                *(layer.diff_id for layer in base.layers),
                *(new.layer.diff_id for new in layers),
            ],
        },
    }


# Of a base's configuration only what an engine describes, too: the image is the same wherever the
# base is read.
_KEPT = ("architecture", "os", "os.version", "variant", "author")
_TIME = re.compile(r"(?!0001)(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of a base's history, with whole seconds as engines have them."""
    found = {name: entry.get(name) for name in ("created_by", "comment", "empty_layer")}
    if match := _TIME.fullmatch(entry.get("created") or ""):
        moment = datetime.datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))
        found["created"] = _timestamp(int(moment.timestamp()))
    return {name: value for name, value in found.items() if value}


def _settings(plan: ImagePlan, base: StoredImage) -> dict[str, Any]:
    found = base.config.get("config") or {}
    # An engine lists what is not set, too: `"Tty": false`.
    kept: dict[str, Any] = {key: value for key, value in found.items() if value}
    for key in ("Image", "Hostname", "Domainname", "OnBuild", "ArgsEscaped"):
        kept.pop(key, None)
    ports: dict[str, Any] = {f"{port}/tcp": {} for port in plan.ports}
    return {
        **kept,
        "Env": [f"{name}={value}" for name, value in _environment(plan, base).items()],
        "Labels": {**(kept.get("Labels") or {}), **plan.labels},
        "User": plan.user,
        "WorkingDir": plan.workdir,
        "Entrypoint": list(plan.entrypoint),
        "Cmd": list(plan.cmd),
        "ExposedPorts": {**(kept.get("ExposedPorts") or {}), **ports},
        "StopSignal": plan.stop_signal,
        # The base's health check, if any, is for another program.
        "Healthcheck": {"Test": ["NONE"]},
    }


def _environment(plan: ImagePlan, base: StoredImage) -> Mapping[str, str]:
    found = environment_of(base)
    path = f"{VENV}/bin:{found['PATH']}" + (f":{PROGRAMS}" if plan.programs else "")
    return {**found, "PATH": path, **plan.env}


def compose_index(images: Sequence[Composed]) -> bytes:
    """Return the index of images, one for each platform."""
    entries = []
    for image in sorted(images, key=lambda image: image.platform):
        system, _, machine = image.platform.partition("/")
        platform = {"os": system, "architecture": machine}
        entries.append({**image.descriptor.to_dict(), "platform": platform})
    return encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def _timestamp(epoch: int) -> str:
    moment = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def recompose(image: StoredImage) -> Composed:
    """Return a stored image to write or push; one without a manifest gets one."""
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
