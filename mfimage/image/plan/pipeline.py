"""A pipeline as what an image is of: its parts run in one process, in one environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePosixPath

from mfimage.errors import OptionError
from mfimage.image.plan.several import functions_source
from mfimage.image.plan.subject import FUNCTION, BuildSource, Subject, compact
from mfimage.image.targets.fastapi import FastapiTarget
from mfimage.package.archive import members
from mfimage.package.spec import EnvironmentSpec, PipelineSpec, sha256_digest
from mfimage.package.store import Package, Pipeline
from mfimage.runtime.layout import FUNCTION_JSON, FUNCTIONS_JSON

# As the project's own, but what is captured by value: every such function has a module of its name,
# and it is imported under another.
_SUFFIXES = (".py", ".so")
_BY_VALUE = "_bound_function"


def pipeline_source(pipeline: Pipeline, *, target: str) -> BuildSource:
    """Return the source of a pipeline's images: the packages of its parts, in one environment."""
    spec = pipeline.spec
    if target != FastapiTarget.name:
        raise OptionError(
            f"target: {target!r} is for functions, and {spec.name} is a pipeline",
            hint=f"build it with --target {FastapiTarget.name}, or an image of each part",
        )
    packages: dict[str, Package] = {}
    for part in pipeline.parts:
        known = packages.setdefault(part.spec.name, part)
        if known.spec.digest != part.spec.digest:
            raise OptionError(
                f"pipeline {spec.name}: two parts are named {part.spec.name}: {known.reference} "
                f"and {part.reference}",
                hint="bind one with another --name, and make the pipeline again",
            )
    _check_modules(spec.name, packages)
    together = functions_source(dict(sorted(packages.items())))
    parts = together.subject
    described = {name: data for name, data in parts.files.items() if name != FUNCTIONS_JSON}
    subject = dataclasses.replace(
        pipeline_subject(spec, parts.environment),
        code=parts.code,
        artifacts=parts.artifacts,
        files={FUNCTION_JSON: spec.to_json(), **described},
        lineage=parts.lineage,
        functions=parts.functions,
    )
    return dataclasses.replace(together, subject=subject)


def pipeline_subject(spec: PipelineSpec, environment: EnvironmentSpec) -> Subject:
    """Describe a pipeline as what an image is of, without what its parts bring."""
    return Subject(
        kind=FUNCTION,
        name=spec.name,
        digest=spec.digest,
        environment=environment,
        description=spec.description,
        labels={
            "task": spec.task,
            "parts": compact({part.name: part.digest for part in spec.parts}),
            "schema.input": compact(spec.input_schema),
            "schema.output": compact(spec.output_schema),
        },
    )


def _check_modules(pipeline: str, packages: Mapping[str, Package]) -> None:
    """Refuse parts whose code has different modules of one name: a process has one."""
    owners: dict[str, tuple[str, dict[str, str]]] = {}
    for name, package in packages.items():
        for module, files in _modules(package).items():
            owner, known = owners.setdefault(module, (name, files))
            if known != files:
                raise OptionError(
                    f"pipeline {pipeline}: {owner} and {name} have different modules named "
                    f"{module}, and an image runs both in one process",
                    hint="rename one and bind its function again, or call the pipeline with "
                    "backend='process'",
                )


def _modules(package: Package) -> dict[str, dict[str, str]]:
    """Return the digests of the files of each module or package of a function's code."""
    found: dict[str, dict[str, str]] = {}
    code = package.read(package.spec.code)
    for path, data, _ in members(code, where=f"the code of {package.spec.name}"):
        top = PurePosixPath(path).parts[0].partition(".")[0]
        found.setdefault(top, {})[path] = sha256_digest(data)
    return {
        top: files
        for top, files in found.items()
        if top != _BY_VALUE and any(path.endswith(_SUFFIXES) for path in files)
    }
