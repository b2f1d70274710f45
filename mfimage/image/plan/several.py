"""Several functions as what one image is of: their names, environment and lock together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from mfimage.errors import LockError, OptionError
from mfimage.image.plan.subject import (
    FUNCTIONS,
    BuildSource,
    Subject,
    lineage_of,
    timeless_json,
)
from mfimage.package.spec import BlobRef, EnvironmentSpec, FunctionSpec, sha256_digest, sha256_of
from mfimage.package.store import Package, PackageStore, open_package
from mfimage.runtime.layout import FUNCTION_JSON, FUNCTIONS_JSON, code_folder
from mfimage.runtime.layout import FUNCTIONS as FOLDER

_PARALLEL = 8
_NAMED = 2  # of the names in a title


def open_packages(references: Sequence[str]) -> dict[str, Package]:
    """Open function packages; return them by name, sorted."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return _by_name(list(pool.map(open_package, references)))


def functions_source(packages: Mapping[str, Package]) -> BuildSource:
    """Return the source of an image of several functions: their packages, by name."""
    specs = {name: package.spec for name, package in packages.items()}
    _check_alike(specs)
    lock = _lock(packages)
    roots: dict[str, PackageStore] = {}
    stores: dict[str, PackageStore] = {}
    for package in packages.values():
        store = roots.setdefault(package.store.storage.url(""), package.store)
        stores |= {digest: store for digest in package.spec.blobs if digest not in stores}
    # The locks of images are kept by the functions' own, so that one function that changed does
    # not change what is installed.
    return BuildSource(
        subject=functions_subject(specs, _environment(specs, lock)),
        store=next(iter(roots.values())),
        folder=f"environments/{sha256_digest(lock).removeprefix('sha256:')}",
        stores=stores, lock=lock,
    )  # fmt: skip


def functions_subject(specs: Mapping[str, FunctionSpec], environment: EnvironmentSpec) -> Subject:
    """Describe several functions, by name, as what an image is of."""
    specs = dict(sorted(specs.items()))
    names = list(specs)
    listed = json.dumps({"functions": names}, indent=1).encode() + b"\n"
    each = {f"{FOLDER}/{name}/{FUNCTION_JSON}": timeless_json(s) for name, s in specs.items()}
    return Subject(
        kind=FUNCTIONS,
        name=_title(names),
        digest=sha256_of({name: spec.digest for name, spec in specs.items()}),
        environment=environment,
        description=", ".join(names),
        code={code_folder(spec.code.digest): spec.code for spec in specs.values()},
        artifacts={
            f"{name}:{artifact}": ref
            for name, spec in specs.items()
            for artifact, ref in spec.artifacts.items()
        },
        files={FUNCTIONS_JSON: listed, **each},
        labels={"functions.count": str(len(names))},
        lineage=dict(_common([lineage_of(spec) for spec in specs.values()])),
        functions=specs,
    )


def _title(names: Sequence[str]) -> str:
    head, more = ", ".join(names[:_NAMED]), len(names) - _NAMED
    return f"{head} and {more} more" if more > 0 else head


def _common(lineages: Sequence[Mapping[str, str | None]]) -> Iterator[tuple[str, str | None]]:
    """Yield what all functions come from."""
    for name, value in lineages[0].items():
        if all(each[name] == value for each in lineages):
            yield name, value


def _by_name(packages: Sequence[Package]) -> dict[str, Package]:
    found: dict[str, Package] = {}
    for package in packages:
        known = found.setdefault(package.spec.name, package)
        if known is not package:
            raise OptionError(
                f"two functions are named {package.spec.name}: {known.reference} and "
                f"{package.reference}",
                hint="leave one out, or bind it with another --name",
            )
    return dict(sorted(found.items()))


def _check_alike(specs: Mapping[str, FunctionSpec]) -> None:
    """Refuse functions for different Pythons or platforms."""
    (first, spec), *others = specs.items()
    wanted = spec.environment
    for name, other in others:
        found = other.environment
        for field, one, two in (
            ("python", wanted.python_minor, found.python_minor),
            ("platform", wanted.platform, found.platform),
        ):
            if one != two:
                raise OptionError(
                    f"{field}: {first} was bound for {one}, {name} for {two}",
                    hint=f"bind both with one {field}, or build an image of each",
                )


def _environment(specs: Mapping[str, FunctionSpec], lock: bytes) -> EnvironmentSpec:
    environments = [each.environment for each in specs.values()]
    return EnvironmentSpec(
        python=max((each.python for each in environments), key=_numbers),
        platform=environments[0].platform,
        source=", ".join(sorted({each.source for each in environments})),
        lock=BlobRef(digest=sha256_digest(lock), size=len(lock)),
        wheels=_wheels(specs),
        system_packages=tuple(sorted({p for each in environments for p in each.system_packages})),
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _wheels(specs: Mapping[str, FunctionSpec]) -> dict[str, BlobRef]:
    found: dict[str, tuple[str, BlobRef]] = {}
    for function, spec in specs.items():
        for name, ref in spec.environment.wheels.items():
            owner, known = found.setdefault(name, (function, ref))
            if known.digest != ref.digest:
                raise LockError(
                    f"{name}: {owner} and {function} have different wheels of this name: "
                    f"{known.digest[:19]} and {ref.digest[:19]}",
                    hint="bind both again in one place, so that both have the same",
                )
    return {name: ref for name, (_, ref) in found.items()}


def _lock(packages: Mapping[str, Package]) -> bytes:
    from mfimage.capture.lock.merge import FunctionLock, merge_locks
    from mfimage.capture.lock.platform import Platform

    read: dict[str, bytes] = {}
    locks = []
    for name, package in packages.items():
        environment = package.spec.environment
        if environment.lock.digest not in read:
            read[environment.lock.digest] = package.read(environment.lock)
        locks.append(
            FunctionLock(
                name=name, data=read[environment.lock.digest], source=environment.source,
                reasons=environment.reasons,
            )
        )  # fmt: skip
    return merge_locks(locks, Platform(python=environment.python, name=environment.platform))
