"""Packages for real workers, with no network: their wheels are made of what is installed."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import io
import os
import pickle
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mfimage.backends.process.environments import this_platform
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.package.spec import ArtifactRef, EnvironmentSpec, FunctionSpec, Lineage
from mfimage.package.store import Package, PackageStore, open_package

PYTHON = ".".join(map(str, sys.version_info[:3]))
# What the worker imports, whatever the function does.
NEEDED = (
    *("annotated-types", "orjson", "pydantic", "pydantic-core", "typing-extensions"),
    "typing-inspection",
)
HEADER = """
from __future__ import annotations
import asyncio, ctypes, logging, os, signal, subprocess, sys, threading, time
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters
"""


@functools.cache
def repack(name: str) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel of an installed distribution."""
    distribution = importlib.metadata.distribution(name)
    tags = [
        line.removeprefix("Tag: ")
        for line in (distribution.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        record = []
        for file in sorted(distribution.files or (), key=str):
            skipped = ".." in file.parts or file.suffix == ".pyc"
            if skipped or file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
            data = Path(distribution.locate_file(file)).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{file},sha256={digest},{len(data)}")
            wheel.writestr(zipfile.ZipInfo(str(file)), data)
        info = next(file.parts[0] for file in distribution.files or () if file.name == "WHEEL")
        record.append(f"{info}/RECORD,,")
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "\n".join(record) + "\n")
    return f"{info.removesuffix('.dist-info')}-{tags[-1]}.whl", buffer.getvalue()


class Packages:
    """Writes function packages below a root."""

    def __init__(self, root: Path) -> None:
        self.store = PackageStore(root)

    def environment(self, *names: str, **changes: Any) -> EnvironmentSpec:
        """Lock what the worker needs, and ``names``, at the versions installed here."""
        wheels, locked = {}, []
        for name in (*NEEDED, *names):
            file, data = repack(name)
            wheels[file] = self.store.put_bytes(data)
            files = (WheelFile(name=file, sha256=wheels[file].hex),)
            version = importlib.metadata.version(name)
            locked.append(LockedPackage(name=name, version=version, files=files))
        target = Platform(python=PYTHON, name=this_platform())
        values: dict[str, Any] = {
            "python": PYTHON,
            "platform": this_platform(),
            "source": "imports",
            "lock": self.store.put_bytes(write_pylock(locked, target)),
            "wheels": wheels,
        }
        return EnvironmentSpec(**{**values, **changes})

    def write(
        self,
        source: str,
        *,
        artifacts: Mapping[str, Any] | None = None,
        environment: EnvironmentSpec | None = None,
        **spec: Any,
    ) -> Package:
        """Write a package whose code is ``served.py``: some imports, then ``source``."""
        values: dict[str, Any] = {
            "name": "predict",
            "entrypoint": "served:predict",
            "task": "Flow/1/train/2",
            "code": self.store.put_bytes(_archive(HEADER + textwrap.dedent(source))),
            "environment": environment or self.environment(),
            "lineage": Lineage(flow="Flow", run="1", step="train", task="2"),
            "artifacts": {name: self._artifact(v) for name, v in (artifacts or {}).items()},
        }
        return open_package(self.store.write(FunctionSpec(**{**values, **spec})))

    def _artifact(self, value: Any) -> ArtifactRef:
        ref = self.store.put_bytes(pickle.dumps(value, protocol=4))
        return ArtifactRef(
            digest=ref.digest, size=ref.size, encoding="pickle-v4", type=str(type(value))
        )


def _archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("served.py")
        member.size = len(text.encode())
        tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def children(parent: int | None = None) -> set[int]:
    """Return the processes that descend from one, zombies too."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    level = {parent or os.getpid()}
    while level:
        level = {child for child, above in parents.items() if above in level}
        found |= level
    return found


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
