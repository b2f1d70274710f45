"""compose: functions -> a pipeline; junctions: what fits where one follows another."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfimage.copy import copy_package
from mfimage.errors import CaptureError, InputError, OptionError, SchemaError, shorten
from mfimage.function import json as json_values
from mfimage.package.fit import MAY_FIT, NEVER_FITS, Fit, fit
from mfimage.package.spec import (
    MIN_PARTS,
    NAME,
    CallableSpec,
    Example,
    FunctionRef,
    FunctionSpec,
    PipelineSpec,
)
from mfimage.package.store import Package, PackageStore, Pipeline, open_any, package_name

if TYPE_CHECKING:
    from mfimage.backends.base import Backend

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
) -> Pipeline:
    """Return a pipeline whose parts are in its root; it is not written.

    Parameters
    ----------
    name : str
        The pipeline's name.
    references : sequence of str or path
        Function packages, in the order in which they run. The parts of a pipeline take its place.
    root : str or path, optional
        Where its package will be stored, by default that of the first part; parts are copied there.

    Raises
    ------
    SchemaError
        When a part never accepts what the one before it returns: the places, and both types.
    MfimageError
        When a package is missing or damaged, or an option cannot be used.
    """
    if "/" in name or not NAME.fullmatch(name):
        hint = "use letters, digits, _ and -, at most 63, starting with a letter or _"
        raise OptionError(f"name: {name!r} is not a pipeline's name", hint=hint)
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
    where = store.storage.url("")
    copied = {
        part.spec.digest: copy_package(part.reference, where)
        for part in {part.spec.digest: part for part in parts}.values()
    }
    for each in found:
        level = logging.WARNING if each.fit.verdict == MAY_FIT else logging.INFO
        logger.log(level, "%s: %s", name, each)
    here = tuple(
        Package(spec=part.spec, reference=copied[part.spec.digest], store=store) for part in parts
    )
    return _pipeline(_spec(name, specs), store, here)


def with_examples(made: Pipeline, records: Sequence[Any]) -> Pipeline:
    """Return a pipeline with recorded calls: each part runs where it would when it is loaded."""
    if not records:
        return made
    from mfimage.backends.choice import open_backend

    lines = [
        json_values.dumps(record, root=f"examples[{index}]", error=InputError)
        for index, record in enumerate(records)
    ]
    backend = open_backend(made)
    try:
        examples = tuple(_called(made.spec.name, backend, line) for line in lines)
    finally:
        backend.close()
    return _pipeline(dataclasses.replace(made.spec, examples=examples), made.store, made.parts)


def _called(name: str, backend: Backend, line: bytes) -> Example:
    try:
        return Example(input=json_values.loads(line), output=backend(json_values.loads(line)))
    except Exception as error:
        raise CaptureError(
            f"{name} failed on the example {shorten(line.decode(), 200)}: {error}",
            hint="correct the example or the function",
        ) from error


def _pipeline(spec: PipelineSpec, store: PackageStore, parts: tuple[Package, ...]) -> Pipeline:
    url = store.storage.url(package_name(spec))
    return Pipeline(spec=spec, reference=url, store=store, parts=parts)


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
