"""What Kubernetes accepts; each check raises an `OptionError` with the option and the value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from mfimage.errors import OptionError
from mfimage.masking import URL_PASSWORD
from mfimage.package.spec import NAME

_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[KMGTPE]i|[mkMGTPE])?")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)},
}
_MINIMUM_MEMORY = 64 * 1024**2  # less means that the unit is missing


@dataclass(frozen=True)
class Rule:
    """What a kind of text may be."""

    what: str
    pattern: str
    hint: str
    limit: int = 253

    def accepts(self, text: str) -> bool:
        """Return whether a text keeps to the rule."""
        return bool(re.fullmatch(self.pattern, text)) and len(text) <= self.limit

    def check(self, text: str, *, field: str) -> None:
        """Raise an `OptionError` if the text of an option breaks the rule."""
        _check(self.accepts(text), f"{field}: {text!r} cannot be {self.what}", self.hint)


_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_QUALIFIED = "[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_ENDS = "letters, digits, '-', '_' and '.', with a letter or digit at both ends"
NAMESPACE = Rule("a namespace", _LABEL, "at most 63 lower-case letters, digits and '-'", limit=63)
OBJECT = Rule(
    "the name of a Kubernetes object", _SUBDOMAIN, "lower-case letters, digits, '-' and '.'"
)
KEY = Rule(
    "the name of a label, taint or resource",
    rf"(?:{_SUBDOMAIN}/)?{_QUALIFIED}",
    "such as team, or with a prefix: example.com/team",
    limit=253 + 1 + 63,
)
LABEL_VALUE = Rule("the value of a label", f"(?:{_QUALIFIED})?", f"at most 63 {_ENDS}")
SECRET_KEY = Rule("a key of a Secret", "[A-Za-z0-9._-]+", "letters, digits, '-', '_' and '.'")
VARIABLE = Rule(
    "the name of a variable",
    "[A-Za-z_][A-Za-z0-9_]*",
    "letters, digits and '_', not starting with a digit",
    limit=1 << 16,
)


def resource_name(limit: int) -> Rule:
    """Return the rule for the name of a resource whose services are named after it."""
    return Rule(
        "the name of this resource",
        "[a-z](?:[a-z0-9-]*[a-z0-9])?",
        f"at most {limit} lower-case letters, digits and '-', starting with a letter and not "
        "ending with '-'",
        limit,
    )


def default_name(function: str, rule: Rule) -> str:
    """Return the name of a resource for a function, as close to the function's as possible."""
    text = re.sub(r"[^a-z0-9]+", "-", function.lower()).strip("-")
    name = text[: rule.limit].rstrip("-")
    _check(
        re.fullmatch(rule.pattern, name),
        f"name: {function!r} does not give a name that Kubernetes accepts",
        "choose one: --name NAME",
    )
    return name


def check_function(name: str) -> None:
    """Check the name of a function."""
    _check(
        NAME.fullmatch(name),
        f"function: {name!r} cannot be the name of a function",
        "give the name that it was bound with",
    )


def check_label(key: str, value: str, *, field: str) -> None:
    """Check a label of an object or a node."""
    KEY.check(key, field=field)
    LABEL_VALUE.check(value, field=f"{field} {key}")


SECRETS = "put it into a Secret: --env-from-secret NAME=SECRET:KEY"


def check_value(text: str, *, field: str, hint: str = SECRETS) -> None:
    """Check the value of a variable; it is not shown, since it may be a credential."""
    # ``hint`` says where credentials belong.
    unencodable = "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)
    _check(not unencodable, f"{field}: it holds bytes that are not UTF-8 text", "encode it")
    _check(
        not URL_PASSWORD.search(text),
        f"{field}: a URL has a password in it, which everyone who reads the manifest would see",
        hint,
    )


def check_number(
    number: float | None, *, field: str, minimum: int = 0, above: bool = False
) -> None:
    """Check that a number is at least ``minimum``, or above it; None is valid."""
    _check(
        number is None
        or (math.isfinite(number) and (number > minimum or (number == minimum and not above))),
        f"{field}: {number} is out of range",
        f"more than {minimum}" if above else f"{minimum} or more",
    )


def parse_cpu(text: str, *, field: str) -> Decimal:
    """Return the number of CPUs in ``2``, ``0.5`` or ``500m``."""
    found = _QUANTITY.fullmatch(text)
    if found and (found["unit"] or "m") == "m":
        number = Decimal(found["number"]) * _UNITS[found["unit"] or ""]
        if number > 0:
            return number
    raise OptionError(f"{field}: {text!r} is not a number of CPUs", hint="such as 2, 0.5 or 500m")


def parse_memory(text: str, *, field: str) -> int:
    """Return the number of bytes in ``4Gi`` or ``500M``; too few mean a missing unit."""
    found = _QUANTITY.fullmatch(text)
    if not found or found["unit"] == "m":
        guess = re.sub(r"(?i)b$", "", text)
        fits = _QUANTITY.fullmatch(guess) and guess != text
        raise OptionError(
            f"{field}: {text!r} is not an amount of memory that Kubernetes accepts",
            hint=f"write {guess}" if fits else "such as 4Gi or 512Mi",
        )
    size = int(Decimal(found["number"]) * _UNITS[found["unit"] or ""])
    _check(
        size >= _MINIMUM_MEMORY,
        f"{field}: {text!r} is {size} bytes, too few for any container",
        f"add a unit, such as {found['number']}Gi",
    )
    return size


def _check(valid: object, message: str, hint: str) -> None:
    if not valid:
        raise OptionError(message, hint=hint)
