"""Manifests as YAML: every parser reads back the strings that a user wrote."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9./_-]*")
# Kubernetes' parser reads these as other types; PyYAML quotes most, but not "y" and "n".
_NOT_STRINGS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(document: Mapping[str, Any]) -> str:
    """Write a manifest; entries that are None are left out."""
    import yaml

    text: str = yaml.dump(
        document, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=math.inf
    )
    return text


@functools.cache
def _dumper() -> type[yaml.SafeDumper]:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def mapping(dumper: Dumper, data: dict[str, Any]) -> yaml.Node:
        given = {key: value for key, value in data.items() if value is not None}
        return dumper.represent_mapping("tag:yaml.org,2002:map", given)

    def string(dumper: Dumper, text: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=_style(text))

    def number(dumper: Dumper, value: float) -> yaml.Node:
        whole = value.is_integer()
        return dumper.represent_int(int(value)) if whole else dumper.represent_float(value)

    Dumper.add_representer(dict, mapping)
    Dumper.add_representer(str, string)
    Dumper.add_representer(float, number)
    return Dumper


def _style(text: str) -> str | None:
    if _WORD.fullmatch(text) and text.lower() not in _NOT_STRINGS:
        return None
    lines = text.split("\n")
    # A block's first line sets its indentation, and parsers differ on other line breaks.
    block = len(lines) > 1 and not text[0].isspace() and all(map(str.isprintable, lines))
    return "|" if block else '"'
