"""What uv says when it fails, in one sentence and without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from mfimage.errors import LockError

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
