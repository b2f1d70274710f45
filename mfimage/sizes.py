"""Sizes in bytes as people write them: ``500MB`` is 500,000,000 and ``500MiB`` 524,288,000."""

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
    """Return a size for people, in thousands: ``812 B``, ``1.2 kB``, ``34 MB``."""
    if size < 1000:
        return f"{size} B"
    number = size / 1000
    for unit in ("kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.{1 if number < 9.95 else 0}f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
