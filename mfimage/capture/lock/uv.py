"""Runs uv: the only module that does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from shutil import which
from typing import NamedTuple

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.platform import Platform
from mfimage.errors import LockError
from mfimage.files import EPOCH
from mfimage.masking import Masker, url_secrets

# Never part of a lock: mfimage ships its own runtime.
NEVER_LOCKED = ("mfimage",)
_TIMEOUT = 1800
# Would keep the built wheel out of the cache, and refuse a git revision, which has no hash.
_NOT_BUILDING = {"UV_NO_CACHE", "UV_REQUIRE_HASHES"}


class Solution(NamedTuple):
    """What uv solved: a ``pylock.toml``, and its log of how it got there."""

    pylock: str
    log: str


class UvFailure(LockError):
    """Uv failed; the message is uv's own, with secrets masked."""

    def __init__(self, command: str, text: str) -> None:
        hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), None)
        words = text.strip().removeprefix("error: ")
        if len(words) > _LONGEST:  # what failed stands first, and why a build failed last
            words = f"{words[:500]}\n[...]\n{words[500 - _LONGEST :]}"
        file = os.environ.get("SSL_CERT_FILE")
        if file and not os.path.exists(file):  # noqa: PTH110  (a Path of a broken value may raise)
            hint = (
                f"SSL_CERT_FILE names {file}, which does not exist: uv trusts no server; unset it"
            )
        super().__init__(f"{command}: {words}", hint=hint)
        # Uv wraps its lines at the width of a terminal.
        self._line = " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        return LockError, (self.message,), {"hint": self.hint}

    @property
    def is_unsolved(self) -> bool:
        """Whether the requirements have no solution on indexes that did respond."""
        refused = re.search("network was disabled|valid authentication|Forbidden", self._line)
        return "No solution found" in self._line and not refused

    @property
    def wants_source(self) -> bool:
        """Whether it may work once source distributions are allowed."""
        return bool(re.search(_NO_WHEELS, self._line))

    @property
    def wants_next_index(self) -> bool:
        """Whether it may work once all indexes are asked for a package."""
        return "subsequent index" in self._line


_NO_WHEELS = (
    r"no (usable )?wheels|building from source is disabled|[Bb]uilding source distributions .*is d"
)
_HINTS = {
    "valid authentication|Forbidden|Unauthorized": "give credentials by "
    "UV_INDEX_<NAME>_USERNAME and _PASSWORD, or by ~/.netrc",
    "No solution found": "change the requirement, add an index with --extra-index-url, or name "
    "the whole environment with environment=",
    "Distribution not found at": "write name==version: that path is of another machine",
    "Failed to (download and )?build": "build the wheel yourself, and name its file in a "
    "requirements file",
}
_LONGEST = 4000


@cache
def find_uv() -> str:
    """Return the path of uv: from the ``uv`` package, else from PATH."""
    try:
        import uv

        return os.fspath(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        if found := which("uv"):
            return found
    raise LockError("uv is not installed", hint="pip install uv")


def compile_pylock(
    requirements: str,
    *,
    platform: Platform,
    directory: Path,
    constraints: str = "",
    index: IndexOptions = OWN_CONFIGURATION,
    alone: bool = False,
    builds: bool = True,
) -> Solution:
    """Solve requirements for a platform."""
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        excludes, limits = Path(folder, "excludes.txt"), Path(folder, "constraints.txt")
        excludes.write_text("\n".join(NEVER_LOCKED))
        limits.write_text(constraints)
        arguments = [
            *_compile_for(platform),
            *("--format", "pylock.toml", "--excludes", str(excludes)),
            *("--constraints", str(limits)),
            *(["--no-deps"] if alone else []),
        ]
        return _solve(arguments, directory, index, requirements, builds=builds)


def compile_notes(
    requirements: str, *, platform: Platform, directory: Path, index: IndexOptions
) -> str:
    """Solve requirements; return them with comments that name their requirers and indexes."""
    arguments = [*_compile_for(platform), "--format", "requirements.txt", "--emit-index-annotation"]
    return _solve(arguments, directory, index, requirements, builds=False).pylock


def _compile_for(platform: Platform) -> list[str]:
    return [
        *("pip", "compile", "-", "--quiet", "--no-header"),
        # Runs builds; versions are chosen for the platform's Python.
        *("--python", sys.executable),
        *("--python-version", platform.minor, "--python-platform", platform.uv_platform),
    ]


# Which index pages uv reads, and which package requires which: `notes.read_log` reads it.
_LOGGED = "uv_client::cached_client=debug,uv_resolver=debug"


def _solve(
    arguments: Sequence[str], directory: Path, index: IndexOptions, text: str, *, builds: bool
) -> Solution:
    failure: UvFailure | None = None
    # Without a wheel on any index, and for metadata that only a build gives, sources are allowed.
    for more in (["--only-binary", ":all:"], []) if builds else (["--only-binary", ":all:"],):
        for environment in index.environments(os.environ, directory):
            try:
                logged, log = {**environment, "RUST_LOG": _LOGGED}, list[str]()
                solved = run_uv([*arguments, *more], directory, logged, text, log=log)
                return Solution(solved, log[0])
            except UvFailure as error:
                failure = error
            if not failure.wants_next_index:
                break
        if failure and not failure.wants_source:
            break
    assert failure is not None
    raise failure


def export_pylock(
    project: Path, *, with_project: bool, index: IndexOptions, package: str | None
) -> str:
    """Return a project's ``uv.lock`` as a pylock.toml for all platforms."""
    more = [] if with_project else ["--no-emit-project"]
    more += [f"--prune={name}" for name in NEVER_LOCKED]
    return _export(project, ["--format", "pylock.toml", *more], index, package)


def export_notes(project: Path, *, index: IndexOptions, package: str | None) -> str:
    """Return a ``uv.lock`` as requirements with comments that name their requirers."""
    return _export(project, ["--format", "requirements.txt", "--no-hashes"], index, package)


def _export(project: Path, more: Sequence[str], index: IndexOptions, package: str | None) -> str:
    more = [*more, "--package", package] if package else more
    arguments = ["export", "--quiet", "--no-header", "--locked", "--no-default-groups"]
    arguments += ["--project", str(project), *more]
    return run_uv(arguments, project, index.environment(os.environ, project))


def build_directory(source: Path, out: Path, *, platform: Platform, index: IndexOptions) -> Path:
    """Build the wheel of a source tree; return it, in ``out``."""
    python = _python_for(platform)
    arguments = ["build", "--wheel", "--python", python, "--out-dir", str(out)]
    run_uv([*arguments, str(source)], source, _building(index, source))
    return _first_wheel(out.glob("*.whl"), str(source))


def build_requirement(
    name: str, requirement: str, out: Path, *, platform: Platform, index: IndexOptions
) -> Path:
    """Build the wheel of a requirement that names a URL; return it, below ``out``."""
    # Uv can fetch it (git, credentials, hashes) but has no command that keeps the wheel, so it is
    # taken from a cache made for this one call.
    cache_folder = out / "cache"
    arguments = [
        *("pip", "install", "--no-deps", "--python", _python_for(platform)),
        *("--link-mode", "copy", "--cache-dir", str(cache_folder), "--target", str(out / "tree")),
        *("-r", "-"),
    ]
    run_uv(arguments, Path.cwd(), _building(index, Path.cwd()), requirement)
    # The cache also holds built build requirements, and sources may hold wheels as test data.
    wheels = cache_folder.glob("sdists-*/**/*.whl")
    shallow = sorted(wheels, key=lambda path: len(path.parts))
    wanted = canonicalize_name(name)

    def is_wanted(wheel: Path) -> bool:
        try:
            return wheel.is_file() and parse_wheel_filename(wheel.name)[0] == wanted
        except InvalidWheelFilename:
            return False

    return _first_wheel(filter(is_wanted, shallow), name)


def _first_wheel(wheels: Iterable[Path], label: str) -> Path:
    for wheel in wheels:
        return wheel
    hint = "build the wheel yourself, and name its file in a requirements file"
    raise LockError(f"uv built {label}, but its wheel is not where mfimage expects it", hint=hint)


def _building(index: IndexOptions, directory: Path) -> dict[str, str]:
    """Return an environment in which the same source gives the same wheel, kept in the cache."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_BUILDING}
    fixed = {"SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONHASHSEED": "0", "GIT_OPTIONAL_LOCKS": "0"}
    return index.environment({**inherited, **fixed}, directory)


def _python_for(platform: Platform) -> str:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if platform.minor == ours else platform.minor


def run_uv(
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    text: str = "",
    *,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    log: list[str] | None = None,
) -> str:
    """Run uv and return its stdout; its stderr is appended to ``log``."""
    command = f"uv {' '.join(arguments[: 2 if arguments[0] == 'pip' else 1])}"
    try:
        done = subprocess.run(
            [*prefix, find_uv(), *arguments],
            input=text.encode(),
            capture_output=True,
            cwd=directory,
            env={**environment, "NO_COLOR": "1", "UV_NO_PROGRESS": "1"},
            timeout=_TIMEOUT,
            pass_fds=pass_fds,
            check=False,
        )
    except OSError as error:
        raise LockError(f"cannot run uv in {directory}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise LockError(f"{command} took more than {_TIMEOUT // 60} minutes") from None
    stderr = done.stderr.decode(errors="replace")
    if done.returncode:
        ours = {name: value for name, value in environment.items() if name.startswith("UV_")}
        secrets = {value for name, value in ours.items() if re.search("PASSWORD|TOKEN", name)}
        secrets |= url_secrets("\n".join([*ours.values(), text]))
        mask = Masker(secret.encode() for secret in secrets)
        words = re.sub(r"^(?:DEBUG|INFO|WARN|TRACE) .*\n?", "", stderr, flags=re.MULTILINE)
        raise UvFailure(command, mask(words))
    if log is not None:
        log.append(stderr)
    return done.stdout.decode()
