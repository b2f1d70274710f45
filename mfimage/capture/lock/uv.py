"""Runs uv: the only module that does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from shutil import which
from urllib.parse import unquote

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.platform import Target
from mfimage.errors import LockError
from mfimage.files import EPOCH

# What is never part of a lock: mfimage ships its own runtime.
NEVER_LOCKED = ("mfimage",)
_TIMEOUT = 1800
# The wheel is taken from a cache, and a git revision has no hash but its own.
_NOT_BUILDING = {"UV_NO_CACHE", "UV_REQUIRE_HASHES"}


@cache
def find_uv() -> str:
    """Return the path of uv: of the ``uv`` package, else on PATH.

    Raises
    ------
    LockError
        When there is none.
    """
    try:
        import uv

        return os.fspath(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = which("uv")
    if not found:
        raise LockError("uv is not installed", hint="pip install uv")
    return found


def compile_pylock(
    requirements: str,
    *,
    target: Target,
    directory: Path,
    constraints: str = "",
    index: IndexOptions = OWN_CONFIGURATION,
    alone: bool = False,
    builds: bool = True,
) -> str:
    """Solve requirements for a target; return a pylock.toml as uv writes it.

    Parameters
    ----------
    requirements, constraints : str
        Texts of requirements files.
    target : Target
        What to solve for.
    directory : Path
        Where relative paths start, and uv looks for its configuration.
    index : IndexOptions
        Which indexes to ask.
    alone : bool
        Leave out what the requirements require.
    builds : bool
        Take what has no wheel and can be built into one, too.

    Raises
    ------
    Unsolved
        When there is no solution.
    LockError
        When an index cannot be reached, or something cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        excludes, limits = Path(folder, "excludes.txt"), Path(folder, "constraints.txt")
        excludes.write_text("\n".join(NEVER_LOCKED))
        limits.write_text(constraints)
        arguments = [
            *_compile_for(target),
            *("--format", "pylock.toml", "--excludes", str(excludes)),
            *("--constraints", str(limits)),
            *(["--no-deps"] if alone else []),
        ]
        return _solve(arguments, directory, index, requirements, builds=builds)


def compile_notes(
    requirements: str, *, target: Target, directory: Path, index: IndexOptions
) -> str:
    """Solve requirements; return them with comments that say what requires each, and its index.

    Raises
    ------
    LockError
        As ``compile_pylock``.
    """
    arguments = [*_compile_for(target), "--format", "requirements.txt", "--emit-index-annotation"]
    return _solve(arguments, directory, index, requirements, builds=False)


def _compile_for(target: Target) -> list[str]:
    return [
        *("pip", "compile", "-", "--quiet", "--no-header"),
        # Whichever interpreter runs uv's builds: the versions are those for the target's.
        *("--python", sys.executable),
        *("--python-version", target.minor, "--python-platform", target.uv_platform),
    ]


def _solve(
    arguments: Sequence[str], directory: Path, index: IndexOptions, text: str, *, builds: bool
) -> str:
    failure = UvFailure("uv did not run")
    # Something may have no wheel on any index, or has to be built to say what it requires.
    for more in (["--only-binary", ":all:"], []) if builds else (["--only-binary", ":all:"],):
        for environment in index.environments(os.environ, directory):
            try:
                return run_uv([*arguments, *more], directory, environment, text)
            except UvFailure as error:
                failure = error
            if not failure.wants_next_index:
                break
        if not failure.wants_source:
            break
    raise explain(failure) from None


def export_pylock(project: Path, *, with_project: bool, index: IndexOptions) -> str:
    """Return a project's ``uv.lock`` as a pylock.toml, for all platforms, as uv writes it.

    Parameters
    ----------
    project : Path
        The folder of ``uv.lock``.
    with_project : bool
        Whether the project's own distribution is wanted, beside what it depends on.
    index : IndexOptions
        Which indexes to ask, should uv need one.
    """
    more = [] if with_project else ["--no-emit-project"]
    more += [f"--prune={name}" for name in NEVER_LOCKED]
    return _export(project, ["--format", "pylock.toml", *more], index)


def export_notes(project: Path, *, index: IndexOptions) -> str:
    """Return a ``uv.lock`` as requirements, with comments that say what requires each."""
    return _export(project, ["--format", "requirements.txt", "--no-hashes"], index)


def _export(project: Path, more: Sequence[str], index: IndexOptions) -> str:
    arguments = ["export", "--quiet", "--no-header", "--locked", "--no-default-groups"]
    arguments += ["--project", str(project), *more]
    try:
        return run_uv(arguments, project, index.environment(os.environ, project))
    except UvFailure as failure:
        raise explain(failure) from None


def build_directory(source: Path, out: Path, *, target: Target, index: IndexOptions) -> Path:
    """Build the wheel of a source tree; return it, in ``out``.

    Raises
    ------
    LockError
        When it cannot be built.
    """
    python = _python_for(target)
    arguments = ["build", "--wheel", "--python", python, "--out-dir", str(out)]
    try:
        run_uv([*arguments, str(source)], source, _building(index, source))
    except UvFailure as failure:
        raise explain(failure) from None
    return _only_wheel(out.glob("*.whl"), str(source))


def build_requirement(
    name: str, requirement: str, out: Path, *, target: Target, index: IndexOptions
) -> Path:
    """Build the wheel of a requirement that names a URL; return it, below ``out``.

    Uv knows how to fetch it (git, credentials, hashes), yet has no command that keeps the wheel:
    it is taken from a cache that is made for this one call.

    Raises
    ------
    LockError
        When it cannot be fetched or built.
    """
    cache_folder = out / "cache"
    arguments = [
        *("pip", "install", "--no-deps", "--python", _python_for(target)),
        *("--link-mode", "copy", "--cache-dir", str(cache_folder), "--target", str(out / "tree")),
        *("-r", "-"),
    ]
    try:
        run_uv(arguments, Path.cwd(), _building(index, Path.cwd()), requirement)
    except UvFailure as failure:
        raise explain(failure) from None
    # What it was built with may have been built, too, and sources may hold wheels as test data.
    wheels = cache_folder.glob("sdists-*/**/*.whl")
    shallow = sorted(wheels, key=lambda path: len(path.parts))
    return _only_wheel((path for path in shallow if _is_of(path, name)), name)


def _is_of(wheel: Path, name: str) -> bool:
    try:
        return wheel.is_file() and parse_wheel_filename(wheel.name)[0] == canonicalize_name(name)
    except InvalidWheelFilename:
        return False


def _only_wheel(wheels: Iterable[Path], label: str) -> Path:
    for wheel in wheels:
        return wheel
    raise LockError(
        f"uv built {label}, and its wheel is not where this mfimage looks for it",
        hint="build the wheel yourself, and name its file in a requirements file",
    )


def _building(index: IndexOptions, directory: Path) -> dict[str, str]:
    """Return an environment in which the same source gives the same wheel, and uv keeps it."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_BUILDING}
    fixed = {
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "PYTHONHASHSEED": "0",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    return index.environment({**inherited, **fixed}, directory)


def _python_for(target: Target) -> str:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if target.minor == ours else target.minor


def run_uv(
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    text: str = "",
    *,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> str:
    """Run uv and return its stdout.

    Parameters
    ----------
    arguments : sequence of str
        What to do.
    directory : Path
        Where to run it.
    environment : mapping of str to str
        Its environment variables.
    text : str
        Its stdin.
    prefix : sequence of str
        A command that becomes uv.
    pass_fds : sequence of int
        Open files that it is to have.

    Raises
    ------
    UvFailure
        When it fails.
    LockError
        When it cannot be run.
    """
    command = [*prefix, find_uv(), *arguments]
    try:
        done = subprocess.run(
            command,
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
        raise LockError(f"uv {arguments[0]} took more than {_TIMEOUT // 60} minutes") from None
    if done.returncode:
        raise UvFailure(scrub(done.stderr.decode(errors="replace"), environment, text))
    return done.stdout.decode()


# What uv says when it fails, in one sentence and without secrets.

_USERINFO = re.compile(r"(?<=://)[^/\s@'\"`]+@")
_SHORTEST_SECRET = 4
_WANTS_SOURCE = re.compile(
    r"no (usable )?wheels|building from source is disabled|[Bb]uilding source distributions .*is d"
)
# Older versions of uv draw their causes as a tree.
_MARKS = re.compile(r"^[\s\u00d7\u2500-\u257f\u25b6]+", re.MULTILINE)
_LONGEST = 900


class UvFailure(Exception):
    """Uv failed; the text is what it wrote to stderr, scrubbed."""

    @property
    def wants_source(self) -> bool:
        """Whether it may work once source distributions are allowed."""
        return bool(_WANTS_SOURCE.search(str(self)))

    @property
    def wants_next_index(self) -> bool:
        """Whether it may work once further indexes are asked for what the first one has."""
        return "subsequent index" in " ".join(str(self).split())


class Unsolved(LockError):
    """The requirements have no solution on the indexes that were asked."""


def scrub(text: str, environment: Mapping[str, str] = os.environ, *more: str) -> str:
    """Return ``text`` without users and passwords.

    Parameters
    ----------
    text : str
        What is going to be shown.
    environment : mapping of str to str
        Variables of uv that may hold passwords, alone or in URLs.
    *more : str
        Other texts whose URLs may hold passwords.
    """
    for secret in sorted(_secrets(environment, more), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USERINFO.sub("***@", text)


def _secrets(environment: Mapping[str, str], texts: tuple[str, ...]) -> set[str]:
    uv_values = {name: value for name, value in environment.items() if name.startswith("UV_")}
    found = {value for name, value in uv_values.items() if re.search("PASSWORD|TOKEN", name)}
    for text in (*uv_values.values(), *texts):
        for match in _USERINFO.findall(text):
            found |= set(_passwords(match[:-1]))
    return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}


def _passwords(userinfo: str) -> Iterator[str]:
    user, _, password = userinfo.partition(":")
    # A token may stand alone, as the user.
    value = password or user
    if value != "git":  # the user of every git+ssh URL is none
        yield from (value, unquote(value))


def explain(failure: UvFailure) -> LockError:
    """Return the error to show for a failure of uv."""
    text = str(failure)
    plain = " ".join(_MARKS.sub(" ", text).split())
    for recognize in (_conflict, _unreachable, _build):
        error = recognize(plain, text)
        if error:
            return error
    reason = re.sub(r"^(?:warning: .*?)?error: | in `-` at position \d+| \^+$", "", plain)
    return LockError(
        f"uv cannot solve it: {_shorten(reason.replace(' cause:', ':'))}",
        hint=_certificate_hint() or "check the requirements that are declared",
    )


def _conflict(plain: str, text: str) -> LockError | None:
    match = re.search(r"No solution found when resolving dependencies.*?:? (Because .*)", plain)
    if not match:
        return None
    reason, _, uv_hint = match[1].partition(" hint: ")
    if "network was disabled" in uv_hint:
        return LockError(
            f"uv is offline, and {_missing(reason)} is not in its cache",
            hint="unset UV_OFFLINE, or solve once with a network",
        )
    if "valid authentication" in uv_hint or "Forbidden" in uv_hint:
        return LockError(
            f"the package index refused: {_shorten(uv_hint)}",
            hint="give credentials by UV_INDEX_<NAME>_USERNAME and _PASSWORD, or by ~/.netrc",
        )
    if "was not found in the package registry" in reason or "there is no version of" in reason:
        return Unsolved(
            f"{_missing(reason)} is on no package index that uv asks",
            hint="name the index by --extra-index-url, or declare the environment by environment=",
        )
    no_wheel = re.search(r"(?:Because|and) (\S+) has no wheels", reason)
    if no_wheel:
        return Unsolved(
            f"{no_wheel[1]} has no wheel for this platform and Python, and no source to build one",
            hint="choose a version that has one, or another platform or Python",
        )
    return Unsolved(
        f"the requirements have no common solution: {_sentence(reason)}",
        hint="loosen one of the two, in the requirements or in the installed environment",
    )


def _missing(reason: str) -> str:
    match = re.search(
        r"(?:Because|and) (?:there is no version of )?(\S+?)(?: was not found| and )", reason
    )
    return match[1] if match else "a package"


_WHO = r"Because (?P<who>[^,]+? depends?) on (?P<what>(?:(?!, we can).)+?) and "
_END = r"we can conclude that your requirements are unsatisfiable\."
_PATTERNS = [
    re.compile(
        _WHO + r"you require .+?, we can conclude that you require .+?\. "
        r"And because you require (?P<other>.+?), " + _END
    ),
    re.compile(
        _WHO + r"(?P<other>\S+), we can conclude that .+? cannot be used\. "
        r"And because .*?you require .+?, " + _END
    ),
    re.compile(_WHO + r"you require (?P<other>\S+), " + _END),
]


def _sentence(reason: str) -> str:
    for pattern in _PATTERNS if len(reason) < _LONGEST else ():
        match = pattern.fullmatch(reason)
        if match:
            return f"{match['who']} on {match['what']}, but {match['other']} is required"
    both = re.fullmatch(r"Because you require (.+?), " + _END, reason)
    if both:
        return f"{both[1]} are required at once"
    return _shorten(reason.replace("your requirements are unsatisfiable", "there is none"))


def _unreachable(plain: str, text: str) -> LockError | None:
    url = re.search(r"Failed to fetch: `?(\S+?)`?(?= |$)", plain)
    status = re.search(r"HTTP status \w+ error \(([^)]+)\)", plain)
    if url and status:
        return LockError(
            f"the package index answered {status[1]} for {url[1]}",
            hint="check the index URL and its credentials",
        )
    if not url and not re.search(r"error sending request|dns error|Could not connect", plain):
        return None
    reason = plain.rsplit("cause: ", 1)[-1]
    return LockError(
        f"the package index cannot be reached: {url[1] + ': ' if url else ''}{_shorten(reason)}",
        hint=_certificate_hint() or "check the network, the proxy, and the index URL",
    )


def _certificate_hint() -> str | None:
    file = os.environ.get("SSL_CERT_FILE")
    if file and not os.path.exists(file):  # noqa: PTH110  (a Path of a broken value may raise)
        return f"SSL_CERT_FILE names {file}, which is not there: uv trusts no server; unset it"
    return None


def _build(plain: str, text: str) -> LockError | None:
    match = re.search(r"Failed to (?:download and )?build `?([^`\n]+)`?", text)
    if not match:
        return None
    if "Git operation failed" in plain:
        return LockError(
            f"cannot fetch {match[1]}: {_shorten(plain.rsplit('fatal: ', 1)[-1])}",
            hint="check the URL and the revision, and that git can reach it from here",
        )
    tail = "\n".join(text.strip().splitlines()[-12:])
    return LockError(
        f"cannot build a wheel of {match[1]}:\n{tail}",
        hint="build the wheel yourself, and name its file in a requirements file",
    )


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."
