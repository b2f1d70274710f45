"""Package indexes, and the credentials for them, from where users keep them."""

from __future__ import annotations

import base64
import netrc
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from configparser import Error as ConfigError
from configparser import RawConfigParser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mfimage.capture.lock import toml

DEFAULT_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
EXTRA_VARIABLES = ("UV_INDEX", "UV_EXTRA_INDEX_URL")
_UV_KEYS = {"index", "index-url", "extra-index-url", "no-index"}
_NAMED = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<url>\S+)")


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Package indexes to ask, beside those of uv's or pip's own configuration."""

    # Replaces the default index. A user and password in it are used but never written.
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()  # asked first, in order

    def environment(self, inherited: Mapping[str, str], directory: Path) -> dict[str, str]:
        """Return ``inherited`` with these indexes: arguments could be read by other users."""
        result = dict(inherited)
        # Pip's indexes are used where uv's configuration names none: uv does not read pip's.
        named = any(inherited.get(name) for name in (*DEFAULT_VARIABLES, *EXTRA_VARIABLES))
        if not named and not any(map(_names_index, _uv_files(inherited, directory))):
            result.update(_pip_indexes(inherited))
        if self.index_url:
            result.pop("UV_INDEX_URL", None)
            result["UV_DEFAULT_INDEX"] = self.index_url
        if self.extra_index_urls:
            own = result.get("UV_INDEX", "")
            result["UV_INDEX"] = " ".join([*self.extra_index_urls, *own.split()])
        return result

    def environments(
        self, inherited: Mapping[str, str], directory: Path
    ) -> Iterator[dict[str, str]]:
        """Yield ``environment()``, and one in which uv asks further indexes for a package."""
        # By default the first index that has a package decides, which keeps a public index from
        # replacing a private package. But some indexes, such as PyTorch's, have old versions, or
        # few platforms, of packages that the next one has in full. Then the next index is searched
        # for a version that fits; among pip's indexes all of them are, as pip does.
        first = self.environment(inherited, directory)
        yield first
        added = first.get("UV_INDEX", "") != inherited.get("UV_INDEX", "")
        if added and "UV_INDEX_STRATEGY" not in inherited:
            strategy = "unsafe-first-match" if self.extra_index_urls else "unsafe-best-match"
            yield {**first, "UV_INDEX_STRATEGY": strategy}

    def with_extra(self, urls: Sequence[str]) -> IndexOptions:
        """Return the same with more extra indexes, asked after the others."""
        return replace(self, extra_index_urls=(*self.extra_index_urls, *urls))

    def urls(self, inherited: Mapping[str, str], directory: Path) -> set[str]:
        """Return the URLs of the indexes that the variables name, without credentials."""
        entries = _entries(self.environment(inherited, directory))
        return {without_credentials(url).rstrip("/") for _, url in entries}


OWN_CONFIGURATION = IndexOptions()


def _uv_files(environment: Mapping[str, str], directory: Path) -> Iterator[Path]:
    if environment.get("UV_NO_CONFIG"):
        return
    if environment.get("UV_CONFIG_FILE"):
        yield Path(environment["UV_CONFIG_FILE"])
        return
    for folder in (directory.resolve(), *directory.resolve().parents):
        yield from (folder / "uv.toml", folder / "pyproject.toml")
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    yield from (home / "uv" / "uv.toml", Path("/etc/uv/uv.toml"))


def _names_index(file: Path) -> bool:
    try:
        parsed = toml.loads(file.read_text())
    except (OSError, ValueError):
        return False
    table = parsed.get("tool", {}).get("uv", {}) if file.name == "pyproject.toml" else parsed
    return not _UV_KEYS.isdisjoint({*table, *table.get("pip", {})})


def _pip_indexes(environment: Mapping[str, str]) -> dict[str, str]:
    """Return uv's variables for the indexes in pip's configuration."""
    settings: dict[str, str] = {}
    for file in _pip_files(environment):
        settings |= _pip_settings(file)
    default = environment.get("PIP_INDEX_URL") or settings.get("index-url", "")
    extra = environment.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url", "")
    found = {"UV_DEFAULT_INDEX": _remote(default), "UV_INDEX": _remote(extra)}
    return {name: value for name, value in found.items() if value}


def _remote(urls: str) -> str:
    """Leave out local folders: all their wheels would travel in the package."""
    return " ".join(url for url in urls.split() if urlsplit(url).scheme in ("http", "https"))


def _pip_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's configuration files, lowest precedence first."""
    chosen = environment.get("PIP_CONFIG_FILE")
    if chosen == "/dev/null":
        return
    home = Path.home()
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    yield from (Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"))
    if sys.platform == "darwin":
        yield home / "Library" / "Application Support" / "pip" / "pip.conf"
    yield from (home / ".pip" / "pip.conf", config / "pip" / "pip.conf")
    yield Path(environment.get("VIRTUAL_ENV") or sys.prefix) / "pip.conf"
    if chosen:
        yield Path(chosen)


def _pip_settings(file: Path) -> dict[str, str]:
    parser = RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (ConfigError, UnicodeDecodeError):
        return {}
    sections = [dict(parser[name]) for name in ("global", "install") if parser.has_section(name)]
    return {key.replace("_", "-"): value for section in sections for key, value in section.items()}


def authorization(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the ``Authorization`` header for a file on an index, if there are credentials."""
    host = urlsplit(url).netloc
    login = next(_logins(host, environment), None) or _netrc_login(host, environment)
    if login is None:
        return None
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()


def _entries(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name (or ``""``) and URL of every index in uv's variables."""
    texts = (environment.get(name, "") for name in (*EXTRA_VARIABLES, *DEFAULT_VARIABLES))
    for found in map(_NAMED.fullmatch, " ".join(texts).split()):
        if found:
            yield found["name"] or "", found["url"]


def without_credentials(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _logins(host: str, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, url in _entries(environment):
        parts = urlsplit(url)
        if parts.netloc.rpartition("@")[2] != host:
            continue
        if parts.password is not None:
            yield unquote(parts.username or ""), unquote(parts.password)
        prefix = "UV_INDEX_" + re.sub(r"\W|_", "_", name).upper()
        if environment.get(f"{prefix}_PASSWORD"):
            yield environment.get(f"{prefix}_USERNAME", ""), environment[f"{prefix}_PASSWORD"]


def _netrc_login(host: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    file = Path(environment.get("NETRC") or Path.home() / ".netrc")
    try:
        found: Any = netrc.netrc(str(file)).authenticators(host.partition(":")[0])
    except (OSError, netrc.NetrcParseError):
        return None
    return (found[0] or "", found[2] or "") if found else None
