"""Which source files go along, and the reproducible archive that carries them."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mfimage.capture.source import Source
from mfimage.capture.value import value_files
from mfimage.errors import CaptureError
from mfimage.function.decorator import DecoratedFunction

MAX_FILES = 20_000
MAX_SIZE = 256 << 20
_NEVER = {"__pycache__", "node_modules", "site-packages"}
_SECRETS = (".env", ".pem", ".key", ".p12", ".pfx")
_NO_DATA = (".pyc", ".pyo")


@dataclass(frozen=True, kw_only=True)
class Code:
    """A function's code, ready to be archived.

    Attributes
    ----------
    entrypoint : str
        ``module:function`` inside the archive.
    root : Path or None
        The project's folder.
    files : mapping of str to Path
        Path inside the archive -> file on this machine, sorted.
    generated : mapping of str to bytes
        Files that stand on no disk: a function captured by value.
    """

    entrypoint: str
    root: Path | None
    files: Mapping[str, Path]
    generated: Mapping[str, bytes]

    @property
    def module(self) -> str:
        """The entry module."""
        return self.entrypoint.partition(":")[0]


def capture_code(function: DecoratedFunction, source: Source) -> Code:
    """Choose the files that a function needs.

    From the project's folder, what Metaflow's own packaging takes (by suffix, nothing hidden),
    and the data files of the function's own package. Never virtual environments, ``.env`` files,
    keys, or the datastore.

    Raises
    ------
    CaptureError
        When it cannot be captured, or the folder holds too much.
    """
    generated: dict[str, bytes] = {}
    entrypoint = f"{source.module}:{function.__name__}"
    if source.by_value:
        generated, entrypoint = value_files(function)
    if source.root is None:
        return Code(entrypoint=entrypoint, root=None, files={}, generated=generated)
    package = source.module.partition(".")[0]
    files = dict(sorted(_project_files(source.root, package)))
    _check_size(files, source.root)
    return Code(entrypoint=entrypoint, root=source.root, files=files, generated=generated)


def _project_files(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    suffixes = _suffixes()
    own = root / package
    seen: set[Path] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _is_walked(here / name, seen))
        in_package = (own / "__init__.py").is_file() and (here == own or own in here.parents)
        for name in names:
            path = here / name
            if _is_taken(name, suffixes, in_package) and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _is_walked(folder: Path, seen: set[Path]) -> bool:
    name = folder.name
    if name.startswith(".") or name in _NEVER or name.endswith((".egg-info", ".dist-info")):
        return False
    if (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").is_dir():
        return False
    real = folder.resolve()
    if real in seen or real == _datastore():
        return False
    seen.add(real)
    return True


def _is_taken(name: str, suffixes: tuple[str, ...], in_package: bool) -> bool:
    lower = name.lower()
    if lower.startswith(".") or lower.endswith(_SECRETS):
        return False
    return lower.endswith(suffixes) or (in_package and not lower.endswith(_NO_DATA))


def _suffixes() -> tuple[str, ...]:
    from metaflow.metaflow_config import DEFAULT_PACKAGE_SUFFIXES

    return tuple(suffix.strip().lower() for suffix in DEFAULT_PACKAGE_SUFFIXES.split(","))


def _datastore() -> Path | None:
    from metaflow.metaflow_config import DATASTORE_SYSROOT_LOCAL

    return Path(DATASTORE_SYSROOT_LOCAL).resolve() if DATASTORE_SYSROOT_LOCAL else None


def _check_size(files: Mapping[str, Path], root: Path) -> None:
    hint = "bind from a folder that holds the project alone"
    if len(files) > MAX_FILES:
        raise CaptureError(
            f"{root} holds {len(files)} files of code (at most {MAX_FILES})", hint=hint
        )
    size = sum(path.stat().st_size for path in files.values())
    if size > MAX_SIZE:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise CaptureError(
            f"{root} holds {size >> 20} MiB of code and package data "
            f"(at most {MAX_SIZE >> 20}); the largest file is {largest}",
            hint=hint,
        )


def archive(code: Code) -> bytes:
    """Return ``code.tar.gz``: the same files give the same bytes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted({*code.files, *code.generated}):
            data, mode = _content(code, name)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _content(code: Code, name: str) -> tuple[bytes, int]:
    if name in code.generated:
        return code.generated[name], 0o644
    path = code.files[name]
    try:
        executable = path.stat().st_mode & stat.S_IXUSR
        return path.read_bytes(), 0o755 if executable else 0o644
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror}") from None


@contextlib.contextmanager
def staged(code: Code) -> Iterator[Path]:
    """Yield a folder that holds just the captured files, as they will be imported."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as text:
        folder = Path(text)
        for name in {*code.files, *code.generated}:
            content, mode = _content(code, name)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
        yield folder
