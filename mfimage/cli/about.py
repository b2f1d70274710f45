"""What a person asks first of a package or an image: what it is, how large, how to run it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import shorten
from mfimage.sizes import format_size
from mfimage.terminal import visible
from mfimage.views.commands import FILES, how_to_run, quoted, sample

_NAMED = 20  # of many functions
_OURS = "mfimage "  # how the history's lines of the oci builder start
_TIMELESS = "1980-01-01"  # images that do not depend on when they were built
_LONGEST = 100
_KINDS = ("function", "functions", "step")


@dataclass(frozen=True, kw_only=True)
class About:
    """The part of `mfimage.inspect.inspect` that is shown first."""

    facts: tuple[tuple[str, str], ...]
    # Names with what they are: functions, parts or artifacts. `more` are left out.
    listed: str = ""
    items: tuple[tuple[str, str], ...] = ()
    more: int = 0
    layers: tuple[tuple[str, int], ...] = ()  # with their bytes
    commands: tuple[tuple[str, str], ...] = ()  # what each is for, and a line for a shell

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield names and values."""
        yield from self.facts
        if self.items:
            texts = [f"{name} ({text})" if text else name for name, text in self.items]
            yield self.listed, ", ".join(texts + [f"and {self.more} more"] * bool(self.more))
        if self.layers:
            yield "layers", ", ".join(f"{name} {format_size(n)}" for name, n in self.layers)
        yield from self.commands


def columns(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return a line for each name and its value."""
    rows = list(pairs)
    width = max(len(name) for name, _ in rows)
    return "\n".join(visible(f"{name:<{width}}  {_text(value)}") for name, value in rows)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def about(found: Mapping[str, Any], what: str) -> About:
    """Choose what is shown first; ``what`` is the name that was looked up."""
    if "reference" in found:
        return _package(found)
    return _image(found, what)


def _package(found: Mapping[str, Any]) -> About:
    reference = str(found["reference"])
    record = found["example"] if "example" in found else sample(found["input"])
    call = f"echo {quoted(record)} | mfimage call {shlex.quote(reference)}"
    name = found["name"].partition("/")[0].lower()
    commands = (
        ("call", call),
        ("serve", f"mfimage serve {shlex.quote(reference)}"),
        ("build", f"mfimage build {shlex.quote(reference)} -t {shlex.quote(f'{name}:1')}"),
    )
    if "parts" in found:
        parts = tuple((part["name"], part["task"]) for part in found["parts"])
        facts = [("pipeline", found["name"]), ("digest", found["digest"])]
        facts += [("junction", text) for text in found["junctions"]]
        return About(facts=tuple(facts), listed="parts", items=parts, commands=commands)
    commit = found["git commit"]
    facts = [
        ("function", found["name"]),
        ("description", found["description"]),
        ("task", found["task"]),
        ("bound", found["bound"]),
        ("git commit", "" if commit == "unknown" else commit),
        ("python", f"{found['python']}, {found['platform']}"),
        ("environment", found["environment"]),
        ("examples", str(found["examples"] or "")),
        ("digest", found["digest"]),
        ("reference", reference),
    ]
    return About(
        facts=tuple((name, value) for name, value in facts if value),
        listed="artifacts", items=tuple(found["artifacts"].items()), commands=commands,
    )  # fmt: skip


def _image(found: Mapping[str, Any], what: str) -> About:
    labels, lineage = found.get("labels", {}), found.get("lineage", {})
    functions = _mapping(found.get("functions") or found.get("parts"))
    kind = next((each for each in _KINDS if f"{each}.digest" in found), "")
    target = found.get("target", "")
    tag = next(iter((*found.get("tags", ()), *found.get("digests", ()))), what)
    name = what if what.startswith(FILES) else tag
    created = found.get("created") or ""
    sbom = found.get("sbom") or {}
    where = {"engine": "the Docker engine", "registry": "a registry"}.get(found["from"], "")
    platforms = ", ".join(found.get("platforms") or [found.get("platform") or ""])
    facts = [
        ("image", name),
        (kind, found.get(f"{kind}.name") or (f"{len(functions)}" if functions else "")),
        ("description", labels.get("org.opencontainers.image.description", "")),
        ("task", found.get("task", "")),
        ("by", lineage.get("user", "")),
        ("git commit", lineage.get("git.commit", "")),
        ("environment", found.get("environment.source", "")),
        ("created", "" if created.startswith(_TIMELESS) else created),
        ("target", target),
        ("python", found.get("python", "")),
        ("platform", platforms),
        ("size", f"{found['size']}{_unpacked(found['from'])}"),
        ("distributions", str(sbom.get("distributions", ""))),
        ("base", labels.get("org.opencontainers.image.base.name", "")),
        ("place", where),
        ("id", found["image"]),
    ]
    items = functions or _mapping(found.get("artifacts"))
    chosen = [(each, str(text)) for each, text in sorted(items.items())[:_NAMED]]
    return About(
        facts=tuple((key, _text(value)) for key, value in facts if key and value),
        listed="functions" if functions else "artifacts",
        items=tuple(chosen),
        more=len(items) - len(chosen),
        layers=tuple(_layers(found.get("layers", ()))),
        commands=tuple(_commands(found, name, kind=kind, functions=sorted(functions))),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}  # a label can be anything


def _unpacked(place: str) -> str:
    return " unpacked" if place == "engine" else " compressed"


def _layers(layers: list[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Yield the layers that mfimage added, after all others together; else each."""
    ours = [layer for layer in layers if layer["instruction"].startswith(_OURS)]
    if ours:
        base = sum(layer["size"] for layer in layers) - sum(layer["size"] for layer in ours)
        yield "base", base
        for layer in ours:
            yield layer["instruction"].removeprefix(_OURS), layer["size"]
        return
    for layer in layers:
        if layer["size"]:
            yield shorten(" ".join(layer["instruction"].split()) or "?", _LONGEST), layer["size"]


def _commands(
    found: Mapping[str, Any], name: str, *, kind: str, functions: list[str]
) -> Iterable[tuple[str, str]]:
    return how_to_run(
        name,
        target=_text(found.get("target", "")),
        title=_text(found.get(f"{kind}.name", "")),
        function=next(iter(functions), _text(found.get("function.name", ""))),
        record=sample(found.get("schema.input", {})),
    )
