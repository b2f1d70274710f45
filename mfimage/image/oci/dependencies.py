"""The dependencies layer: locked distributions installed by uv on this machine, and compiled."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from configparser import Error as ConfigError
from configparser import RawConfigParser
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, cast

from mfimage.capture.lock import toml
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.uv import UvFailure, run_uv
from mfimage.errors import BuildError, LockError
from mfimage.image.oci.cache import work_folder
from mfimage.image.oci.tar import Link, Member
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import BlobPath
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.secrets.build import CA, NETRC, PIP_CONF
from mfimage.masking import Masker
from mfimage.runtime.layout import VENV

_SCRIPT = Path(__file__).with_name("_compile.py")
_TESTS = {"test", "tests"}
_FILES_PER_PROCESS = 50  # starting a process takes as long as compiling this many files


def find_python(minor: str) -> str:
    """Return an interpreter of a minor version: this machine's, or one that uv installs."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if minor == here and sys.implementation.name == "cpython":
        return sys.executable
    find = ["python", "find", "--no-project", f"cpython@{minor}"]
    try:
        with suppress(UvFailure):
            return run_uv(find, Path.cwd(), {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}).strip()
        run_uv(["python", "install", "--no-bin", minor], Path.cwd(), os.environ)
        return run_uv(find, Path.cwd(), os.environ).strip()
    except (UvFailure, LockError) as error:
        reason = Masker([])(" ".join(str(error).split()))
        raise BuildError(
            f"compile: there is no Python {minor} on this machine to compile the image's files, "
            f"and uv cannot install one: {reason}",
            hint=f"install Python {minor}, or leave compiled files out: --no-compile",
        ) from None


def compiled_files(members: Iterable[Member], minor: str, work: Path) -> list[Member]:
    """Compile Python files, except tests, into a private folder; return what is to be added."""
    tag = f"cpython-{minor.replace('.', '')}"
    jobs, files = [], []
    for member in members:
        path = PurePosixPath(member.path)
        if not isinstance(member, ContextFile) or path.suffix != ".py":
            continue
        if not _TESTS.isdisjoint(path.parts[:-1]):
            continue
        source = member.content
        if isinstance(source, bytes):
            source = work / "sources" / path
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(cast(bytes, member.content))
        name = str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc")
        jobs.append(json.dumps([str(source), f"/{path}", str(work / "compiled" / name)]))
        files.append(ContextFile(path=name, content=work / "compiled" / name))
    if jobs:
        _run(find_python(minor), jobs)
    return [file for file in files if cast(Path, file.content).exists()]


def _run(python: str, jobs: Sequence[str]) -> None:
    # Each file is compiled by itself, so it does not matter by which process.
    count = min(os.cpu_count() or 1, 1 + len(jobs) // _FILES_PER_PROCESS)
    running = []
    for number in range(count):
        process = subprocess.Popen(
            [python, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")},
        )
        running.append((process, "\n".join(jobs[number::count]).encode()))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        errors = list(pool.map(lambda pair: pair[0].communicate(pair[1])[1], running))
    for (process, _), error in zip(running, errors, strict=True):
        if process.returncode:
            last = error.decode(errors="replace").strip().rpartition("\n")[2]
            raise BuildError(f"compile: {python} failed: {last}")


# The user's settings that would change what is installed.
_IGNORED = (
    "UV_COMPILE_BYTECODE",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_NO_VERIFY_HASHES",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
)


def install(
    plan: ImagePlan,
    wheels: Mapping[str, Path],
    tree: Path,
    work: Path,
    *,
    secrets: Mapping[str, bytes],
) -> None:
    """Install a plan's lock into the empty folder ``tree``; only uv gets the secrets."""
    # ``wheels`` are the package's own, by path in the lock; ``work`` is a private folder.
    _refuse_sources(plan)
    lock = work / "lock"
    for name, path in {"pylock.toml": None, **wheels}.items():
        target = lock / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path is None:
            target.write_bytes(plan.dependencies.lock)
        else:
            target.symlink_to(path)
    platform = Platform(python=plan.python, name=plan.platform)
    arguments = [
        *("pip", "install", "--quiet", "--prefix", str(tree), "--python", sys.executable),
        *("--python-version", plan.python, "--python-platform", platform.uv_platform),
        *("--require-hashes", "--no-build", "--no-deps", "--no-compile-bytecode"),
        *("--requirement", str(lock / "pylock.toml")),
    ]
    try:
        with _handed_over(secrets) as (variables, descriptors):
            environment = {**_uv_environment(plan), **variables}
            run_uv(arguments, lock, environment, pass_fds=descriptors)
    except UvFailure as failure:
        reason = Masker(secrets.values())(" ".join(str(failure).split()))
        hint = "give passwords by --secret, and a proxy's certificate by --secret id=ca,src=FILE"
        if "No space left on device" in reason:
            hint = "free space, or set MFIMAGE_CACHE to a folder that has some"
        raise BuildError(f"the dependencies cannot be installed: {reason}", hint=hint) from None


def _refuse_sources(plan: ImagePlan) -> None:
    for package in toml.loads(plan.dependencies.lock.decode()).get("packages", ()):
        if not package.get("wheels"):
            raise LockError(
                f"{package['name']} {package.get('version', '')} has no wheel in the lock, and "
                "nothing is built from source",
                hint="bind the function again: then its wheel is built once, and included in the "
                "package; or use --builder docker with a base image that can build it",
            )


def _uv_environment(plan: ImagePlan) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _IGNORED}
    environment |= {
        "UV_NO_INSTALLER_METADATA": "1",
        "UV_PREVIEW_FEATURES": "pylock",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": environment.get("UV_LINK_MODE", "hardlink"),
    }
    if plan.index_url:
        environment["UV_DEFAULT_INDEX"] = plan.index_url
        environment.pop("UV_INDEX_URL", None)
    if plan.extra_index_urls:
        environment["UV_INDEX"] = " ".join(plan.extra_index_urls)
    return environment


@contextmanager
def _handed_over(secrets: Mapping[str, bytes]) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield the variables that pass secrets to uv, and the open files that they name."""
    # The files have no path, so no other process can open them and a kill leaves none behind.
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        descriptors = []
        for name, value in secrets.items():
            if name in (CA, NETRC):
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(value)
                file.seek(0)
                descriptors.append(file.fileno())
                variable = "SSL_CERT_FILE" if name == CA else "NETRC"
                variables[variable] = f"/dev/fd/{file.fileno()}"
            elif name == PIP_CONF:
                variables.update(_pip_indexes(value))
            else:
                variables[name] = value.decode().strip("\n")
        yield variables, descriptors


def _pip_indexes(value: bytes) -> Iterator[tuple[str, str]]:
    parser = RawConfigParser()
    try:
        parser.read_string(value.decode())
    except (ConfigError, UnicodeDecodeError):
        raise BuildError(
            "secret pip.conf: cannot be parsed",
            hint="write it as for pip: [global], then index-url = ...",
        ) from None
    found: Any = parser["global"] if parser.has_section("global") else {}
    for key, variable in (("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX")):
        if urls := found.get(key, found.get(key.replace("-", "_"))):
            yield variable, " ".join(urls.split())


# uv installs for the image's platform and Python, whatever this machine's are: wheels only,
# verified against the lock's hashes. What it writes for this machine is rewritten for the image:
# the first line of console scripts, and their hashes in ``RECORD``.

_ROOT = VENV.lstrip("/")
_HOST = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Files that say where, when or by what something was installed.
_DROPPED = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
_OWN = {".lock", ".gitignore", "CACHEDIR.TAG"}
# Long paths, and those with spaces, go through a shell: the first form.
_SHEBANG = re.compile(rb"#!(?:/bin/sh\n'''exec' .*\n' '''|.*)\n")


@contextmanager
def laid_out(
    plan: ImagePlan,
    blob_path: BlobPath,
    *,
    python: str,
    compiled: bool,
    secrets: Mapping[str, bytes],
) -> Iterator[list[Member]]:
    """Install the plan's lock; yield the files of `VENV`, which last as long as the block."""
    # ``python`` is the base's, as ``/usr/local/bin/python3``. Errors contain no credentials.
    with work_folder() as folder:
        tree = folder / "tree"
        tree.mkdir()
        wheels = {
            f"wheels/{name}": blob_path(blob) for name, blob in plan.dependencies.wheels.items()
        }
        install(plan, wheels, tree, folder, secrets=secrets)
        members = [*_files(tree, plan), *_environment(plan, python)]
        if compiled:
            libraries = (each for each in members if each.path.startswith(f"{_ROOT}/lib/"))
            members += compiled_files(libraries, plan.python, folder)
        yield members


def _environment(plan: ImagePlan, python: str) -> Iterator[Member]:
    """Yield the files and links that make a folder a virtual environment of the base's Python."""
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
            mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
            yield ContextFile(path=f"{_ROOT}/{name}", content=path, mode=mode)
    for name, path in records:
        _check_unchanged(path)
        text = _record(path.read_text(), PurePosixPath(name).parent.parent, scripts)
        yield ContextFile(path=f"{_ROOT}/{name}", content=text.encode())


# Between the first and the last file of a wheel that is unpacked.
_UNPACKING = 60.0


def _check_unchanged(record: Path) -> None:
    """Refuse a distribution with a file that something has changed in uv's cache.

    Environments share files with the cache by hard links: a process that appends its certificate to
    certifi's in one of them changes the next image too. Only files younger than the distribution
    are compared: wheels whose ``RECORD`` was wrong from the start install everywhere.
    """
    unpacked = record.with_name("METADATA").stat().st_mtime
    for row in csv.reader(io.StringIO(record.read_text())):
        name, digest = [*row, "", ""][:2]
        path = record.parent.parent / name
        if not digest.startswith("sha256=") or not path.is_file():
            continue
        if path.stat().st_mtime <= unpacked + _UNPACKING:
            continue
        found = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
        if found.rstrip(b"=").decode() != digest.removeprefix("sha256="):
            distribution = record.parent.name.removesuffix(".dist-info").rpartition("-")[0]
            raise BuildError(
                f"{name} of {distribution} has changed in uv's cache since it was unpacked",
                hint=f"uv cache clean {distribution.replace('_', '-')}",
            )


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
                raise BuildError(f"{path.name}: a distribution installed a symbolic link")
            yield path


def _renamed(path: Path, plan: ImagePlan) -> str:
    """Return a path with the image's Python version instead of this machine's."""
    head = [f"python{plan.python}" if part == _HOST else part for part in path.parts[:3]]
    return "/".join([*head, *path.parts[3:]])


def _script(path: Path) -> bytes | None:
    """Return a Python script for the image's interpreter; None if it is not a Python script."""
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
    """Return a RECORD with the rewritten scripts, and without dropped files."""
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
