"""inspect: a package, an image or a task -> its description; compare: two images -> a diff.

The same as pages of HTML, each one file that makes no request to anywhere.
"""

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
    from mfimage.image.find.files import Say, StoredFiles
    from mfimage.image.find.places import FoundImage
    from mfimage.views.difference import Side

_PREFIX = "io.mfimage."
_STEP_IMAGE = "step.image"
_SHORT = 500  # characters
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
    if _is_package(what):
        package = open_any(what)
        if isinstance(package, Pipeline):
            return {"reference": package.reference, **_pipeline(package)}
        return {"reference": package.reference, **_package(package.spec)}
    with read_only():
        if _is_task(what):
            return _task(what, platform)
        return _image(what, platform)


def inspect_page(what: str, *, platform: str | None = None, say: Say = lambda _: None) -> str:
    """Return a page of what is in an image, each file of each layer; of a package, its card.

    Parameters
    ----------
    what : str
        As for `inspect`. The layers of an image in a registry are downloaded, unless the cache has
        them.
    platform : str, optional
        Which image of an index; this machine's by default.
    say : callable
        Receives progress, a line at a time.
    """
    if _is_package(what):
        return card_page(what)
    from mfimage.views.image import image_page

    with read_only():
        side = _side(_image_name(what), platform, None, say)
        return image_page(side.image, side.files, side.sbom)


def card_page(what: str, *, platform: str | None = None) -> str:
    """Return a page of a function package, or of an image's functions; little is read for it."""
    from mfimage.views.card import function_page, image_functions_page
    from mfimage.views.function import view

    if _is_package(what):
        return function_page([view(open_any(what))])
    from mfimage.image.find.places import find_image

    with read_only():
        image = find_image(_image_name(what), platform=platform)
        return image_functions_page(image, _last_layer(image))


def _is_package(what: str) -> bool:
    # A folder that happens to have an image's name is not a package.
    return what.endswith(FILE_NAME) or "://" in what or Path(what, FILE_NAME).is_file()


def _is_task(what: str) -> bool:
    return _PATHSPEC.fullmatch(what) is not None and not Path(what).exists()


def _image_name(what: str) -> str:
    return _task_image(what)[1] if _is_task(what) else what


def _side(name: str, platform: str | None, known: StoredFiles | None, say: Say) -> Side:
    from mfimage.image.find.files import read_files
    from mfimage.image.find.places import ENGINE, find_image
    from mfimage.views.difference import Side
    from mfimage.views.treemap import is_needed

    image = find_image(name, platform=platform)
    if image.place is ENGINE:
        say(f"exporting {name} from the Docker engine")
    with image.open() as stored:
        layers = known.layers if known else ()
        files = read_files(stored, keep=is_needed, known=layers, say=say)
    return Side(image=image, files=files, sbom=image.sbom())


def _last_layer(image: FoundImage) -> StoredFiles:
    """Read the layer that describes the functions of an image; nothing if it is a large one."""
    from mfimage.image.find.files import StoredFiles, read_files
    from mfimage.image.find.places import LARGEST_LAYER
    from mfimage.views.treemap import is_needed

    with image.open() as stored:
        last = stored.layers[-1:]
        if not last or not image.has_labels or last[0].size > LARGEST_LAYER:
            return StoredFiles(layers=())
        return read_files(dataclasses.replace(stored, layers=last), keep=is_needed)


def _task(pathspec: str, platform: str | None) -> dict[str, Any]:
    about, image = _task_image(pathspec)
    return {**about, **_image(image, platform)}


def _task_image(pathspec: str) -> tuple[dict[str, Any], str]:
    """Return what a task records of its image, and the image's name."""
    from mfimage.capture.task.pathspec import find_task

    task = find_task(pathspec, namespace="")
    metadata = {key: str(value) for key, value in task.metadata_dict.items()}
    if not (image := metadata.get(_STEP_IMAGE)):
        raise TaskError(
            f"task {task.pathspec} records no image",
            hint="a step has one with @docker, or with --environment=fast-bakery",
        )
    about = {key: value for key, value in metadata.items() if key.startswith("step.")}
    return {"task": task.pathspec, **about}, image


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
        **_example(spec),
        "bound": f"{spec.lineage.created} by {spec.lineage.user}",
        "git commit": spec.lineage.git_commit or "unknown",
    }


def _example(spec: FunctionSpec) -> dict[str, Any]:
    """Return the first recorded example that is short enough for a command."""
    for each in spec.examples:
        if len(json.dumps(each.input)) <= _SHORT:
            return {"example": each.input}
    return {}


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
    place = {
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
    }
    found = {
        **place,
        **{name: value for name, value in own.items() if name not in place},
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


def compare_page(
    before: str, after: str, *, platform: str | None = None, say: Say = lambda _: None
) -> str:
    """Return a page of how two images differ; layers that both have are read once."""
    from mfimage.views.difference import difference_page

    with read_only():
        one = _side(before, platform, None, say)
        return difference_page(one, _side(after, platform, one.files, say))
