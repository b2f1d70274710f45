"""The list of build options: flags, ``[tool.mfimage]`` and the table in the docs are made from it.

To add an option, add a field to `BuildOptions`. This module is imported by ``mfimage --help``:
nothing heavy may be imported here.
"""
# ruff: noqa: RUF009  (`option` declares a field)

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mfimage.errors import OptionError
from mfimage.image.registry.location import DOCKER_ARCHIVE, LOCATIONS, Location, parse_location
from mfimage.image.registry.reference import Reference, parse_reference, parse_tag
from mfimage.image.secrets.build import Secret, parse_secret
from mfimage.image.targets import DEFAULT_TARGET, TARGETS, find_target
from mfimage.image.targets.ray import PARTS
from mfimage.image.targets.target import Target
from mfimage.masking import URL_PASSWORD
from mfimage.package.platforms import MACHINES

LABEL_PREFIX = "io.mfimage."
LONGEST_VALUE = 30_000  # A line of a Dockerfile holds 65535 bytes, and quoting can double a value
# Where `--output` may put an image besides a `Location`: the Docker engine.
ENGINE: Literal["docker"] = "docker"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("PATH", "PYTHONPATH", "PYTHONHOME")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
# Debian Policy 5.6.1; a minus at the end would tell apt to remove the package.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")
_INDEX = re.compile(r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)=)?(?P<url>[A-Za-z]+://.*)")
_PLATFORMS = {f"linux/{machine}": name for name, machine in MACHINES.items()}
_PLATFORMS |= {**{name: name for name in MACHINES}, "linux/arm64/v8": "linux/arm64"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One build option: where it may stand, and how it is read."""

    name: str
    default: Any  # its type decides the `kind`
    help: str
    flags: tuple[str, ...]
    key: str | None  # in [tool.mfimage]; None if it cannot stand there
    commands: tuple[str, ...] = ("build", "plan", "render", "verify")
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[..., Any] = str
    # Whether the text may contain a path; `parse` then gets the folder where it starts.
    relative: bool = False
    # If given, flags add to the project's values, and replace those of equal identity.
    identity: Callable[[Any], Any] | None = None

    @property
    def title(self) -> str:
        """What messages call it, as ``extra-index-url``."""
        return self.flags[-1].partition("/")[0].removeprefix("--")

    @property
    def kind(self) -> Literal["switch", "list", "table", "text"]:
        """What is written: true or false, several texts, names with texts, or one text."""
        if isinstance(self.default, bool):
            return "switch"
        if isinstance(self.default, tuple):
            return "list"
        return "table" if isinstance(self.default, dict) else "text"

    def read(self, written: Any, *, folder: Path | None = None) -> Any:
        """Return the value of what was written."""
        parse = partial(self.parse, folder=folder) if self.relative else self.parse
        if self.kind == "table":
            return written if isinstance(written, Mapping) else _assignments(written, self.title)
        if self.kind == "list":
            return tuple(parse(text) for text in written)
        return written if self.kind == "switch" else parse(written)

    def merge(self, project: Any, given: Any) -> Any:
        """Combine a project's value with the one that flags give."""
        if self.kind == "table":
            return {**project, **given}
        if self.identity is None:
            return given
        found = {self.identity(each) for each in given}
        return (*(each for each in project if self.identity(each) not in found), *given)


def option(default: Any, *flags: str, **attributes: Any) -> Any:
    """Declare a field of `BuildOptions`, with attributes of `Option`."""
    # Flag and key are made from the field's name where none is given.
    about = {"flags": flags, **attributes}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


def _base_image(text: str) -> Reference | Location:
    location = parse_location(text, field="base-image")
    return location or parse_reference(text, field="base-image")


def _output(text: str) -> Location | Literal["docker"]:
    if text == ENGINE:
        return ENGINE
    if location := parse_location(text, field="output"):
        if location.kind != DOCKER_ARCHIVE and ":" in text[len(location.kind) + 1 :]:
            raise OptionError(
                f"output: {text!r} has a tag", hint="name the folder or file, and the image by -t"
            )
        return location
    raise OptionError(
        f"output: {text!r} is not a place for an image", hint=f"{ENGINE}, {LOCATIONS}"
    )


# Keys of a cache's description that would show a credential on a command line.
_CACHE_CREDENTIALS = ("token", "secret_access_key", "session_token", "account_key", "password")


@dataclass(frozen=True)
class BuildxCache:
    """A cache as buildx describes it, as ``type=gha`` or ``type=local,src=FOLDER``."""

    text: str

    def __str__(self) -> str:
        return self.text


def parse_cache(text: str, *, field: str) -> Reference | BuildxCache:
    """Parse a cache: a name in a registry, or buildx's ``type=...`` without a credential."""
    if "=" not in text:
        return parse_tag(text, field=field)
    import csv

    keys = [part.partition("=")[0].strip() for row in csv.reader([text]) for part in row]
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
                hint="set the environment variable that buildx reads, such as "
                "ACTIONS_RUNTIME_TOKEN or AWS_SECRET_ACCESS_KEY",
            )
    refuse_credentials(field, text)
    return BuildxCache(text)


def parse_repository(text: str, *, field: str) -> Reference:
    """Parse the name of a repository, without a tag or digest."""
    found = parse_reference(text, field=field)
    if found.tag or found.digest:
        raise OptionError(
            f"{field}: {text!r} names an image", hint=f"name the repository: {found.name}"
        )
    return found


_BUILDS = ("build", "plan")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build; the help of each field says what it is for."""

    target: str = option(
        DEFAULT_TARGET, metavar="NAME", help=f"Interface of the image: {', '.join(TARGETS)}."
    )
    tags: tuple[Reference, ...] = option(
        (), "-t", "--tag", commands=_BUILDS, metavar="NAME[:TAG]", parse=parse_tag,
        help="Name of the image, such as registry.example.com/team/iris:1.",
    )  # fmt: skip
    base_image: Reference | Location | None = option(
        None, metavar="IMAGE", parse=_base_image,
        help=f"Image to build on: a name, {LOCATIONS}; by default python:<minor>-slim.",
    )  # fmt: skip
    apt: tuple[str, ...] = option(
        (), metavar="PACKAGE", identity=str,
        help="Debian package to install, such as libgomp1 or git=1:2.39.5-0+deb12u2.",
    )  # fmt: skip
    env: Mapping[str, str] = option(
        {}, metavar="NAME=VALUE",
        help=f"Environment variable of the image; {', '.join(_RESERVED)} are reserved.",
    )  # fmt: skip
    labels: Mapping[str, str] = option(
        {}, "--label", metavar="NAME=VALUE",
        help=f"Label of the image; {LABEL_PREFIX}* is reserved.",
    )  # fmt: skip
    platform: str | None = option(
        None, metavar="OS/ARCH",
        help="Platform of the image: linux/amd64, linux/arm64, or both separated by a comma; "
        "by default the function's.",
    )  # fmt: skip
    no_cache: bool = option(
        False, commands=_BUILDS, help="Build every layer again, whatever is cached."
    )
    builder: str = option(
        "auto", commands=_BUILDS, choices=("auto", "docker", "oci"),
        help="What builds the image: oci runs no container, docker runs docker build; auto is oci "
        "unless system packages are installed.",
    )  # fmt: skip
    output: Location | Literal["docker"] | None = option(
        None, key=None, commands=_BUILDS, metavar="PLACE", parse=_output,
        help=f"Where to put the image: {ENGINE} (the engine), {LOCATIONS}.",
    )  # fmt: skip
    compression: str = option(
        "gzip", commands=_BUILDS, choices=("gzip", "zstd"),
        help="Compression of image layers by the oci builder.",
    )  # fmt: skip
    compile: bool = option(
        True, "--compile/--no-compile", commands=(*_BUILDS, "verify"),
        help="Include compiled Python files, so that containers start faster.",
    )  # fmt: skip
    pull: bool = option(
        False, commands=(*_BUILDS, "verify"),
        help="Read the base image from its registry, even if the engine has it.",
    )  # fmt: skip
    cache_from: tuple[Reference | BuildxCache, ...] = option(
        (), key=None, commands=("build",), metavar="CACHE",
        parse=partial(parse_cache, field="cache-from"),
        help="Cache to take layers from: a name in a registry, or as buildx describes it, such as "
        "type=gha or type=local,src=FOLDER.",
    )  # fmt: skip
    cache_to: Reference | BuildxCache | None = option(
        None, key=None, commands=("build",), metavar="CACHE",
        parse=partial(parse_cache, field="cache-to"),
        help="Cache to write layers to: a name in a registry, or as buildx describes it.",
    )  # fmt: skip
    secrets: tuple[Secret, ...] = option(
        (), "--secret", metavar="id=ID,src=FILE|env=VAR", parse=parse_secret, relative=True,
        identity=attrgetter("id"),
        help="Credential for the steps that install: ca, netrc, pip.conf, or a variable of uv or "
        "pip.",
    )  # fmt: skip
    index_url: str | None = option(
        None, metavar="[NAME=]URL", help="Package index to install from."
    )
    extra_index_urls: tuple[str, ...] = option(
        (), "--extra-index-url", metavar="[NAME=]URL",
        help="Additional package index.",
    )  # fmt: skip
    step_registry: Reference | None = option(
        None, commands=(), metavar="NAME", parse=partial(parse_repository, field="step-registry"),
        help="Repository of the images that a flow's steps run in; by default the engine alone.",
    )  # fmt: skip
    ray_version: str | None = option(
        None, metavar="VERSION",
        help="Version of Ray in the image; by default the function's, else the newest that fits.",
    )  # fmt: skip
    parts: tuple[str, ...] = option(
        (), "--with", key="with", metavar="PART",
        help=f"Part of Ray to install besides its core: {' or '.join(PARTS)}.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.platform is not None:
            names = (parse_platform(text.strip()) for text in self.platform.split(","))
            object.__setattr__(self, "platform", ",".join(dict.fromkeys(names)))
        parts = {part.strip() for text in self.parts for part in text.split(",")}
        object.__setattr__(self, "parts", tuple(sorted(parts - {""})))
        for each in OPTIONS:
            value = getattr(self, each.name)
            if each.choices and value not in each.choices:
                raise OptionError(
                    f"{each.title}: {value!r} is not known",
                    hint=f"one of: {', '.join(each.choices)}",
                )
        _ = self.image_target
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
        ids = [secret.id for secret in self.secrets]
        if twice := [each for each in ids if ids.count(each) > 1]:
            raise OptionError(f"secret {twice[0]}: given twice", hint="leave one of them out")

    @property
    def image_target(self) -> Target:
        """The target, with the options that only it takes; the others' must not be given."""
        found = find_target(self.target)
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(found)}
        for other in TARGETS.values():
            for each in dataclasses.fields(other):
                if each.name not in own and getattr(self, each.name) != each.default:
                    title = next(option.title for option in OPTIONS if option.name == each.name)
                    raise OptionError(
                        f"{title}: an image for {self.target} does not take it",
                        hint=f"add --target {other.name}, or leave out --{title}",
                    )
        return found(**own)

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that were asked for; none if the function's own will do."""
        return tuple(self.platform.split(",")) if self.platform else ()


def _option(declared: dataclasses.Field[Any]) -> Option:
    about, name = declared.metadata, declared.name.replace("_", "-")
    default = {} if declared.default is dataclasses.MISSING else declared.default
    more = " Repeatable." if isinstance(default, tuple | dict) else ""
    more += f" [default: {default}]" if isinstance(default, str) else ""
    return Option(
        **{
            **about,
            "name": declared.name,
            "default": default,
            "help": about["help"] + more,
            "flags": about["flags"] or (f"--{name}",),
            "key": about.get("key", name),
        }
    )


OPTIONS: tuple[Option, ...] = tuple(map(_option, dataclasses.fields(BuildOptions)))


def parse_platform(text: str, *, field: str = "platform") -> str:
    """Return the platform by the name that locks and engines use."""
    if platform := _PLATFORMS.get(text.lower()):
        return platform
    raise OptionError(
        f"{field}: images cannot be built for {text!r}", hint="linux/amd64 or linux/arm64"
    )


def split_index(text: str) -> tuple[str, str]:
    """Split ``NAME=URL``; the name, by which uv finds credentials, may be empty."""
    found = _INDEX.fullmatch(text)
    return (found["name"] or "", found["url"]) if found else ("", text)


def check_packages(names: tuple[str, ...], *, field: str) -> None:
    """Refuse what cannot be the name of a Debian package."""
    hint = (
        "lower-case letters, digits, '+', '-' and '.', such as libgomp1, or with a version: "
        "libgomp1=12.2.0-14"
    )
    for name in names:
        _check_name(field, name, _PACKAGE, hint)


def check_text(field: str, value: str) -> None:
    """Refuse what a Dockerfile cannot hold, and URLs with a password."""
    for char in value:
        if char != "\t" and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise OptionError(
                f"{field}: {value!r} contains {char!r}, which a Dockerfile cannot hold",
                hint="write it on one line, or set it when the image runs: docker run --env",
            )
    if (size := len(value.encode())) > LONGEST_VALUE:
        raise OptionError(
            f"{field}: {size} bytes do not fit on a line of a Dockerfile",
            hint=f"at most {LONGEST_VALUE} bytes; put more into a file",
        )
    refuse_credentials(field, value)


def refuse_credentials(field: str, text: str) -> None:
    """Refuse text that has a URL with a password in it; the error does not repeat it."""
    if found := URL_PASSWORD.search(text):
        scheme = found.group().partition("://")[0]
        raise OptionError(
            f"{field}: a {scheme}:// URL has a password in it, which the image would show",
            hint="remove it from the URL; give it to the build by --secret "
            "(netrc, pip.conf, UV_INDEX_NAME_PASSWORD), to a container by docker run --env",
        )


def _assignments(texts: Iterable[str], field: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(
                f"{field}: {text!r} has no value", hint=f"write --{field} {text}=VALUE"
            )
        pairs[name] = value
    return pairs


def _check_name(field: str, name: str, pattern: re.Pattern[str], hint: str) -> None:
    if not pattern.fullmatch(name):
        raise OptionError(f"{field}: {name!r} is not a valid name", hint=hint)


def _check_variable(name: str) -> None:
    _check_name("env", name, _VARIABLE, "letters, digits and '_', not starting with a digit")
    if name in _RESERVED:
        raise OptionError(
            f"env: the image sets {name} itself, to find its programs",
            hint="choose another name, or set it when the image runs: docker run --env",
        )


def _check_label(name: str) -> None:
    hint = "letters, digits, '.', '-', '_' and '/', such as com.example.team"
    _check_name("label", name, _LABEL, hint)
    if name.startswith(LABEL_PREFIX):
        raise OptionError(
            f"label: mfimage sets {name} itself",
            hint=f"choose a name that does not start with {LABEL_PREFIX}",
        )


def _check_index(field: str, text: str) -> None:
    _, url = split_index(text)
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise OptionError(
            f"{field}: the URL contains credentials, which the Dockerfile would show",
            hint=f"write {bare} and give them by --secret id=netrc,src=PATH",
        )
    unquoted = url.isascii() and url.isprintable() and not any(char in " '\"\\`$" for char in url)
    if parts.scheme not in ("https", "http") or not parts.hostname or not unquoted:
        raise OptionError(
            f"{field}: {text!r} is not the URL of a package index",
            hint="such as https://packages.example.com/simple, or with a name: company=https://...",
        )
