"""``[tool.mfimage]`` in ``pyproject.toml``: the command line's options, kept in the project."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.errors import OptionError
from mfimage.image.plan.options import BuildOptions
from mfimage.image.registry.location import LOCATIONS, Location, parse_location
from mfimage.image.registry.reference import Reference, parse_reference, parse_tag
from mfimage.image.secrets.build import parse_secret

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "pyproject.toml"
TABLE = "tool.mfimage"
_ENGINE = "docker"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A project's ``[tool.mfimage]``, with types checked but values as written.

    Attributes
    ----------
    folder : Path or None
        Where the file stands: relative paths in it start there.
    """

    folder: Path | None = None
    target: str | None = None
    tags: tuple[str, ...] = ()
    base_image: str | None = None
    apt: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    no_cache: bool = False
    secrets: tuple[str, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    ray_version: str | None = None
    parts: tuple[str, ...] = ()
    builder: str | None = None
    compression: str | None = None
    compile: bool = False


def read_settings(start: Path) -> Settings:
    """Read the nearest ``pyproject.toml`` with a ``[tool.mfimage]``, in ``start`` or above.

    Raises
    ------
    OptionError
        If it is no TOML, or a key is unknown or has a value of another type.
    """
    folder = start.absolute()
    for each in (folder, *folder.parents):
        path = each / FILE_NAME
        if path.is_file():
            table = _table(path)
            if table is not None:
                return parse_settings(table, path=path)
    return Settings()


def _table(path: Path) -> Any:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read: {error}") from None
    return content.get("tool", {}).get("mfimage")


def parse_settings(table: Any, *, path: Path) -> Settings:
    """Check a ``[tool.mfimage]`` table.

    Raises
    ------
    OptionError
        Naming the file, the key and the value.
    """
    if not isinstance(table, dict):
        raise OptionError(f"{path}: [{TABLE}] is no table")
    values: dict[str, Any] = {}
    for key, value in table.items():
        check = _KEYS.get(key)
        if check is None:
            raise _unknown(key, path)
        expected, convert = check
        converted = convert(value)
        if converted is None:
            raise OptionError(f"{path}: {TABLE}.{key}: expected {expected}, got {value!r}")
        values[_FIELDS.get(key, key.replace("-", "_"))] = converted
    return Settings(folder=path.parent, **values)


def _unknown(key: str, path: Path) -> OptionError:
    close = difflib.get_close_matches(key.replace("_", "-"), _KEYS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KEYS)}"
    return OptionError(f"{path}: {TABLE}.{key}: there is no such option", hint=hint)


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _strings(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(value)


def _mapping(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return None
    return value


_Check = tuple[str, Callable[[Any], Any]]
_STRING: _Check = ("a string", _string)
_STRINGS: _Check = ("a list of strings", _strings)
_MAPPING: _Check = ("a table of strings", _mapping)
_FLAG: _Check = ("true or false", _flag)
_KEYS: dict[str, _Check] = {
    "target": _STRING,
    "tags": _STRINGS,
    "base-image": _STRING,
    "apt": _STRINGS,
    "env": _MAPPING,
    "labels": _MAPPING,
    "platform": _STRING,
    "no-cache": _FLAG,
    "secrets": _STRINGS,
    "index-url": _STRING,
    "extra-index-urls": _STRINGS,
    "ray-version": _STRING,
    "with": _STRINGS,
    "builder": _STRING,
    "compression": _STRING,
    "compile": _FLAG,
}
_FIELDS = {"with": "parts"}


def make_options(
    *,
    settings: Settings | None = None,
    target: str | None = None,
    tags: Iterable[str] = (),
    base_image: str | None = None,
    apt: Iterable[str] = (),
    env: Iterable[str] = (),
    labels: Iterable[str] = (),
    platform: str | None = None,
    no_cache: bool = False,
    secrets: Iterable[str] = (),
    index_url: str | None = None,
    extra_index_urls: Iterable[str] = (),
    ray_version: str | None = None,
    parts: Iterable[str] = (),
    builder: str | None = None,
    output: str | None = None,
    compression: str | None = None,
    compile: bool = False,
) -> BuildOptions:
    """Make options of what the command line gave, as written there, and a project's settings.

    What is given replaces the project's; packages are added to it, variables, labels and secrets
    by name.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    project = settings or Settings()
    base = base_image or project.base_image
    given = [parse_secret(text) for text in secrets]
    kept = [parse_secret(text, folder=project.folder) for text in project.secrets]
    kept = [secret for secret in kept if secret.id not in {each.id for each in given}]
    return BuildOptions(
        target=target or project.target or BuildOptions.target,
        tags=tuple(parse_tag(tag) for tag in (tuple(tags) or project.tags)),
        base_image=_base(base) if base else None,
        apt=tuple(dict.fromkeys((*project.apt, *apt))),
        env={**project.env, **parse_assignments(env, field="env")},
        labels={**project.labels, **parse_assignments(labels, field="label")},
        platform=platform or project.platform,
        no_cache=no_cache or project.no_cache,
        secrets=(*kept, *given),
        index_url=index_url or project.index_url,
        extra_index_urls=tuple(extra_index_urls) or project.extra_index_urls,
        ray_version=ray_version or project.ray_version,
        parts=_parts(parts) or _parts(project.parts),
        builder=builder or project.builder or BuildOptions.builder,
        output=_output(output),
        output_engine=output == _ENGINE,
        compression=compression or project.compression or BuildOptions.compression,
        compile=compile or project.compile,
    )


def _base(text: str) -> Reference | Location:
    location = parse_location(text, field="base-image")
    return location or parse_reference(text, field="base-image")


def _output(text: str | None) -> Location | None:
    if text is None or text == _ENGINE:
        return None
    location = parse_location(text, field="output")
    if location is None:
        raise OptionError(
            f"output: {text!r} is nowhere an image can go", hint=f"{_ENGINE}, {LOCATIONS}"
        )
    return location


def _parts(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the parts of Ray that were named, each alone or several with commas."""
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(sorted({name for name in names if name}))


def parse_assignments(texts: Iterable[str], *, field: str) -> dict[str, str]:
    """Parse ``NAME=value`` each.

    Raises
    ------
    OptionError
        If there is no ``=``.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(
                f"{field}: {text!r} has no value", hint=f"write --{field} {text}=VALUE"
            )
        pairs[name] = value
    return pairs
