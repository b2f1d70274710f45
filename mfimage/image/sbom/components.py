"""What was installed, as CycloneDX has it: distributions, Debian packages, Python, the base.

The only module that knows the library. Importing it takes half as long as a whole build after an
edit, so what it writes is kept by what went in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.reference import parse_reference
from mfimage.package.spec import sha256_digest
from mfimage.package.storage.cache import cache_folder, remember

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, HashType, Property
    from cyclonedx.model.component import Component

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "mfimage:"
# Raised when the same inputs shall give other bytes than before.
FORMAT = "1"


def installed_components(plan: ImagePlan) -> list[dict[str, Any]]:
    """Return the components that no edit of the code changes, as plain JSON values.

    Parameters
    ----------
    plan : ImagePlan
        What is built.
    """
    inputs = [
        FORMAT,
        plan.dependencies.digest,
        sorted(plan.dependencies.wheels),
        plan.base.reference.canonical,
        plan.base.known_digest,
        plan.base.python,
        plan.system_packages,
    ]
    name = sha256_digest(json.dumps(inputs).encode()).removeprefix("sha256:")
    known = cache_folder() / "sboms" / f"{name}.json"
    try:
        found: list[dict[str, Any]] = json.loads(known.read_bytes())
        return found
    except (OSError, ValueError):
        made = _make(plan)
    remember(known, json.dumps(made).encode())
    return made


def _make(plan: ImagePlan) -> list[dict[str, Any]]:
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    packages = tomllib.loads(plan.dependencies.lock.decode()).get("packages", [])
    components = [_base(plan), _python(plan)]
    components += [_debian(text) for text in plan.system_packages]
    components += [_distribution(package) for package in packages]
    text = JsonV1Dot6(Bom(components=components)).output_as_string()
    made: list[dict[str, Any]] = json.loads(text)["components"]
    return made


def _base(plan: ImagePlan) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, digest = plan.base.reference.canonical, plan.base.known_digest
    if not name:  # it lies in a folder or file of somebody's machine
        return Component(
            type=ComponentType.CONTAINER, bom_ref="base", name="base", version=digest or None,
            hashes=_sha256(digest),
        )  # fmt: skip
    reference = parse_reference(name)
    purl = None
    if digest:
        where = {"repository_url": reference.name, **({"tag": t} if (t := reference.tag) else {})}
        purl = PackageURL("oci", None, reference.name.rpartition("/")[2], digest, where)
    return Component(
        type=ComponentType.CONTAINER,
        bom_ref="base",
        name=reference.name,
        version=reference.tag or digest,
        purl=purl,
        hashes=_sha256(digest),
    )


def _python(plan: ImagePlan) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        type=ComponentType.PLATFORM,
        bom_ref="python",
        name="python",
        version=plan.base.python,
        purl=PackageURL("generic", None, "python", plan.base.python),
    )


def _debian(text: str) -> Component:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    whole, _, version = text.partition("=")
    name, _, architecture = whole.partition(":")
    qualifiers = {"arch": architecture} if architecture else None
    return Component(
        bom_ref=f"debian:{whole}",
        name=name,
        version=version or None,
        purl=PackageURL("deb", "debian", name, version or None, qualifiers),
        properties=_properties({"kind": "debian"}),
    )


def _distribution(package: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    name, version = package["name"], package.get("version")
    wheels = package.get("wheels") or []
    files = [*wheels, *filter(None, [package.get("sdist"), package.get("archive")])]
    travels = any("path" in file for file in files)
    known = {
        "kind": "distribution",
        "index": _bare(package["index"]) if "index" in package else None,
        "source": "travels with the function" if travels else None,
    }
    return Component(
        bom_ref=f"pypi:{name}@{version}" if version else f"pypi:{name}",
        name=name,
        version=version,
        purl=PackageURL("pypi", None, name, version),
        # Which of several is installed, the installer decides.
        hashes=_hashes(files[0]) if len(files) == 1 else [],
        external_references=[*map(_file, files), *_repository(package)],
        properties=_properties(known),
    )


def _file(file: Mapping[str, Any]) -> ExternalReference:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    where = _bare(file["url"]) if "url" in file else file.get("path", "")
    return ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION, url=XsUri(where), hashes=_hashes(file)
    )


def _repository(package: Mapping[str, Any]) -> Iterable[ExternalReference]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    if vcs := package.get("vcs"):
        yield ExternalReference(
            type=ExternalReferenceType.VCS,
            url=XsUri(_bare(vcs.get("url", ""))),
            comment=vcs.get("commit-id"),
        )


def _hashes(file: Mapping[str, Any]) -> list[HashType]:
    return _sha256((file.get("hashes") or {}).get("sha256"))


def _sha256(digest: str | None) -> list[HashType]:
    from cyclonedx.model import HashAlgorithm, HashType

    if not digest:
        return []
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))]


def _properties(known: Mapping[str, str | None]) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=PREFIX + name, value=value) for name, value in known.items() if value]


def _bare(url: str) -> str:
    """Return a URL without what may be a credential: user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
