"""Texts of the command line -> the options that bind and build take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage.errors import OptionError

if TYPE_CHECKING:
    from mfimage.bind import BindOptions
    from mfimage.image.plan.options import BuildOptions


def bind_options(given: Mapping[str, Any]) -> BindOptions:
    """Make the options of ``bind`` of what was written.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    from mfimage.bind import BindOptions

    return BindOptions(
        name=given["name"],
        artifacts=given["artifacts"] or None,
        environment=given["environment"],
        examples=[record for text in given["examples"] for record in _records(text)],
        parameters={
            name: _json(text, f"--param {name}")
            for name, text in _pairs("--param", given["params"])
        },
        root=given["root"],
        namespace=given["namespace"],
    )


def build_options(given: Mapping[str, Any]) -> BuildOptions:
    """Make the options of ``build`` of what was written and the project's settings.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    from mfimage.image.plan.options import parse_cache
    from mfimage.image.plan.settings import make_options, read_settings

    to = given.get("cache_to")
    made = make_options(
        settings=read_settings(Path.cwd()),
        target=given["target"],
        tags=given.get("tags", ()),
        base_image=given["base_image"],
        apt=given["apt"],
        env=given["env"],
        labels=given["label"],
        platform=given["platform"],
        no_cache=given.get("no_cache", False),
        secrets=given["secret"],
        index_url=given["index_url"],
        extra_index_urls=given["extra_index_url"],
        ray_version=given["ray_version"],
        parts=given["parts"],
        builder=given.get("builder"),
        output=given.get("output"),
        compression=given.get("compression"),
        compile=given.get("compile", False),
    )
    return replace(
        made,
        cache_from=tuple(parse_cache(t, field="cache-from") for t in given.get("cache_from", ())),
        cache_to=parse_cache(to, field="cache-to") if to else None,
    )


def _records(text: str) -> list[Any]:
    if not text.startswith("@"):
        return [_json(text, "--example")]
    try:
        lines = Path(text[1:]).read_text().splitlines()
    except OSError as error:
        raise OptionError(f"--example: cannot read {text[1:]}: {error.strerror}") from None
    return [_json(line, f"--example {text}:{n}") for n, line in enumerate(lines, 1) if line.strip()]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"{where}: {text[:80]!r} is no JSON: {error}") from None


def _pairs(option: str, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OptionError(f"{option}: expected NAME=VALUE, got {text!r}")
        pairs.append((name, value))
    return pairs
