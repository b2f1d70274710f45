"""What is in an image, as a CycloneDX 1.6 document: equal bytes for equal images.

It stands in the image as ``/opt/function/sbom.cdx.json``, and is attached to it in a registry.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mfimage.files import sha256_hex
from mfimage.image.sbom.components import PREFIX, installed_components
from mfimage.package.spec import sha256_digest
from mfimage.runtime.layout import CODE, FUNCTION

if TYPE_CHECKING:
    from mfimage.image.plan.files import ContextFile
    from mfimage.image.plan.plan import ImagePlan

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_SPEC = "1.6"
_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_CODE_FOLDER = f"{FUNCTION}/{CODE}".lstrip("/")


def make_sbom(
    plan: ImagePlan, code: Sequence[ContextFile], runtime: Sequence[ContextFile]
) -> bytes:
    """Return the document that describes an image.

    It has no time and no random number: its serial number is made of what it says.

    Parameters
    ----------
    plan : ImagePlan
        What is built.
    code, runtime : sequence of ContextFile
        The files of these layers.
    """
    function = json.loads(plan.code.function_json)
    components = [
        *installed_components(plan),
        _runtime(plan, runtime),
        *(_artifact(name, ref) for name, ref in sorted(function["artifacts"].items())),
        *_code(code),
    ]
    document = {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "version": 1,
        "metadata": {
            "component": _function(plan, function),
            "properties": _properties(_lineage(plan, function)),
            "tools": {
                "components": [{"type": "application", "name": "mfimage", "version": plan.version}]
            },
        },
        "components": components,
        "dependencies": [
            {"ref": "function", "dependsOn": sorted(each["bom-ref"] for each in components)}
        ],
    }
    digest = hashlib.sha256(_encoded(document)).digest()
    document["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=5)}"
    return _encoded(document)


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def _function(plan: ImagePlan, function: Mapping[str, Any]) -> dict[str, Any]:
    described = {"description": function["description"]} if function["description"] else {}
    return {
        "type": "application",
        "bom-ref": "function",
        "name": plan.function,
        "version": plan.digest.removeprefix("sha256:")[:12],
        **described,
        "properties": _properties(
            {
                "function.digest": plan.digest,
                "entrypoint": function["entrypoint"],
                "target": plan.target.name,
                "platform": plan.platform,
                "lock.digest": plan.dependencies.digest,
            }
        ),
    }


def _lineage(plan: ImagePlan, function: Mapping[str, Any]) -> dict[str, str | None]:
    lineage = function["lineage"]
    names = ("flow", "run", "step", "task", "user", "metaflow_version", "git_commit")
    found = {name.replace("_", "."): lineage.get(name) for name in names}
    return {**found, "pathspec": function["task"]}


def _runtime(plan: ImagePlan, files: Iterable[ContextFile]) -> dict[str, Any]:
    hashes = [f"{_hash(file)}  {file.path}\n" for file in files]
    known = {"kind": "runtime", "files": sha256_digest("".join(sorted(hashes)).encode())}
    return {
        "type": "library",
        "bom-ref": "runtime",
        "name": "mfimage",
        "version": plan.version,
        "properties": _properties(known),
    }


def _artifact(name: str, ref: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        "kind": "artifact",
        "size": str(ref["size"]),
        "encoding": ref["encoding"],
        "type": ref["type"],
    }
    return {
        "type": "data",
        "bom-ref": f"artifact:{name}",
        "name": name,
        "hashes": _sha256(ref["digest"]),
        "properties": _properties(known),
    }


def _code(files: Iterable[ContextFile]) -> Iterable[dict[str, Any]]:
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_relative_to(_CODE_FOLDER):
            name = str(path.relative_to(_CODE_FOLDER))
            yield {
                "type": "file",
                "bom-ref": f"code:{name}",
                "name": name,
                "hashes": _sha256(_hash(file)),
                "properties": _properties({"kind": "code"}),
            }


def _hash(file: ContextFile) -> str:
    if file.digest is not None:
        return file.digest
    return sha256_hex(file.chunks())


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]


def _properties(known: Mapping[str, str | None]) -> list[dict[str, str]]:
    return [{"name": PREFIX + name, "value": value} for name, value in known.items() if value]
