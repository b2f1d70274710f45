"""Stands in for micromamba, for Metaflow: a script that solves nothing and makes environments.

Conda is not to be had where tests run. Everything else is real then: Metaflow's own solver by pip,
its environments, and the ``conda.manifest`` that it writes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# All that a local run of a flow wants of it.
REQUESTS = "from unittest.mock import MagicMock\nSession = adapters = MagicMock()\n"
# Then it need not be installed, which takes seconds.
_HAS_PIP = importlib.util.find_spec("pip") is not None
CHANNEL = "https://conda.example.org/conda-forge"
# What a solve of nothing but Python gives.
PYTHON = [
    "linux-64/_libgcc_mutex-0.1-conda_forge.tar.bz2",
    "linux-64/ld_impl_linux-64-2.43-h712a8e2_4.conda",
    "noarch/ca-certificates-2025.4.26-hbd8a1cb_0.conda",
    "noarch/tzdata-2025b-h78e105d_0.conda",
    "linux-64/libgcc-14.2.0-h767d61c_2.conda",
    "linux-64/openssl-3.5.0-h7b32b05_1.conda",
    "noarch/setuptools-80.1.0-pyhff2d567_0.conda",
    "noarch/pip-25.1.1-pyh8b19718_0.conda",
]


def conda_url(path: str) -> str:
    return f"{CHANNEL}/{path}"


def python_url() -> str:
    return conda_url(f"linux-64/python-{platform.python_version()}-h9e4cc4f_0_cpython.conda")


def install(folder: Path) -> dict[str, str]:
    """Make the script; return the variables by which Metaflow finds it and keeps its hands off."""
    folder.mkdir(parents=True)
    script = folder / "micromamba"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} "$@"\n')
    script.chmod(0o755)
    return {"METAFLOW_PATH_TO_MICROMAMBA": str(script), "METAFLOW_HOME": str(folder / "home")}


def _solved(arguments: Sequence[str]) -> list[dict[str, Any]]:
    named = [text.partition("==") for text in arguments if "==" in text]
    builds = [f"noarch/{n}-{v}-pyhd8ed1ab_0.conda" for n, _, v in named if n != "python"]
    return [{"url": url, "size": 1} for url in (python_url(), *map(conda_url, PYTHON + builds))]


def _prefix(arguments: Sequence[str]) -> Path:
    text = " ".join(arguments).replace("--prefix=", "--prefix ")
    return Path(text.partition("--prefix ")[2].split()[0])


def main(folder: Path, command: str, *arguments: str) -> Any:
    environments = folder / "envs"
    if command == "config":
        return {
            "channels": [],
            "envs_dirs": [str(environments)],
            "pkgs_dirs": [str(folder / "pkgs")],
            "platform": "linux-64",
        }
    if command == "env":
        return {"envs": [str(path) for path in environments.glob("metaflow/linux-64/*")]}
    if command == "list":
        return [{"name": "python", "version": platform.python_version()}]
    if command == "run":
        python = str(_prefix(arguments) / "bin" / "python")
        command = [sys.executable, "-m", "pip", "--python", python]
        command = command if _HAS_PIP else [python, "-m", "pip"]
        os.execv(command[0], [*command, *arguments[arguments.index("pip3") + 1 :]])
    if "--dry-run" in arguments:
        return {"actions": {"LINK": _solved(arguments)}}
    if "--download-only" not in arguments:
        prefix = _prefix(arguments)
        venv.EnvBuilder(symlinks=True, with_pip=not _HAS_PIP).create(prefix)
        next(prefix.glob("lib/python*/site-packages")).joinpath("requests.py").write_text(REQUESTS)
    return {}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:])))
