"""inspect: a package, an image or a task -> its description; compare: two images -> a diff."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage.compose import junctions
from mfimage.errors import TaskError
from mfimage.package.spec import FunctionSpec
from mfimage.package.storage.cache import read_only
from mfimage.package.store import FILE_NAME, Pipeline, open_any

if TYPE_CHECKING:
    from mfimage.image.find.contents import ImageDiff

_PREFIX = "io.mfimage."
_STEP_IMAGE = "step.image"
# As Flow/12/train/3: names of images have no capital letters, and seldom a number alone in them.
_PATHSPEC = re.compile(r"(?:(?=[^/]*[A-Z])\w+/[^/:@]+|\w+/\d+)/\w+(?:/[^/:@]+)?", re.ASCII)


def inspect(what: str, *, platform: str | None = None) -> dict[str, Any]:
    """Describe a function package, an image, or the image that a task ran in.

    Parameters
    ----------
    what : str
        The package's reference; or an image's name or ID, ``oci:DIR``, ``oci-archive:FILE`` or
        ``docker-archive:FILE``; or a task's pathspec, ``Flow/run/step[/task]``. Nothing is pulled.
    platform : str, optional
        Which image of an index; this machine's by default.

    Raises
    ------
    ReferenceNotFound
        If there is neither.
    """
    # A folder that happens to have an image's name is not a package.
    if what.endswith(FILE_NAME) or "://" in what or Path(what, FILE_NAME).is_file():
        package = open_any(what)
        if isinstance(package, Pipeline):
            return {"reference": package.reference, **_pipeline(package)}
        return {"reference": package.reference, **_package(package.spec)}
    with read_only():
        if _PATHSPEC.fullmatch(what) and not Path(what).exists():
            return _task(what, platform)
        return _image(what, platform)


def _task(pathspec: str, platform: str | None) -> dict[str, Any]:
    from mfimage.capture.task.pathspec import find_task

    task = find_task(pathspec, namespace="")
    metadata = {key: str(value) for key, value in task.metadata_dict.items()}
    if not (image := metadata.get(_STEP_IMAGE)):
        raise TaskError(
            f"task {task.pathspec} records no image",
            hint="a step has one with @docker, or with --environment=fast-bakery",
        )
    about = {key: value for key, value in metadata.items() if key.startswith("step.")}
    return {"task": task.pathspec, **about, **_image(image, platform)}


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


def _pipeline(package: Pipeline) -> dict[str, Any]:
    spec = package.spec
    return {
        "name": spec.name,
        "digest": spec.digest,
        "batch": spec.batch,
        "parts": [
            {"name": part.spec.name, "reference": part.reference, "task": part.spec.task}
            for part in package.parts
        ],
        "junctions": [str(each) for each in junctions([part.spec for part in package.parts])],
        "input": dict(spec.input_schema),
        "output": dict(spec.output_schema),
    }


def _image(name: str, platform: str | None) -> dict[str, Any]:
    from mfimage.image.find.contents import LINEAGE, contents_of
    from mfimage.image.find.places import find_image
    from mfimage.image.sbom.document import FUNCTION_REF

    image = find_image(name, platform=platform)
    info, sbom = image.info, image.sbom()
    own: dict[str, Any] = {}
    others = {}
    for label, text in info.labels.items():
        if label.startswith(_PREFIX):
            own[key := label.removeprefix(_PREFIX)] = text
            if text[:1] in ("{", "["):
                with contextlib.suppress(ValueError):
                    own[key] = json.loads(text)
        else:
            others[label] = text
    known = contents_of(info, sbom)["function"] or {}
    functions = {
        name.removeprefix(FUNCTION_REF): item.text
        for name, item in known.items()
        if name.startswith(FUNCTION_REF)
    }
    found = {
        "image": info.id or image.digest or name,
        "from": image.place.name,
        "tags": list(info.repo_tags),
        "digests": list(info.repo_digests),
        "digest": image.digest,
        "index": image.index,
        "platforms": list(image.platforms),
        "size": f"{info.size / 1e6:.1f} MB",
        "platform": info.platform,
        "created": info.created,
        "user": info.user or "root",
        **own,
        "functions": functions,
        "lineage": {name: known[name].text for name in LINEAGE if name in known},
        "sbom": _summary(sbom),
        "layers": [dataclasses.asdict(layer) for layer in image.layers],
        "labels": others,
    }
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _summary(sbom: bytes | None) -> dict[str, Any] | None:
    """Return how many components of each kind an SBOM has, and its serial number."""
    from mfimage.image.find.contents import components, parse_sbom

    if sbom is None:
        return None
    document = parse_sbom(sbom)
    kinds = {"distribution": "distributions", "debian": "system packages", "code": "code files"}
    counts = {text: len(list(components(document, kind))) for kind, text in kinds.items()}
    format_ = f"{document['bomFormat']} {document['specVersion']}"
    return {"format": format_, "serial number": document.get("serialNumber"), **counts}


def compare(before: str, after: str, *, platform: str | None = None) -> ImageDiff:
    """Compare two images; neither is pulled.

    Parameters
    ----------
    before, after : str
        Names, IDs, ``oci:DIR``, ``oci-archive:FILE`` or ``docker-archive:FILE``.
    platform : str, optional
        Which image of an index; this machine's by default.

    Raises
    ------
    ReferenceNotFound
        If one of them does not exist.
    """
    from mfimage.image.find.contents import contents_of, diff
    from mfimage.image.find.places import find_image

    with read_only():
        images = [find_image(name, platform=platform) for name in (before, after)]
        one, other = (contents_of(image.info, image.sbom()) for image in images)
    return diff(one, other, names=(before, after))
