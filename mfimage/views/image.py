"""An image -> a page: lineage, how to run it, a treemap of its files, packages, labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mfimage.errors import PackageError
from mfimage.image.find.contents import Contents, components, contents_of, parse_sbom
from mfimage.image.find.files import StoredFiles
from mfimage.image.find.places import FoundImage
from mfimage.image.plan.labels import TARGET
from mfimage.package.spec import FunctionSpec, parse_any
from mfimage.runtime.layout import FUNCTION, FUNCTION_JSON, LOCK
from mfimage.sizes import format_size
from mfimage.views.commands import how_to_run, sample
from mfimage.views.function import FunctionView, view_of_spec
from mfimage.views.html import document
from mfimage.views.lineage import Stage, lineage_of_function, lineage_of_task
from mfimage.views.treemap import KINDS, Node, installed, tree

# Drawn one by one; an image of 500 functions has a table of them.
_MOST_DRAWN = 6
_MOST_GROUPS = 12  # of a layer, in the table that stands beside the treemap
_PURPOSES = {"push": "Push it to a registry", "run": "Run it", "call": "Call it"}
_BASE_NAME = "org.opencontainers.image.base.name"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, as a row."""

    number: int
    kind: str
    instruction: str
    stored: int
    size: int
    groups: tuple[Node, ...] = ()  # the largest distributions or folders


@dataclass(frozen=True, kw_only=True)
class Component:
    """What is installed, as a row."""

    name: str
    version: str
    kind: str
    licence: str = ""
    size: int | None = None
    why: str = ""


def image_page(image: FoundImage, files: StoredFiles, sbom: bytes | None) -> str:
    """Return the page of an image."""
    info = image.info
    functions = views_of(files)
    described = parse_sbom(sbom) if sbom else {}
    root = tree(image.name, files, _blob_names(described), ours=image.has_labels)
    layers = tuple(_layers(image, files, root))
    title = ", ".join(each.name for each in functions[:_MOST_DRAWN]) or image.name
    return document(
        "image.html.j2",
        files=("treemap.css", "treemap.js", "tables.js"),
        image=image.name,
        title=title,
        description=next((each.description for each in functions if len(functions) == 1), ""),
        facts=_facts(image, root.size),
        drawings=drawings(image, functions, contents_of(info, sbom)),
        functions=functions,
        commands=commands_of(image, functions),
        tree=root.to_json(),
        kinds=[kind for kind in KINDS if image.has_labels and any(e.kind == kind for e in layers)],
        layers=layers,
        largest=max((layer.size for layer in layers), default=0),
        packages=tuple(_packages(described, files, _reasons(files, described, info.labels))),
        has_sbom=sbom is not None,
        labels=sorted(info.labels.items()),
    )


def views_of(files: StoredFiles) -> tuple[FunctionView, ...]:
    """Return the functions in an image; none for a step, or if mfimage did not build it."""
    lock = files.kept.get(f"{FUNCTION}/{LOCK}".lstrip("/"))
    return tuple(_own(view_of_spec(spec, lock=lock), spec) for spec in _specs(files))


def _own(function: FunctionView, spec: FunctionSpec) -> FunctionView:
    """Leave what the target and other functions need out of a function's environment."""
    reasons, environment = spec.environment.reasons, function.environment
    if not reasons or environment is None:
        return function
    own = tuple(each for each in environment.distributions if each.name in reasons)
    return replace(function, environment=replace(environment, distributions=own))


def _specs(files: StoredFiles) -> Iterator[FunctionSpec]:
    for path, data in sorted(files.kept.items()):
        if path.endswith(f"/{FUNCTION_JSON}"):
            # What cannot be read, as by a newer mfimage, is left out: the rest is worth a page.
            with contextlib.suppress(PackageError):
                spec = parse_any(data, where=path)
                if isinstance(spec, FunctionSpec):
                    yield spec


def _facts(image: FoundImage, unpacked: int) -> Sequence[tuple[str, str]]:
    info, stored = image.info, sum(layer.size for layer in image.layers)
    return (
        ("size", format_size(stored)),
        ("unpacked", format_size(unpacked)),
        ("layers", str(len(image.layers))),
        ("platform", info.platform),
        ("target", info.labels.get(TARGET, "")),
        ("user", info.user or "root"),
        ("created", info.created[:10] if not info.created.startswith("1980") else ""),
        ("digest", (image.digest or info.id)[:19]),
    )


def image_stage(image: FoundImage) -> Stage:
    """Return the box of an image in a drawing."""
    info = image.info
    size = sum(layer.size for layer in image.layers)
    base = info.labels.get(_BASE_NAME, "")
    notes = [f"{format_size(size)}, {info.platform}"]
    notes += [f"on {base.removeprefix('docker.io/library/')}"] if base else []
    return Stage(kind="image", name=image.name, notes=tuple(notes))


def drawings(
    image: FoundImage, functions: Sequence[FunctionView], contents: Contents
) -> list[tuple[str, tuple[Stage, ...]]]:
    """Return the lineages that are drawn, each with the name of what it is of."""
    own = image_stage(image)
    if not image.has_labels:
        return []  # nothing is known but the image
    if functions:
        drawn = functions[:_MOST_DRAWN]
        return [(each.name, lineage_of_function(each, own)) for each in drawn]
    known = contents["function"] or {}
    return [(image.name, (*lineage_of_task({k: v.text for k, v in known.items()}), own))]


def commands_of(image: FoundImage, functions: Sequence[FunctionView]) -> Sequence[tuple[str, str]]:
    """Return what to type to run an image, each with what it is for."""
    first = next(iter(functions), None)
    record: Any = {}
    if first:
        examples = first.examples
        record = examples[0].input if examples else sample(first.input_schema)
    found = how_to_run(
        image.name,
        target=image.info.labels.get(TARGET, ""),
        title=first.name if first else "",
        function=first.name if first else "",
        record=record,
    )
    return [(_PURPOSES.get(name, name), command) for name, command in found]


def _blob_names(sbom: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of artifacts by the hex digests that their files are named by."""
    return {
        each["hashes"][0]["content"]: f"artifact {each['name']}"
        for each in components(sbom, "artifact")
    }


def _layers(image: FoundImage, files: StoredFiles, root: Node) -> Iterator[Layer]:
    # An engine lists history, not layers: only as many as there are can be matched.
    found = [layer.instruction for layer in image.layers]
    instructions = found if len(found) == len(files.layers) else [""] * len(files.layers)
    nodes = list(root.children.values())
    for number, (layer, node) in enumerate(zip(files.layers, nodes, strict=True), 1):
        yield Layer(
            number=number,
            kind=node.kind,
            instruction=" ".join(instructions[number - 1].removeprefix("mfimage ").split()),
            stored=layer.stored,
            size=layer.size,
            groups=tuple(node.by_size()[:_MOST_GROUPS]),
        )


def _reasons(
    files: StoredFiles, sbom: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, str]:
    """Return why distributions are in the image: for a function, or for the target alone."""
    found: dict[str, str] = {}
    for spec in _specs(files):
        found = {**spec.environment.reasons, **found}
    if not found:  # an older package, which does not record them
        return {}
    target = f"needed by the target {labels.get(TARGET, '')}"
    return {**{each["name"]: target for each in components(sbom, "distribution")}, **found}


def _packages(
    sbom: Mapping[str, Any], files: StoredFiles, why: Mapping[str, str]
) -> Iterator[Component]:
    """Yield what is installed, the largest first: by its metadata, then what the SBOM adds."""
    seen = set()
    for found in installed(files):
        seen.add(found.name)
        yield Component(
            name=found.name,
            version=found.version,
            kind="Python",
            licence=found.licence,
            size=found.size,
            why=why.get(found.name, ""),
        )
    for kind, text in {"distribution": "Python", "debian": "Debian"}.items():
        for each in components(sbom, kind):
            if each["name"] not in seen:
                version = each.get("version", "")
                yield Component(name=each["name"], version=version, kind=text)
