"""What a function package or an image says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mfimage.errors import ReferenceNotFound
from mfimage.package.spec import FunctionSpec
from mfimage.package.store import FILE_NAME, open_package

_PREFIX = "io.mfimage."


def inspect(what: str) -> dict[str, Any]:
    """Describe a function package or an image that the Docker engine has.

    Parameters
    ----------
    what : str
        A reference, or an image's name or ID.

    Raises
    ------
    ReferenceNotFound
        When it is neither.
    """
    if what.endswith(FILE_NAME) or Path(what).is_dir():
        package = open_package(what)
        return {"reference": package.reference, **_package(package.spec)}
    return _image(what)


def _package(spec: FunctionSpec) -> dict[str, Any]:
    environment = spec.environment
    return {
        "name": spec.name,
        "digest": spec.digest,
        "task": spec.task,
        "description": spec.description.partition("\n")[0],
        "entrypoint": spec.entrypoint,
        "batch": spec.batch,
        "python": environment.python,
        "platform": environment.platform,
        "environment": f"{environment.source}, lock {environment.lock.digest}",
        "wheels": sorted(environment.wheels),
        "artifacts": {name: f"{ref.type}, {ref.size} B" for name, ref in spec.artifacts.items()},
        "parameters": dict(spec.parameters),
        "input": dict(spec.input_schema),
        "output": dict(spec.output_schema),
        "examples": len(spec.examples),
        "bound": f"{spec.lineage.created} by {spec.lineage.user}",
        "git commit": spec.lineage.git_commit or "unknown",
    }


def _image(name: str) -> dict[str, Any]:
    from mfimage.image.engine import Engine

    with Engine.connect() as engine:
        info = engine.inspect(name)
    if info is None:
        raise ReferenceNotFound(
            f"{name!r} is neither a reference nor an image that the Docker engine has",
            hint="a reference ends in function.json; for an image, `docker pull` it first",
        )
    ours = {
        k.removeprefix(_PREFIX): _plain(v) for k, v in info.labels.items() if k.startswith(_PREFIX)
    }
    return {
        "image": info.id,
        "tags": list(info.repo_tags),
        "digests": list(info.repo_digests),
        "size": f"{info.size / 1e6:.1f} MB",
        "platform": info.platform,
        "created": info.created,
        "user": info.user or "root",
        **ours,
        "labels": {k: v for k, v in info.labels.items() if not k.startswith(_PREFIX)},
    }


def _plain(text: str) -> Any:
    try:
        return json.loads(text) if text[:1] in "{[" else text
    except ValueError:
        return text
