"""Projects of one module, and what mfimage says of them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfimage.capture.code.imports import Code, Imports, search_imports
from mfimage.capture.environment.sources import Environment, Request, describe_environment
from mfimage.capture.environment.sources.conda import Resolution
from mfimage.capture.task.pickles import StoredBytes
from tests.capture.wheelhouse import Interpreter


def write(root: Path, files: Mapping[str, str]) -> list[Path]:
    paths = []
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        paths.append(path)
    return paths


def find(
    interpreter: Interpreter,
    root: Path,
    code: str = "",
    *,
    run: bool = True,
    module: str = "predict",
    artifacts: Mapping[str, bytes] | None = None,
    **files: str,
) -> Imports:
    named = {f"{name}.py": text for name, text in files.items()}
    written = write(root, {"predict.py": code, **named})
    stored = {
        name: StoredBytes(encoding="pickle-v4", open=lambda data=data: io.BytesIO(data))
        for name, data in (artifacts or {}).items()
    }
    asked = Code(
        root=root, files=written, module=module, artifacts=stored, python=interpreter.python
    )
    with search_imports(asked, run=run) as search:
        return search.result()


def describe(
    interpreter: Interpreter,
    project: Path,
    declared: str = "",
    *,
    code_root: Path | None = None,
    functions: Sequence[str] = ("predict",),
    artifacts: Mapping[str, StoredBytes] | None = None,
    resolution: Resolution | None = None,
    **options: Any,
) -> Environment:
    root = code_root or project
    code = Code(
        root=root,
        files=sorted(root.rglob("*.py")),
        module="predict",
        functions=functions,
        artifacts=artifacts or {},
        python=interpreter.python,
    )
    request = Request(
        code=code,
        project=project,
        declared=project / declared if declared else None,
        resolution=lambda: resolution,
        **options,
    )
    return describe_environment(request)


def versions(environment: Environment) -> dict[str, str]:
    return {package.name: package.version for package in environment.lock.packages}
