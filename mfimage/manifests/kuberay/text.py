"""Values as YAML: what a user wrote comes out as it went in, and never as anything else."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from mfimage.templating import Quoted, environment

_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9./-]*")
_NOT_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def string(value: str) -> Quoted:
    """Write a string in double quotes, on one line."""
    return Quoted(f'"{"".join(map(_char, value))}"')


def _char(char: str) -> str:
    if short := _SHORT.get(char):
        return short
    # What is printable is so in YAML, too; JSON's pairs of surrogates are not its escapes.
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def word(value: str) -> Quoted:
    """Let a string through that was chosen in this package and needs no quotes."""
    if not _WORD.fullmatch(value) or value.lower() in _NOT_WORDS:
        raise ValueError(f"{value!r} needs quotes")
    return Quoted(value)


def number(value: float) -> Quoted:
    """Write a number; whole ones without a point, none with an exponent, which YAML may not see."""
    return Quoted(format(Decimal(str(value)).normalize(), "f"))


def at(text: Quoted, column: int) -> Quoted:
    """Indent all lines but the first of what was rendered before."""
    if not isinstance(text, Quoted):
        raise TypeError(f"{text!r} was not rendered")
    margin = "\n" + " " * column
    return Quoted(re.sub(r"\n(?=[^\n])", margin, text.strip("\n")))


def literal(value: str) -> Quoted:
    """Write a string as a container's variable or argument, in which ``$(NAME)`` has no meaning."""
    return string(value.replace("$", "$$"))


_FILTERS: Mapping[str, Callable[..., Quoted]] = {
    "string": string,
    "word": word,
    "number": number,
    "at": at,
    "literal": literal,
}


def render(name: str, /, **values: Any) -> Quoted:
    """Render ``templates/kuberay/<name>.yaml.j2``."""
    return Quoted(_templates().get_template(f"kuberay/{name}.yaml.j2").render(**values))


@functools.cache
def _templates() -> Any:
    made = environment(_FILTERS)
    made.trim_blocks = made.lstrip_blocks = True
    return made
