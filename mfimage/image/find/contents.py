"""What an image is made of, part by part, whoever built it: what two images are compared by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import PackageError
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.image.sbom.components import PREFIX

_OCI = "org.opencontainers.image."
# The order in which they are told: that of the layers, then what is no layer.
SECTIONS = (
    "base", "python", "system", "distributions", "artifacts", "runtime", "code",
    "function", "env", "labels", "config",
)  # fmt: skip
LINEAGE = ("flow", "run", "step", "task", "user", "metaflow.version", "git.commit")
_FUNCTION_LABELS = ("function.digest", "target", "schema.input", "schema.output", "ray-parts")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing in an image.

    Attributes
    ----------
    text : str
        What people read, as a version.
    mark : str
        What tells things of equal text apart, as a hash.
    """

    text: str
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an image is made of.

    Attributes
    ----------
    sections : mapping of str to (mapping of str to Item) or None
        By the names in `SECTIONS`; None where the image does not say.
    """

    sections: Mapping[str, Mapping[str, Item] | None]


def contents_of(info: ImageInfo, sbom: bytes | None) -> Contents:
    """Read what an image is made of from its configuration and SBOM.

    Parameters
    ----------
    info : ImageInfo
        The configuration.
    sbom : bytes or None
        What came with it; without, distributions and code files are not known.

    Raises
    ------
    PackageError
        If the SBOM cannot be read.
    """
    labels = info.labels
    found = _of_labels(labels)
    if sbom is not None:
        found |= _of_sbom(parse_sbom(sbom))
    python = labels.get(f"{LABEL_PREFIX}python")
    found.setdefault("python", {"python": Item(text=python)} if python else None)
    found["function"] = {**(found.get("function") or {}), **_function(labels)}
    found["env"] = _items(info.env)
    found["labels"] = _items(
        {k: v for k, v in labels.items() if not k.startswith((LABEL_PREFIX, _OCI))}
    )
    found["config"] = _items(
        {
            "platform": "/".join(info.platform.split("/")[:2]),
            "user": info.user,
            "workdir": info.working_dir,
            "entrypoint": json.dumps(info.entrypoint),
            "cmd": json.dumps(info.command),
        }
    )
    return Contents(sections={name: found.get(name) for name in SECTIONS})


def parse_sbom(data: bytes) -> Mapping[str, Any]:
    """Read an SBOM.

    Raises
    ------
    PackageError
        If it is none.
    """
    try:
        document: Mapping[str, Any] = json.loads(data)
        if document["bomFormat"] != "CycloneDX":
            raise ValueError("it is not CycloneDX")
        _of_sbom(document)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PackageError(f"the image's SBOM cannot be read: {error}") from None
    return document


def properties(part: Mapping[str, Any]) -> dict[str, str]:
    """Return our properties of a part of an SBOM, by name."""
    return {
        each["name"].removeprefix(PREFIX): each.get("value", "")
        for each in part.get("properties", ())
        if each["name"].startswith(PREFIX)
    }


def components(document: Mapping[str, Any], kind: str) -> Iterable[Mapping[str, Any]]:
    """Yield the components of a kind: distribution, debian, artifact, code, runtime."""
    for component in document.get("components", ()):
        if properties(component).get("kind") == kind:
            yield component


def _items(texts: Mapping[str, str]) -> dict[str, Item]:
    return {name: Item(text=text) for name, text in texts.items()}


def _of_labels(labels: Mapping[str, str]) -> dict[str, Mapping[str, Item] | None]:
    found: dict[str, Mapping[str, Item] | None] = {}
    if f"{LABEL_PREFIX}version" not in labels:
        return found
    base = {name: labels.get(f"{_OCI}base.{name}") for name in ("name", "digest")}
    found["base"] = {name: Item(text=text) for name, text in base.items() if text}
    try:
        artifacts = json.loads(labels.get(f"{LABEL_PREFIX}artifacts") or "{}")
    except ValueError:
        artifacts = {}
    found["artifacts"] = _items(artifacts)
    found["runtime"] = {"mfimage": Item(text=labels[f"{LABEL_PREFIX}version"])}
    return found


def _function(labels: Mapping[str, str]) -> dict[str, Item]:
    named = {name: labels.get(LABEL_PREFIX + name) for name in _FUNCTION_LABELS}
    return {name: Item(text=text) for name, text in named.items() if text}


def _of_sbom(document: Mapping[str, Any]) -> dict[str, Mapping[str, Item] | None]:
    lineage = properties(document.get("metadata", {}))
    return {
        "python": {
            each["name"]: Item(text=each["version"])
            for each in document.get("components", ())
            if each.get("bom-ref") == "python"
        },
        "system": {
            each["name"]: Item(text=each.get("version", "any"))
            for each in components(document, "debian")
        },
        "distributions": {
            each["name"]: Item(text=each.get("version", "?"), mark=" ".join(sorted(_marks(each))))
            for each in components(document, "distribution")
        },
        "artifacts": _hashed(document, "artifact"),
        "runtime": {
            each["name"]: Item(text=each["version"], mark=properties(each)["files"])
            for each in components(document, "runtime")
        },
        "code": _hashed(document, "code"),
        "function": {name: Item(text=lineage[name]) for name in LINEAGE if name in lineage},
    }


def _hashed(document: Mapping[str, Any], kind: str) -> dict[str, Item]:
    """Return what is told apart by its content alone."""
    return {
        each["name"]: Item(text=f"sha256:{each['hashes'][0]['content']}")
        for each in components(document, kind)
    }


def _marks(component: Mapping[str, Any]) -> set[str]:
    """Return the hashes of all files that a distribution may be installed from."""
    references = component.get("externalReferences", ())
    return {found["content"] for each in references for found in each.get("hashes", ())}
