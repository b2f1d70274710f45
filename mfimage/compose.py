"""compose: functions -> a pipeline package; junctions: what fits where one follows another."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mfimage.copy import copy_package
from mfimage.errors import OptionError, SchemaError
from mfimage.package.fit import MAY_FIT, NEVER_FITS, Fit, fit
from mfimage.package.spec import (
    MIN_PARTS,
    NAME,
    CallableSpec,
    FunctionRef,
    FunctionSpec,
    PipelineSpec,
)
from mfimage.package.store import Package, PackageStore, Pipeline, open_any

logger = logging.getLogger("mfimage")


@dataclass(frozen=True, kw_only=True)
class Junction:
    """Two parts of a pipeline, the second of which takes what the first returns."""

    before: str
    after: str
    fit: Fit

    def __str__(self) -> str:
        text = f"{self.before} -> {self.after}: {self.fit.verdict}"
        places = "; ".join(self._places())
        return f"{text}: {places}" if places else text

    def _places(self) -> Iterator[str]:
        for each in self.fit.misfits:
            yield (
                f"{each.path}: {self.before} returns {each.given}, {self.after} takes {each.wanted}"
            )


def junctions(parts: Sequence[CallableSpec]) -> list[Junction]:
    """Compare what each part returns with what the next one takes."""
    return [
        Junction(
            before=before.name,
            after=after.name,
            fit=fit(before.output_schema, after.input_schema, path="result"),
        )
        for before, after in itertools.pairwise(parts)
    ]


def compose(
    name: str,
    references: Sequence[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
) -> str:
    """Write a pipeline package and return its reference; the same inputs give the same one.

    Parameters
    ----------
    name : str
        The package's name.
    references : sequence of str or path
        Function packages, in the order in which they run. The parts of a pipeline take its place.
    root : str or path, optional
        Where the package is stored, by default that of the first part; parts are copied there.

    Raises
    ------
    SchemaError
        When a part never accepts what the one before it returns: the places, and both types.
    MfimageError
        When a package is missing or damaged, or an option cannot be used.
    """
    if not NAME.fullmatch(name):
        hint = "use letters, digits, _ and -, at most 63, starting with a letter"
        raise OptionError(f"name: {name!r} is not a function name", hint=hint)
    opened = [open_any(reference) for reference in references]
    parts = [part for each in opened for part in _parts(each)]
    if len(parts) < MIN_PARTS:
        raise OptionError(
            f"pipeline {name}: expected at least {MIN_PARTS} functions, got {len(parts)}",
            hint='write pipeline("name", first, second)',
        )
    specs = [part.spec for part in parts]
    found = junctions(specs)
    _refuse(name, found)
    store = PackageStore(root) if root is not None else opened[0].store
    for part in {part.spec.digest: part for part in parts}.values():
        copy_package(part.reference, store.storage.url(""))
    reference = store.write(_spec(name, specs))
    for each in found:
        level = logging.WARNING if each.fit.verdict == MAY_FIT else logging.INFO
        logger.log(level, "%s: %s", name, each)
    return reference


def _parts(package: Package | Pipeline) -> tuple[Package, ...]:
    return package.parts if isinstance(package, Pipeline) else (package,)


def _refuse(name: str, found: Sequence[Junction]) -> None:
    for each in found:
        if each.fit.verdict == NEVER_FITS:
            raise SchemaError(
                f"pipeline {name}: {each}",
                hint=f"change the hint of what {each.before} returns or {each.after} takes and "
                "bind it again, or put a function between them that converts",
            )


def _spec(name: str, parts: Sequence[FunctionSpec]) -> PipelineSpec:
    first, last = parts[0], parts[-1]
    formats = {**first.schemas, **last.schemas}
    schemas = {
        key: {
            side: spec.schemas[key][side]
            for side, spec in (("input", first), ("output", last))
            if side in spec.schemas.get(key, {})
        }
        for key in formats
    }
    return PipelineSpec(
        name=name,
        kind=first.kind,
        task=" -> ".join(part.task for part in parts),
        batch=any(part.batch for part in parts),
        description=" -> ".join(part.name for part in parts),
        input_schema=first.input_schema,
        output_schema=last.output_schema,
        schemas={key: sides for key, sides in schemas.items() if sides},
        parts=tuple(FunctionRef(name=part.name, digest=part.digest) for part in parts),
    )
