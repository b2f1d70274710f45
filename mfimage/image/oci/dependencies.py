"""Compiled Python files for an image, equal whichever machine made them."""

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
from collections.abc import Iterator, Mapping, Sequence
from configparser import Error as ConfigError
from configparser import RawConfigParser
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mfimage.capture.lock.platform import Target
from mfimage.capture.lock.uv import UvFailure, run_uv
from mfimage.errors import BuildError, LockError
from mfimage.image.oci.cache import UNFINISHED, sweep
from mfimage.image.oci.compression import installed_version
from mfimage.image.oci.tar import Link, Member
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import BlobPath
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.secrets.build import CA, NETRC, PIP_CONF
from mfimage.masking import Masker
from mfimage.package.storage.cache import cache_folder
from mfimage.runtime.layout import VENV

_SCRIPT = Path(__file__).with_name("_compile.py")
_TESTS = ("test", "tests")


def find_python(minor: str) -> str:
    """Return an interpreter of this minor version on this machine.

    Raises
    ------
    BuildError
        When there is none: another one's compiled files would be of no use.
    """
    if minor == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    from mfimage.capture.lock.uv import UvFailure, run_uv

    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    try:
        return run_uv(["python", "find", "--no-project", minor], Path.cwd(), environment).strip()
    except (UvFailure, LockError):
        raise BuildError(
            f"compile: there is no Python {minor} on this machine to compile for the image",
            hint=f"uv python install {minor}, or leave --compile out",
        ) from None


def compiled_files(members: Sequence[Member], minor: str, work: Path) -> list[Member]:
    """Compile the Python files among these, but for tests.

    Parameters
    ----------
    members : sequence of Member
        What is laid out.
    minor : str
        The image's Python.
    work : Path
        A private folder.
    """
    tag = f"cpython-{minor.replace('.', '')}"
    out = work / "compiled"
    jobs, files = [], []
    for member in members:
        path = PurePosixPath(member.path)
        wanted = isinstance(member, ContextFile) and path.suffix == ".py" and "lib" in path.parts
        if not wanted or not set(_TESTS).isdisjoint(path.parts[:-1]):
            continue
        name = str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc")
        jobs.append(json.dumps([str(member.content), f"/{path}", str(out / name)]))  # type: ignore[union-attr]
        files.append((name, out / name))
    _run(find_python(minor), jobs)
    return [ContextFile(path=name, content=path) for name, path in files if path.exists()]


def _run(python: str, jobs: Sequence[str]) -> None:
    count = max(os.cpu_count() or 1, 1)
    # Each file is compiled by itself, so it does not matter by which process.
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


# uv on this machine, with the build's credentials and for the image's platform.

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Settings of the user's that would give other files, or none.
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
    """Install a plan's lock below ``tree``, as below an environment's folder.

    Parameters
    ----------
    plan : ImagePlan
        What to install, for which platform and Python.
    wheels : mapping of str to Path
        By path in the lock: wheels that travel with the function.
    tree : Path
        Where to; empty.
    work : Path
        A private folder.
    secrets : mapping of str to bytes
        Credentials, which go to uv alone.

    Raises
    ------
    LockError
        When a distribution has no wheel.
    BuildError
        When uv fails; its message without credentials.
    """
    _refuse_sources(plan)
    lock = work / "lock"
    for name, path in {"pylock.toml": None, **wheels}.items():
        target = lock / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path is None:
            target.write_bytes(plan.dependencies.lock)
        else:
            target.symlink_to(path)
    platform = Target(python=plan.python, platform=plan.platform)
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
        raise BuildError(
            f"the dependencies cannot be installed: {reason}",
            hint="what wants a password gets it by --secret; a proxy's certificate by "
            "--secret id=ca,src=FILE",
        ) from None


def _refuse_sources(plan: ImagePlan) -> None:
    for package in tomllib.loads(plan.dependencies.lock.decode()).get("packages", ()):
        if not package.get("wheels"):
            raise LockError(
                f"{package['name']} {package.get('version', '')} has no wheel in the lock, and "
                "nothing is built from source",
                hint="bind the function again: then its wheel is built once, and travels with it; "
                "or add what builds it in a base image, and use --builder docker",
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
    """Yield the variables by which uv gets secrets, and open files that it needs for that.

    The files have no name: nobody else can open them, and a kill leaves none behind.
    """
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
            "secret pip.conf: it cannot be read", hint="as pip: [global], then index-url = ..."
        ) from None
    found: Any = parser["global"] if parser.has_section("global") else {}
    for key, variable in (("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX")):
        if urls := found.get(key, found.get(key.replace("-", "_"))):
            yield variable, " ".join(urls.split())


# The locked distributions, laid out on this machine as they stand in the image.
#
# uv does it, for the image's platform and Python whatever this machine's are: wheels only, held
# against the lock's hashes. What it writes for this machine is written anew for the image: the
# first line of console scripts, and their hashes in ``RECORD``.

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
    from mfimage.capture.lock.uv import run_uv

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
