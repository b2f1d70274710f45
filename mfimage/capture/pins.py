"""Requirements that hold locked packages at their versions."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from mfimage.capture.pylock import Package


def pin(package: Package, wheels: Mapping[str, Path] = {}, *, stubs: Path) -> str:
    """Return the requirement for just this package.

    A wheel that travels in a function package is on no index. Where it is not at hand either, an
    empty one stands for it: what it requires is in the function's lock, pinned.

    Parameters
    ----------
    package : Package
        What is locked.
    wheels : mapping of str to Path
        Wheels that are on this machine, by file name.
    stubs : Path
        A folder for empty wheels, which must be there as long as the requirement is used.
    """
    if not package.is_local:
        return f"{package.name}=={package.version}"
    here = [wheels[file.name] for file in package.files if file.name in wheels]
    wheel = here[0] if here else _stub(package, stubs)
    return f"{package.name} @ {wheel.resolve().as_uri()}"


def _stub(package: Package, folder: Path) -> Path:
    name = package.name.replace("-", "_")
    stub = folder / f"{name}-{package.version}-py3-none-any.whl"
    info = f"{name}-{package.version}.dist-info"
    with zipfile.ZipFile(stub, "w") as write:
        about = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        write.writestr(f"{info}/METADATA", about)
        write.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        write.writestr(f"{info}/RECORD", "")
    return stub
