"""A package's code in a folder of the user's cache, extracted once and checked at each use."""

from __future__ import annotations

from pathlib import Path

from mfimage.package.archive import extract, members
from mfimage.package.storage.cache import cache_folder, make_once, tag
from mfimage.package.store import Package


def code_folder(package: Package) -> Path:
    """Return a folder that holds a package's code, and nothing else."""
    code = package.spec.code
    where = f"the code of {package.reference}"
    data = package.read(code)
    files = {name: content for name, content, _ in members(data, where=where)}
    cache = cache_folder()

    def fill(fresh: Path) -> None:
        tag(cache)
        extract(data, fresh, where=where)

    return make_once(cache / "code" / code.hex, fill, lambda folder: holds(folder, files))


def holds(folder: Path, files: dict[str, bytes]) -> bool:
    """Return whether a folder holds exactly these files: caches get cleaned in part, and edited."""
    try:
        found = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
        return found.keys() == files.keys() and all(
            path.read_bytes() == files[name] for name, path in found.items()
        )
    except OSError:
        return False
