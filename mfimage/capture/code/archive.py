"""Which source files are included, and the reproducible archive of them."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mfimage.capture.code._reading import defined_names, prefixes
from mfimage.capture.code.locate import Definition
from mfimage.errors import CaptureError
from mfimage.files import is_rendered
from mfimage.function.decorator import DecoratedFunction

MAX_FILES = 20_000
MAX_SIZE = 256 << 20
_NEVER = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# A virtual environment, a conda environment, a cache (including ours); rendered folders, too.
_MARKS = ("pyvenv.cfg", "conda-meta", "CACHEDIR.TAG")
_SECRETS = (".env", ".pem", ".key", ".p12", ".pfx")
_NO_DATA = (".pyc", ".pyo")
_TOO_MUCH = "bind from a folder that holds the project alone"


@dataclass(frozen=True, kw_only=True)
class CapturedCode:
    """A function's code, ready to be archived."""

    entrypoint: str  # ``module:function`` inside the archive
    root: Path | None  # the project's folder
    files: Mapping[str, Path]  # path in the archive -> file on this machine, sorted
    generated: Mapping[str, bytes]  # files that are on no disk: a function captured by value

    @property
    def module(self) -> str:
        """The entry module."""
        return self.entrypoint.partition(":")[0]

    @property
    def names(self) -> list[str]:
        """Every path inside the archive, sorted."""
        return sorted({*self.files, *self.generated})

    def scripts(self, name: str, flow: str) -> list[str]:
        """Return the files of a script's name that define its flow; equal ones once."""
        found: dict[bytes, str] = {}
        for path in sorted(self.files, key=lambda path: (path.count("/"), path)):
            if path.rpartition("/")[2] == name and name.endswith(".py"):
                data = self.files[path].read_bytes()
                with contextlib.suppress(SyntaxError):  # of another Python: not what ran
                    if {flow, "*"} & defined_names(data):
                        found.setdefault(data, path)
        return list(found.values())


def capture_code(
    function: DecoratedFunction, definition: Definition, *, script: str = ""
) -> CapturedCode:
    """Choose the files that a function needs."""
    # From the project's folder, the files that Metaflow packages (by suffix, nothing hidden), and
    # the data files of the function's own package. Never virtual environments, ``.env`` files,
    # keys, or the datastore.
    generated: Mapping[str, bytes] = {}
    entrypoint, root = f"{definition.module}:{definition.name}", definition.root
    if definition.by_value:
        from mfimage.capture.code.by_value import capture_value

        value = capture_value(function)
        generated, entrypoint = value.files, value.entrypoint
        # The folder is included only when the function refers to something in it.
        if root and not (script and (root / script).is_file()):
            tops = {name.partition(".")[0] for name in value.modules}
            if not any((root / f"{top}.py").is_file() or (root / top).is_dir() for top in tops):
                root = None
    files = _project_files(root, _own_package(root, definition.module)) if root else {}
    root = definition.root
    return CapturedCode(entrypoint=entrypoint, root=root, files=files, generated=generated)


def _own_package(root: Path, module: str) -> Path | None:
    """Return the folder of the package that a module is in, whose data files are included."""
    # A namespace may be shared by all of a repository: its part that is a package, else the
    # folder of the module.
    folders = [root.joinpath(*name.split(".")) for name in prefixes(module)]
    packages = [folder for folder in folders if (folder / "__init__.py").is_file()]
    return next(iter([*packages, *reversed(folders[:-1])]), None)


def _project_files(root: Path, own: Path | None) -> dict[str, Path]:
    from metaflow.metaflow_config import DEFAULT_PACKAGE_SUFFIXES

    given = (suffix.strip().lower() for suffix in DEFAULT_PACKAGE_SUFFIXES.split(","))
    suffixes = tuple(filter(None, given))
    files: dict[str, Path] = {}
    size = 0
    for path in _walk(root, frozenset()):
        if not _is_taken(path.name, suffixes, own in path.parents):
            continue
        files[path.relative_to(root).as_posix()] = path
        size += path.stat().st_size
        if len(files) > MAX_FILES:
            raise CaptureError(f"{root} holds more than {MAX_FILES} files of code", hint=_TOO_MUCH)
    if size > MAX_SIZE:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise CaptureError(
            f"{root} holds {size >> 20} MiB of code and package data "
            f"(at most {MAX_SIZE >> 20}); the largest file is {largest}",
            hint=_TOO_MUCH,
        )
    return dict(sorted(files.items()))


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files below a folder; links are followed, loops are not."""
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except PermissionError:
        return  # not needed: what the function imports was imported before it is bound
    for entry in entries:
        path = folder / entry.name
        if entry.is_file():
            yield path
        elif entry.is_dir() and not (
            entry.name in _NEVER
            or entry.name.startswith(".")
            or entry.name.endswith((".egg-info", ".dist-info"))
            or any((path / mark).exists() for mark in _MARKS)
            or is_rendered(path)
        ):
            yield from _walk(path, above | {real})


def _is_taken(name: str, suffixes: tuple[str, ...], in_package: bool) -> bool:
    lower = name.lower()
    if lower.startswith(".") or lower.endswith(_SECRETS):
        return False
    return lower.endswith(suffixes) or (in_package and not lower.endswith(_NO_DATA))


def archive(code: CapturedCode) -> bytes:
    """Return ``code.tar.gz``: the same files give the same bytes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in code.names:
            member = tarfile.TarInfo(name)
            data, member.mode = _content(code, name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _content(code: CapturedCode, name: str) -> tuple[bytes, int]:
    if name in code.generated:
        return code.generated[name], 0o644
    path = code.files[name]
    try:
        executable = path.stat().st_mode & stat.S_IXUSR
        return path.read_bytes(), 0o755 if executable else 0o644
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror}") from None
