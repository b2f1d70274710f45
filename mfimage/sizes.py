"""Sizes in bytes as people write and read them: ``500MB`` is 500,000,000."""

from __future__ import annotations

import re

from mfimage.errors import OptionError

_SIZE = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?))?b?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str, *, field: str) -> int:
    """Return a size in bytes; ``OptionError`` names the field and the value.

    ``kB``, ``MB``, ``GB`` count in thousands, ``KiB``, ``MiB``, ``GiB`` in 1024s; in either case,
    and the ``B`` may be left out.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise OptionError(
            f"{field}: {text!r} is not a size",
            hint="a number and a unit, as 500MB (in thousands) or 500MiB (in 1024s)",
        )
    number, unit, binary = match.groups(default="")
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def format_size(size: int) -> str:
    """Return a size for people: ``52.4 MB``, or kB below 100 kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
