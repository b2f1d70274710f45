"""Packages laid out as in an image, from a few lines of source."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import pickle
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfimage.function.decorator import DecoratedFunction, json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.package.spec import (
    ArtifactRef,
    BlobRef,
    EnvironmentSpec,
    Example,
    FunctionSpec,
    Lineage,
    sha256_digest,
)
from mfimage.runtime.layout import BLOBS, FUNCTION_JSON, FUNCTIONS, FUNCTIONS_JSON, code_folder
from mfimage.runtime.loading.loader import LiveFunction

NOTHING = BlobRef(digest=sha256_digest(b""), size=0)
HEADER = """
from __future__ import annotations
import asyncio, os, threading, time
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters
"""


def make_spec(
    function: DecoratedFunction,
    *,
    entrypoint: str = "code:predict",
    examples: Sequence[tuple[Any, Any]] = (),
    artifacts: Mapping[str, ArtifactRef] | None = None,
) -> FunctionSpec:
    schema = function.signature.schema
    input_schema, output_schema = schema.input_schema(), schema.output_schema()
    return FunctionSpec(
        name=function.__name__,
        kind=function.kind,
        entrypoint=entrypoint,
        task="Flow/1/train/2",
        code=NOTHING,
        environment=EnvironmentSpec(
            python="3.11.0", platform="linux/amd64", source="imports", lock=NOTHING
        ),
        lineage=Lineage(flow="Flow", run="1", step="train", task="2"),
        batch=function.signature.batch,
        description=inspect.getdoc(function) or "",
        input_schema=input_schema,
        output_schema=output_schema,
        schemas=function.package_schemas(input_schema, output_schema),
        parameter_schema={"required": sorted(artifacts or ())},
        examples=tuple(Example(input=given, output=output) for given, output in examples),
        artifacts=artifacts or {},
    )


def live(function: Any, *, batch: bool = False, **parameters: Any) -> LiveFunction:
    """Return a function of this process, alive."""
    decorated = json_function(batch=batch)(function)
    return LiveFunction(make_spec(decorated), decorated, FunctionParameters(**parameters))


def make_folder(
    folder: Path,
    source: str,
    *,
    name: str = "predict",
    artifacts: Mapping[str, Any] | None = None,
    examples: Sequence[tuple[Any, Any]] = (),
) -> Path:
    """Lay out a package whose code is ``source``, after some imports."""
    text = HEADER + source
    module = types.ModuleType("_mfimage_test_source")
    sys.modules[module.__name__] = module
    exec(compile(text, "code.py", "exec"), module.__dict__)
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "served.py").write_text(text)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    refs = {key: _store(blobs, value) for key, value in (artifacts or {}).items()}
    spec = make_spec(
        getattr(module, name), entrypoint=f"served:{name}", examples=examples, artifacts=refs
    )
    (folder / "function.json").write_bytes(spec.to_json())
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A function of several: its source, the module that it is in, and its artifacts."""

    source: str
    module: str = "served"
    artifacts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Sequence[tuple[Any, Any]] = ()


def make_functions(folder: Path, functions: Mapping[str, Source]) -> Path:
    """Lay out several functions, by the names in their paths; in its source each is `predict`."""
    blobs = folder / BLOBS
    blobs.mkdir(parents=True)
    for name, each in functions.items():
        text = (HEADER + each.source).encode()
        module = types.ModuleType("_mfimage_test_source")
        sys.modules[module.__name__] = module
        exec(compile(text, "code.py", "exec"), module.__dict__)
        digest = sha256_digest(each.module.encode() + text)
        code = folder / code_folder(digest)
        code.mkdir(parents=True, exist_ok=True)
        (code / f"{each.module}.py").write_bytes(text)
        refs = {key: _store(blobs, value) for key, value in each.artifacts.items()}
        spec = make_spec(
            module.predict, entrypoint=f"{each.module}:predict", examples=each.examples,
            artifacts=refs,
        )  # fmt: skip
        spec = dataclasses.replace(spec, name=name, code=BlobRef(digest=digest, size=len(text)))
        described = folder / FUNCTIONS / name
        described.mkdir(parents=True)
        (described / FUNCTION_JSON).write_bytes(spec.to_json())
    (folder / FUNCTIONS_JSON).write_text(json.dumps({"functions": sorted(functions)}))
    return folder


def _store(blobs: Path, value: Any) -> ArtifactRef:
    data = pickle.dumps(value, protocol=4)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return ArtifactRef(
        digest=f"sha256:{digest}", size=len(data), encoding="pickle-v4", type=str(type(value))
    )
