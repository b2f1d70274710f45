"""What was asked of a build, checked: every value here can go into a plan as it is."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mfimage.errors import OptionError
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference, parse_tag
from mfimage.image.secrets.build import Secret
from mfimage.image.targets.targets import check_ray, find_target, ray_requirement
from mfimage.masking import URL_PASSWORD

LABEL_PREFIX = "io.mfimage."

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("PATH", "PYTHONPATH", "PYTHONHOME")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
# Debian Policy 5.6.1; a minus at the end would tell apt to remove the package.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")
_PLATFORMS = {
    "linux/amd64": "linux/amd64",
    "linux/x86_64": "linux/amd64",
    "linux/arm64": "linux/arm64",
    "linux/arm64/v8": "linux/arm64",
    "linux/aarch64": "linux/arm64",
}
_BUILDERS = ("auto", "docker", "oci")
_COMPRESSIONS = ("gzip", "zstd")
_INDEX = re.compile(r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)=)?(?P<url>[A-Za-z]+://.*)")
# A line of a Dockerfile holds 65535 bytes, and quoting can double a value.
LONGEST_VALUE = 30_000


# What of a cache's description would show a credential on a command line.
_CACHE_CREDENTIALS = ("token", "secret_access_key", "session_token", "account_key", "password")


@dataclass(frozen=True)
class BuildxCache:
    """A cache as buildx describes it, as ``type=gha`` or ``type=local,src=FOLDER``."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse_cache(text: str, *, field: str) -> Reference | BuildxCache:
    """Parse a cache: a name in a registry, or buildx's ``type=...``.

    Raises
    ------
    OptionError
        If it is neither, or has a credential in it.
    """
    if "=" not in text:
        return parse_tag(text, field=field)
    rows = list(csv.reader([text]))
    keys = [part.partition("=")[0].strip() for row in rows for part in row]
    if "type" not in keys:
        raise OptionError(
            f"{field}: {text!r} has no type",
            hint="write NAME[:TAG], or as buildx does: type=registry,ref=NAME, type=gha, "
            "type=local,src=FOLDER",
        )
    for key in keys:
        if key in _CACHE_CREDENTIALS:
            raise OptionError(
                f"{field}: {key} is a credential, which every process of this machine could read",
                hint="set the environment variable that buildx reads, as "
                "ACTIONS_RUNTIME_TOKEN or AWS_SECRET_ACCESS_KEY",
            )
    refuse_credentials(field, text)
    return BuildxCache(text)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build was asked for; the command line and ``[tool.mfimage]`` have the same.

    Attributes
    ----------
    target : str
        Which interface the image exposes.
    tags : tuple of Reference
        What to call the image.
    base_image : Reference, Location or None
        What to build on; ``python:<minor>-slim`` if None.
    apt : tuple of str
        Debian packages, as ``libgomp1`` or ``git=1:2.39.5-0+deb12u2``.
    env, labels : mapping of str to str
        Variables and labels of the image.
    platform : str or None
        ``linux/amd64`` or ``linux/arm64``, or both with a comma; the function's own if None.
    no_cache : bool
        Run every step anew.
    secrets : tuple of Secret
        Credentials for the dependency step.
    index_url : str or None
        The package index, instead of the default one: ``URL`` or ``NAME=URL``.
    extra_index_urls : tuple of str
        Indexes beside it.
    ray_version : str or None
        The version of Ray, for a target of Ray; the function's own if its environment has one,
        else the newest that fits it.
    parts : tuple of str
        What of Ray goes along beside its core: ``data``, ``serve``.
    builder : str
        ``docker``, ``oci``, or ``auto``: docker when an engine answers, else oci.
    output : Location or None
        Where the oci builder puts the image; None: see `output_engine`, or nowhere.
    output_engine : bool
        Put it into the Docker engine.
    compression : str
        How the oci builder compresses layers: ``gzip`` or ``zstd``.
    compile : bool
        Let the oci builder compile Python files; the docker builder always does.
    cache_from : tuple of Reference or BuildxCache
        Where layers of earlier builds are.
    cache_to : Reference, BuildxCache or None
        Where to put this build's.

    Raises
    ------
    OptionError
        Naming the option, the value, and what to write instead.
    """

    target: str = "fastapi"
    tags: tuple[Reference, ...] = ()
    base_image: Reference | Location | None = None
    apt: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    no_cache: bool = False
    secrets: tuple[Secret, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    ray_version: str | None = None
    parts: tuple[str, ...] = ()
    builder: str = "auto"
    output: Location | None = None
    output_engine: bool = False
    compression: str = "gzip"
    compile: bool = False
    cache_from: tuple[Reference | BuildxCache, ...] = ()
    cache_to: Reference | BuildxCache | None = None

    def __post_init__(self) -> None:
        check_ray(find_target(self.target), self.ray_version, self.parts)
        check_packages(self.apt, field="apt")
        for name, value in self.env.items():
            _check_variable(name)
            check_text(f"env {name}", value)
        for name, value in self.labels.items():
            _check_label(name)
            check_text(f"label {name}", value)
        if self.index_url is not None:
            _check_index("index-url", self.index_url)
        for url in self.extra_index_urls:
            _check_index("extra-index-url", url)
        if self.platform is not None:
            texts = [text.strip() for text in self.platform.split(",")]
            names = dict.fromkeys(parse_platform(text) for text in texts)
            object.__setattr__(self, "platform", ",".join(names))
        _check_unique(self.secrets)
        _check_choice("builder", self.builder, _BUILDERS)
        _check_choice("compression", self.compression, _COMPRESSIONS)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that were asked for; none if the function's own will do."""
        return tuple(self.platform.split(",")) if self.platform else ()

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is locked together with the function's own environment."""
        target = find_target(self.target)
        ray = (ray_requirement(self.ray_version, self.parts),) if target.ray else ()
        return target.requirements + ray


def parse_platform(text: str, *, field: str = "platform") -> str:
    """Return the platform by the name that locks and engines use.

    Raises
    ------
    OptionError
        If it is none that images can be built for.
    """
    if platform := _PLATFORMS.get(text.lower()):
        return platform
    raise OptionError(
        f"{field}: {text!r} is no platform that images are built for",
        hint="linux/amd64 or linux/arm64",
    )


def check_packages(names: tuple[str, ...], *, field: str) -> None:
    """Refuse what is no Debian package's name.

    Raises
    ------
    OptionError
        Naming it.
    """
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise OptionError(
                f"{field}: {name!r} is no Debian package's name",
                hint="lower-case letters, digits, '+', '-' and '.', as libgomp1, "
                "or with a version, as libgomp1=12.2.0-14",
            )


def check_text(field: str, value: str) -> None:
    """Refuse what a Dockerfile cannot hold, and URLs with a password.

    Raises
    ------
    OptionError
        Naming the field, and the value unless it is a credential.
    """
    for char in value:
        if char != "\t" and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise OptionError(
                f"{field}: {value!r} has the character {char!r}, which a Dockerfile cannot hold",
                hint="write it on one line, or give it when the image runs: docker run --env",
            )
    if (size := len(value.encode())) > LONGEST_VALUE:
        raise OptionError(
            f"{field}: {size} bytes are more than a Dockerfile's line can hold",
            hint=f"up to {LONGEST_VALUE} bytes; put more into a file",
        )
    refuse_credentials(field, value)


def refuse_credentials(field: str, text: str) -> None:
    """Refuse text that has a URL with a password in it; the error does not repeat it.

    Raises
    ------
    OptionError
        Naming the URL's scheme and where it stood.
    """
    if found := URL_PASSWORD.search(text):
        scheme = found.group().partition("://")[0]
        raise OptionError(
            f"{field}: a {scheme}:// URL has a password in it, which the image would show",
            hint="leave it out of the URL; for the build give it by --secret "
            "(netrc, pip.conf, UV_INDEX_NAME_PASSWORD), at run time by docker run --env",
        )


def _check_variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise OptionError(
            f"env: {name!r} is no variable's name",
            hint="letters, digits and '_', not starting with a digit: NAME=value",
        )
    if name in _RESERVED:
        raise OptionError(
            f"env: {name} is set by the image: its programs would not be found without it",
            hint="choose another name, or set it when the image runs: docker run --env",
        )


def _check_label(name: str) -> None:
    if not _LABEL.fullmatch(name):
        raise OptionError(
            f"label: {name!r} is no label's name",
            hint="letters, digits, '.', '-', '_' and '/', as com.example.team=data",
        )
    if name.startswith(LABEL_PREFIX):
        raise OptionError(
            f"label: {name} is one that mfimage sets itself",
            hint=f"choose a name that does not start with {LABEL_PREFIX}",
        )


def split_index(text: str) -> tuple[str, str]:
    """Split ``NAME=URL`` into both; the name, which uv's credentials go by, may be missing."""
    found = _INDEX.fullmatch(text)
    return (found["name"] or "", found["url"]) if found else ("", text)


def _check_index(field: str, text: str) -> None:
    _, url = split_index(text)
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise OptionError(
            f"{field}: the URL has credentials in it, and the Dockerfile would show them",
            hint=f"write {bare} and give them by --secret id=netrc,src=PATH",
        )
    plain = url.isascii() and url.isprintable() and not any(char in " '\"\\`$" for char in url)
    if parts.scheme not in ("https", "http") or not parts.hostname or not plain:
        raise OptionError(
            f"{field}: {text!r} is no package index's URL",
            hint="as https://packages.example.com/simple, or with a name: company=https://...",
        )


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(
            f"{field}: there is no {field} {value!r}", hint=f"one of: {', '.join(known)}"
        )


def _check_unique(secrets: tuple[Secret, ...]) -> None:
    seen: set[str] = set()
    for secret in secrets:
        if secret.id in seen:
            raise OptionError(f"secret {secret.id}: given twice", hint="leave one of them out")
        seen.add(secret.id)
