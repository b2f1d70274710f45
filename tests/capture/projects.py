"""Projects of one module, and what mfimage says of them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfimage.capture.code.imports import Imports, find_imports
from mfimage.capture.environment.choose import Environment, describe_environment
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
    return find_imports(
        code_root=root,
        files=written,
        module=module,
        artifacts=stored,
        run=run,
        python_executable=interpreter.python,
    )


def describe(
    interpreter: Interpreter, project: Path, declared: str = "", **options: Any
) -> Environment:
    root = options.pop("code_root", project)
    return describe_environment(
        declared=project / declared if declared else None,
        project=project,
        code_root=root,
        files=sorted(root.rglob("*.py")),
        module="predict",
        functions=options.pop("functions", ["predict"]),
        artifacts=options.pop("artifacts", {}),
        python_executable=interpreter.python,
        **options,
    )


def versions(environment: Environment) -> dict[str, str]:
    return {package.name: package.version for package in environment.lock.packages}
