"""What Kubernetes accepts; each check raises an `OptionError` with the option and the value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal

from mfimage.errors import OptionError
from mfimage.masking import URL_PASSWORD

_DNS1035 = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_DNS1123 = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[KMGTPE]i|[mkMGTPE])?")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)},
}
# Less means that the unit is missing.
_MINIMUM_MEMORY = 64 * 1024**2


def check_name(text: str, *, field: str, limit: int) -> None:
    """Check the name of a resource."""
    _check(
        _DNS1035.fullmatch(text) and len(text) <= limit,
        f"{field}: {text!r} cannot be the name of this resource",
        f"at most {limit} lower-case letters, digits and '-', starting with a letter and not "
        "ending with '-'",
    )


def default_name(function: str, *, limit: int) -> str:
    """Return the name of a resource for a function, as close to the function's as possible."""
    name = re.sub(r"[^a-z0-9]+", "-", function.lower()).strip("-")[:limit].rstrip("-")
    _check(
        _DNS1035.fullmatch(name),
        f"name: {function!r} does not give a name that Kubernetes accepts",
        "choose one: --name NAME",
    )
    return name


def check_namespace(text: str, *, field: str) -> None:
    """Check a namespace."""
    _check(
        _DNS1123.fullmatch(text) and len(text) <= 63,
        f"{field}: {text!r} cannot be a namespace",
        "at most 63 lower-case letters, digits and '-'",
    )


def check_subdomain(text: str, *, field: str) -> None:
    """Check the name of a Secret or a service account."""
    _check(
        len(text) <= 253 and all(map(_DNS1123.fullmatch, text.split("."))),
        f"{field}: {text!r} cannot be the name of a Kubernetes object",
        "lower-case letters, digits, '-' and '.'",
    )


def check_label(key: str, value: str, *, field: str) -> None:
    """Check a label of an object or a node."""
    check_key(key, field=field)
    _check(
        not value or _QUALIFIED.fullmatch(value),
        f"{field}: {key}={value!r} is not valid as the value of a label",
        "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    )


def check_key(key: str, *, field: str) -> None:
    """Check the name of a label, an annotation, a taint or a resource."""
    prefix, slash, name = key.rpartition("/")
    parts = prefix.split(".") if slash else []
    _check(
        _QUALIFIED.fullmatch(name) and all(map(_DNS1123.fullmatch, parts)),
        f"{field}: {key!r} is not a name that Kubernetes accepts here",
        "such as team, or with a prefix: example.com/team",
    )


def check_variable(name: str, *, field: str, taken: Iterable[str] = ()) -> None:
    """Check the name of a variable, which may not be one of ``taken``."""
    _check(
        _VARIABLE.fullmatch(name),
        f"{field}: {name!r} cannot be the name of a variable",
        "letters, digits and '_', not starting with a digit",
    )
    _check(name not in taken, f"{field}: {name} is given twice", "leave one of them out")


def check_value(text: str, *, field: str) -> None:
    """Check the value of a variable; it is not shown, since it may be a credential."""
    unencodable = "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)
    _check(not unencodable, f"{field}: it holds bytes that are not UTF-8 text", "encode it")
    _check(
        not URL_PASSWORD.search(text),
        f"{field}: a URL has a password in it, which everyone who reads the manifest would see",
        "put it into a Secret: --env-from-secret NAME=SECRET:KEY",
    )


def check_secret_key(text: str, *, field: str) -> None:
    """Check a key of a Secret."""
    _check(
        _SECRET_KEY.fullmatch(text),
        f"{field}: {text!r} cannot be a key of a Secret",
        "letters, digits, '-', '_' and '.'",
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
