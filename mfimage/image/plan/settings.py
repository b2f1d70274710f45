"""Build options from what was written: flags, and ``[tool.mfimage]`` of the project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mfimage.capture.lock import toml
from mfimage.errors import OptionError, suggest
from mfimage.image.plan.options import OPTIONS, BuildOptions

FILE_NAME = "pyproject.toml"
TABLE = "tool.mfimage"
_EXPECTED: Mapping[str, tuple[type, str]] = {
    "switch": (bool, "true or false"),
    "list": (list, "a list of strings"),
    "table": (dict, "a table of strings"),
    "text": (str, "a string"),
}
_NONE: Mapping[str, Any] = MappingProxyType({})


def make_options(given: Mapping[str, Any], settings: Mapping[str, Any] = _NONE) -> BuildOptions:
    """Return the options that flags and a project's settings give together."""
    # Other names in ``given`` are ignored; what was not given may be absent, None or empty.
    values = dict(settings)
    for option in OPTIONS:
        written = given.get(option.name)
        if written not in (None, (), ""):
            before = values.get(option.name, option.default)
            values[option.name] = option.merge(before, option.read(written))
    return BuildOptions(**values)


def read_settings(start: Path) -> dict[str, Any]:
    """Read the nearest ``pyproject.toml`` with a ``[tool.mfimage]``, in ``start`` or above."""
    # Returns values by option. An unknown key is an error.
    folder = start.absolute()
    for each in (folder, *folder.parents):
        path = each / FILE_NAME
        if path.is_file():
            try:
                content = toml.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OptionError(f"{path}: cannot be read: {error}") from None
            table = content.get("tool", {}).get("mfimage")
            if table is not None:
                return _parse(table, path)
    return {}


def _parse(table: Any, path: Path) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise OptionError(f"{path}: [{TABLE}] is not a table")
    options = {option.key: option for option in OPTIONS if option.key}
    values = {}
    for key, value in table.items():
        option = options.get(key)
        if option is None:
            hint = suggest(key.replace("_", "-"), options)
            raise OptionError(f"{path}: {TABLE}.{key}: unknown option", hint=hint)
        kind, expected = _EXPECTED[option.kind]
        many = value.values() if isinstance(value, dict) else value if kind is list else ()
        if not isinstance(value, kind) or not all(isinstance(each, str) for each in many):
            raise OptionError(f"{path}: {TABLE}.{key}: expected {expected}, got {value!r}")
        values[option.name] = option.read(value, folder=path.parent)
    return values
