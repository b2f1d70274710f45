"""What is in an image, as a CycloneDX 1.6 document: equal bytes for equal images.

It is in the image as ``/opt/function/sbom.cdx.json``, and attached to it in a registry.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from mfimage.capture.lock import toml
from mfimage.files import sha256_hex
from mfimage.image.plan.subject import lineage_of
from mfimage.image.registry.reference import parse_reference
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import cache_folder, remember
from mfimage.runtime.layout import CODE, FUNCTION

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, HashType
    from cyclonedx.model.component import Component

    from mfimage.image.plan.files import ContextFile
    from mfimage.image.plan.plan import ImagePlan
    from mfimage.package.spec import ArtifactRef, FunctionSpec

MEDIA_TYPE = "application/vnd.cyclonedx+json"
PREFIX = "mfimage:"
FUNCTION_REF = "function:"  # before the name of one of several, in what refers to it
# Increased when equal inputs give other components than before.
_CACHE_FORMAT = "1"
_CODE_FOLDER = f"{FUNCTION}/{CODE}".lstrip("/")


def make_sbom(
    plan: ImagePlan, code: Sequence[ContextFile], runtime: Sequence[ContextFile]
) -> bytes:
    """Return the document of an image, whose serial number is derived from its content."""
    subject = plan.subject
    components = [
        *_installed(plan),
        _runtime(plan, runtime),
        *(_function(name, spec) for name, spec in subject.functions.items()),
        *(_artifact(name, ref) for name, ref in sorted(subject.artifacts.items())),
        *_code(code),
    ]
    tool = {"type": "application", "name": "mfimage", "version": plan.version}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": _subject(plan),
            "properties": _properties(subject.lineage),
            "tools": {"components": [tool]},
        },
        "components": components,
        "dependencies": [
            {"ref": subject.kind, "dependsOn": sorted(each["bom-ref"] for each in components)}
        ],
    }
    encoded = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
    number = uuid.UUID(bytes=hashlib.sha256(encoded).digest()[:16], version=5)
    # Inserted in its sorted place, since encoding takes long.
    head, _, tail = encoded.rpartition(b'\n "specVersion"')
    return b'%s\n "serialNumber": "urn:uuid:%s",\n "specVersion"%s' % (
        head, str(number).encode(), tail
    )  # fmt: skip


# The subject's own parts, as plain JSON: importing the library takes longer than they do


def _subject(plan: ImagePlan) -> dict[str, Any]:
    subject = plan.subject
    properties = {
        f"{subject.kind}.digest": subject.digest,
        "entrypoint": subject.entrypoint,
        "target": plan.target.name,
        "platform": plan.platform,
        "lock.digest": plan.dependencies.digest,
    }
    more = {"version": subject.digest.removeprefix("sha256:")[:12]}
    more |= {"description": subject.description} if subject.description else {}
    return _part("application", subject.kind, subject.name, properties, **more)


def _function(name: str, spec: FunctionSpec) -> dict[str, Any]:
    about = {"digest": spec.digest, "entrypoint": spec.entrypoint, "code": spec.code.digest}
    properties = {"kind": "function", **about, **lineage_of(spec)}
    more = {"description": spec.description} if spec.description else {}
    version = spec.digest.removeprefix("sha256:")[:12]
    return _part("application", f"{FUNCTION_REF}{name}", name, properties, version=version, **more)


def _runtime(plan: ImagePlan, files: Iterable[ContextFile]) -> dict[str, Any]:
    hashes = sorted(f"{_hash(file)}  {file.path}\n" for file in files)
    properties = {"kind": "runtime", "files": sha256_digest("".join(hashes).encode())}
    return _part("library", "runtime", "mfimage", properties, version=plan.version)


def _artifact(name: str, ref: ArtifactRef) -> dict[str, Any]:
    about = {"size": str(ref.size), "encoding": ref.encoding, "type": ref.type}
    properties = {"kind": "artifact", **about}
    return _part("data", f"artifact:{name}", name, properties, hashes=_sha256(ref.digest))


def _code(files: Iterable[ContextFile]) -> Iterable[dict[str, Any]]:
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_relative_to(_CODE_FOLDER):
            name, hashes = str(path.relative_to(_CODE_FOLDER)), _sha256(_hash(file))
            yield _part("file", f"code:{name}", name, {"kind": "code"}, hashes=hashes)


def _part(
    type: str, ref: str, name: str, properties: Mapping[str, str | None], **more: Any
) -> dict[str, Any]:
    found = {"type": type, "bom-ref": ref, "name": name, "properties": _properties(properties)}
    return {**found, **more}


def _hash(file: ContextFile) -> str:
    return file.digest or sha256_hex(file.chunks())


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]


def _properties(values: Mapping[str, str | None]) -> list[dict[str, str]]:
    return [{"name": PREFIX + name, "value": value} for name, value in values.items() if value]


# What is installed, written by the CycloneDX library: base, Python, Debian packages, distributions.
# Importing it takes half as long as a build after an edit, so the result is cached by its inputs.


def _installed(plan: ImagePlan) -> list[dict[str, Any]]:
    inputs = [
        _CACHE_FORMAT,
        plan.dependencies.digest,
        sorted(plan.dependencies.wheels),
        plan.base.reference.canonical,
        plan.base.known_digest,
        plan.base.python,
        plan.system_packages,
    ]
    name = sha256_digest(json.dumps(inputs).encode()).removeprefix("sha256:")
    path = cache_folder() / "sboms" / f"{name}.json"
    try:
        cached: list[dict[str, Any]] = json.loads(path.read_bytes())
        return cached
    except (OSError, ValueError):
        components = _components(plan)
    remember(path, json.dumps(components).encode())
    return components


def _components(plan: ImagePlan) -> list[dict[str, Any]]:
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    packages = toml.loads(plan.dependencies.lock.decode()).get("packages", [])
    version = plan.base.python
    purl = ("generic", None, "python", version)
    components = [_base(plan), _component("python", "python", version, purl, type="platform")]
    components += [_debian(text) for text in plan.system_packages]
    components += [_distribution(package) for package in packages]
    text = JsonV1Dot6(Bom(components=components)).output_as_string()
    found: list[dict[str, Any]] = json.loads(text)["components"]
    return found


def _component(
    name: str,
    ref: str,
    version: str | None,
    purl: tuple[Any, ...] | None,
    *,
    type: str = "library",
    sha256: str | None = None,
    references: Iterable[ExternalReference] = (),
    **properties: str | None,
) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        name=name,
        type=ComponentType(type),
        bom_ref=ref,
        version=version,
        purl=PackageURL(*purl) if purl else None,
        hashes=_hashes(sha256),
        external_references=references,
        properties=[Property(**each) for each in _properties(properties)],
    )


def _base(plan: ImagePlan) -> Component:
    name, digest = plan.base.reference.canonical, plan.base.known_digest
    if not name:  # in a folder or file, whose path means nothing elsewhere
        return _component("base", "base", digest or None, None, type="container", sha256=digest)
    reference = parse_reference(name)
    where = {"repository_url": reference.name, **({"tag": t} if (t := reference.tag) else {})}
    purl = ("oci", None, reference.name.rpartition("/")[2], digest, where) if digest else None
    version = reference.tag or digest
    return _component(reference.name, "base", version, purl, type="container", sha256=digest)


def _debian(text: str) -> Component:
    package, _, version = text.partition("=")
    name, _, architecture = package.partition(":")
    where = {"arch": architecture} if architecture else None
    purl = ("deb", "debian", name, version or None, where)
    return _component(name, f"debian:{package}", version or None, purl, kind="debian")


def _distribution(package: Mapping[str, Any]) -> Component:
    name, version = package["name"], package.get("version")
    files = [*(package.get("wheels") or ()), package.get("sdist"), package.get("archive")]
    files = [file for file in files if file]
    travels = any("path" in file for file in files)
    return _component(
        name,
        f"pypi:{name}@{version}" if version else f"pypi:{name}",
        version,
        ("pypi", None, name, version),
        # Of several files, the installer chooses one.
        sha256=_sha256_of(files[0]) if len(files) == 1 else None,
        references=list(_references(package, files)),
        kind="distribution",
        index=_bare(package["index"]) if "index" in package else None,
        source="travels with the function" if travels else None,
    )


def _references(
    package: Mapping[str, Any], files: Iterable[Mapping[str, Any]]
) -> Iterable[ExternalReference]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    for file in files:
        where = _bare(file["url"]) if "url" in file else file.get("path", "")
        kind, hashes = ExternalReferenceType.DISTRIBUTION, _hashes(_sha256_of(file))
        yield ExternalReference(type=kind, url=XsUri(where), hashes=hashes)
    if vcs := package.get("vcs"):
        url, commit = XsUri(_bare(vcs.get("url", ""))), vcs.get("commit-id")
        yield ExternalReference(type=ExternalReferenceType.VCS, url=url, comment=commit)


def _sha256_of(file: Mapping[str, Any]) -> str | None:
    return (file.get("hashes") or {}).get("sha256")


def _hashes(sha256: str | None) -> list[HashType]:
    from cyclonedx.model import HashAlgorithm, HashType

    if not sha256:
        return []
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256.removeprefix("sha256:"))]


def _bare(url: str) -> str:
    """Return a URL without user, password, query and fragment, which may be credentials."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
