"""The locked distributions, laid out on this machine as they stand in the image.

uv does it, for the image's platform and Python whatever this machine's are: wheels only, held
against the lock's hashes. What it writes for this machine is written anew for the image: the first
line of console scripts, and their hashes in ``RECORD``.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mfimage.errors import BuildError
from mfimage.image.context_file import ContextFile
from mfimage.image.layer_files import BlobPath
from mfimage.image.oci.layer_cache import UNFINISHED, sweep
from mfimage.image.oci.tar import Link, Member
from mfimage.image.oci.versions import installed_version
from mfimage.image.plan import ImagePlan
from mfimage.package.storage.cache import cache_folder
from mfimage.runtime.layout import VENV

_ROOT = VENV.lstrip("/")
_HOST = f"python{sys.version_info.major}.{sys.version_info.minor}"
# What says where or when something was installed; and uv's own.
_DROPPED = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
_OWN = {".lock", ".gitignore", "CACHEDIR.TAG"}
# Longer paths, and those with spaces, go through a shell: the second form.
_SHEBANG = re.compile(rb"#!(?:/bin/sh\n'''exec' .*\n' '''|.*)\n")


def installer_version() -> str:
    """Return the version of uv: what it writes belongs to what decides a layer."""
    if found := installed_version("uv"):
        return found
    from mfimage.capture.uv import run_uv

    return run_uv(["--version"], Path.cwd(), os.environ).strip()


@contextmanager
def laid_out(
    plan: ImagePlan,
    blob_path: BlobPath,
    *,
    python: str,
    compiled: bool,
    secrets: Mapping[str, bytes],
) -> Iterator[list[Member]]:
    """Install the plan's lock; yield the files of `VENV` while the block lasts.

    Parameters
    ----------
    plan : ImagePlan
        What to install, for which platform.
    blob_path : callable
        Returns where wheels are that travel with the function.
    python : str
        Where the base has its Python, as ``/usr/local/bin/python3``.
    compiled : bool
        Compile Python files.
    secrets : mapping of str to bytes
        Credentials for uv.

    Raises
    ------
    BuildError
        When something cannot be installed; without credentials.
    """
    from mfimage.image.oci.installing import install

    folder = cache_folder() / "layers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(folder)
    # Beside uv's own cache, as a rule: files are linked instead of copied.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as text:
        tree = Path(text, "tree")
        tree.mkdir()
        wheels = {
            f"wheels/{name}": blob_path(blob) for name, blob in plan.dependencies.wheels.items()
        }
        install(plan, wheels, tree, Path(text), secrets=secrets)
        members = [*_files(tree, plan), *_environment(plan, python)]
        if compiled:
            from mfimage.image.oci.bytecode import compiled_files

            members += compiled_files(members, plan.python, Path(text))
        yield members


def _environment(plan: ImagePlan, python: str) -> Iterator[Member]:
    """Yield what makes the folder an environment of the base's Python."""
    found = plan.base.python
    text = (
        f"home = {PurePosixPath(python).parent}\nimplementation = CPython\n"
        f"version_info = {found}\ninclude-system-site-packages = false\n"
    )
    yield ContextFile(path=f"{_ROOT}/pyvenv.cfg", content=text.encode())
    yield Link(path=f"{_ROOT}/bin/python", target=python)
    for name in ("python3", f"python{plan.python}"):
        yield Link(path=f"{_ROOT}/bin/{name}", target="python")
    yield Link(path=f"{_ROOT}/lib64", target="lib")


def _files(tree: Path, plan: ImagePlan) -> Iterator[Member]:
    """Yield what was installed, as it is to stand in the image."""
    scripts: dict[str, bytes] = {}
    records: list[tuple[str, Path]] = []
    for path in _walk(tree):
        name = _renamed(path.relative_to(tree), plan)
        if path.parent == tree / "bin" and (content := _script(path)) is not None:
            scripts[name] = content
            yield ContextFile(path=f"{_ROOT}/{name}", content=content, mode=0o755)
        elif path.name == "RECORD" and path.parent.suffix == ".dist-info":
            records.append((name, path))
        else:
            yield ContextFile(path=f"{_ROOT}/{name}", content=path, mode=_mode(path))
    for name, path in records:
        text = _record(path.read_text(), PurePosixPath(name).parent.parent, scripts)
        yield ContextFile(path=f"{_ROOT}/{name}", content=text.encode())


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".pyc" or (path.parent == tree and name in _OWN):
                continue
            if name in _DROPPED and path.parent.suffix == ".dist-info":
                continue
            if path.is_symlink():
                raise BuildError(f"{path.name}: a distribution installed a link, which none may")
            yield path


def _renamed(path: Path, plan: ImagePlan) -> str:
    """Return a path with the image's Python in it, not this machine's."""
    head = [f"python{plan.python}" if part == _HOST else part for part in path.parts[:3]]
    return "/".join([*head, *path.parts[3:]])


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def _script(path: Path) -> bytes | None:
    """Return a Python script for the image's Python; None of what is no script of Python's."""
    with path.open("rb") as file:
        if file.read(2) != b"#!":
            return None
        file.seek(0)
        content = file.read()
    found = _SHEBANG.match(content)
    here = {sys.executable, os.path.realpath(sys.executable)}
    if found is None or not any(os.fsencode(python) in found.group() for python in here):
        return None
    return b"#!%s/bin/python\n" % VENV.encode() + content[found.end() :]


def _record(text: str, site: PurePosixPath, scripts: Mapping[str, bytes]) -> str:
    """Return a RECORD with what is in the image: its scripts, and nothing that was dropped."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = []
    for row in csv.reader(io.StringIO(text)):
        name = os.path.normpath(site / row[0])
        if PurePosixPath(name).name in _DROPPED and ".dist-info/" in name:
            continue
        if name in scripts:
            content = scripts[name]
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            rows.append([row[0], f"sha256={digest.decode()}", str(len(content))])
        else:
            rows.append(row)
    writer.writerows(sorted(rows))
    return out.getvalue()
