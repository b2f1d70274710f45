"""What Kubernetes and KubeRay take, checked before they are asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal

from mfimage.errors import OptionError
from mfimage.masking import URL_PASSWORD

# KubeRay appends to names, and what comes out must be a service's name (63 characters).
LONGEST_CLUSTER = 53
LONGEST_OTHER = 47

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
# Less is a missing unit, not a wish.
_LEAST_MEMORY = 64 * 1024**2


def check_name(text: str, *, field: str, longest: int) -> None:
    """Refuse what KubeRay refuses as a resource's name.

    Raises
    ------
    OptionError
        Naming it.
    """
    if not _DNS1035.fullmatch(text) or len(text) > longest:
        raise OptionError(
            f"{field}: {text!r} is no name that KubeRay takes here",
            hint=f"up to {longest} lower-case letters, digits and '-', starting with a letter "
            "and not ending with '-'",
        )


def default_name(function: str, *, longest: int) -> str:
    """Return a resource's name for a function, as near to the function's as it can be.

    Raises
    ------
    OptionError
        If nothing of the function's name can stand in one.
    """
    name = re.sub(r"[^a-z0-9]+", "-", function.lower()).strip("-")[:longest].rstrip("-")
    if not _DNS1035.fullmatch(name):
        raise OptionError(
            f"name: {function!r} gives no name that Kubernetes takes",
            hint="choose one: --name NAME",
        )
    return name


def check_namespace(text: str, *, field: str) -> None:
    """Refuse what is no namespace.

    Raises
    ------
    OptionError
        Naming it.
    """
    if not _DNS1123.fullmatch(text) or len(text) > 63:
        raise OptionError(
            f"{field}: {text!r} is no name of a namespace",
            hint="up to 63 lower-case letters, digits and '-'",
        )


def check_subdomain(text: str, *, field: str) -> None:
    """Refuse what no Secret and no service account can be called.

    Raises
    ------
    OptionError
        Naming it.
    """
    if len(text) > 253 or not all(_DNS1123.fullmatch(part) for part in text.split(".")):
        raise OptionError(
            f"{field}: {text!r} is no name of a Kubernetes object",
            hint="lower-case letters, digits, '-' and '.'",
        )


def check_label(key: str, value: str, *, field: str) -> None:
    """Refuse what is no label, of an object or a node.

    Raises
    ------
    OptionError
        Naming the key, and the value if it is at fault.
    """
    check_key(key, field=field)
    if value and not _QUALIFIED.fullmatch(value):
        raise OptionError(
            f"{field}: {key}={value!r} is no label's value",
            hint="up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
        )


def check_key(key: str, *, field: str) -> None:
    """Refuse what is no label's, annotation's, taint's or resource's name.

    Raises
    ------
    OptionError
        Naming it.
    """
    prefix, slash, name = key.rpartition("/")
    parts = prefix.split(".") if slash else []
    if not _QUALIFIED.fullmatch(name) or not all(_DNS1123.fullmatch(part) for part in parts):
        raise OptionError(
            f"{field}: {key!r} is no name that Kubernetes takes here",
            hint="as team, or with a prefix: example.com/team",
        )


def check_variable(name: str, *, field: str, taken: Iterable[str]) -> None:
    """Refuse what is no variable's name, and one that stands there already.

    Raises
    ------
    OptionError
        Naming it.
    """
    if not _VARIABLE.fullmatch(name):
        raise OptionError(
            f"{field}: {name!r} is no variable's name",
            hint="letters, digits and '_', not starting with a digit",
        )
    if name in taken:
        raise OptionError(f"{field}: {name} is given twice", hint="leave one of them out")


def check_value(text: str, *, field: str) -> None:
    """Refuse text that no variable can hold, and URLs with a password.

    Raises
    ------
    OptionError
        Naming the field; not the value, which may be a credential.
    """
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise OptionError(f"{field}: it holds bytes that are no UTF-8 text", hint="encode it")
    if URL_PASSWORD.search(text):
        raise OptionError(
            f"{field}: a URL has a password in it, and everybody who sees the manifest would too",
            hint="put it into a Secret: --env-from-secret NAME=SECRET:KEY",
        )


def check_secret_key(text: str, *, field: str) -> None:
    """Refuse what is no key in a Secret.

    Raises
    ------
    OptionError
        Naming it.
    """
    if not _SECRET_KEY.fullmatch(text):
        raise OptionError(
            f"{field}: {text!r} is no key in a Secret", hint="letters, digits, '-', '_' and '.'"
        )


def check_whole(number: int | None, *, field: str, least: int = 0) -> None:
    """Refuse a number below ``least``; None is fine.

    Raises
    ------
    OptionError
        Naming it.
    """
    if number is not None and number < least:
        raise OptionError(f"{field}: {number} is too few", hint=f"{least} or more")


def parse_cpu(text: str, *, field: str) -> Decimal:
    """Return a number of CPUs, of ``2``, ``0.5`` or ``500m``.

    Raises
    ------
    OptionError
        If it is none.
    """
    found = _QUANTITY.fullmatch(text)
    if found and (found["unit"] or "m") == "m":
        number = Decimal(found["number"]) * _UNITS[found["unit"] or ""]
        if number > 0:
            return number
    raise OptionError(f"{field}: {text!r} is no number of CPUs", hint="as 2, 0.5 or 500m")


def parse_memory(text: str, *, field: str) -> int:
    """Return a number of bytes, of ``4Gi`` or ``500M``.

    Raises
    ------
    OptionError
        If it is none, or so small that its unit must be missing.
    """
    found = _QUANTITY.fullmatch(text)
    if not found or found["unit"] == "m":
        guess = re.sub(r"(?i)b$", "", text)
        fits = _QUANTITY.fullmatch(guess) and guess != text
        raise OptionError(
            f"{field}: {text!r} is no amount of memory that Kubernetes takes",
            hint=f"write {guess}" if fits else "as 4Gi or 512Mi",
        )
    size = int(Decimal(found["number"]) * _UNITS[found["unit"] or ""])
    if size < _LEAST_MEMORY:
        raise OptionError(
            f"{field}: {text!r} is {size} bytes, in which no Ray starts",
            hint=f"name a unit, as {found['number']}Gi",
        )
    return size


def check_number(number: float | None, *, field: str, above: bool = False) -> None:
    """Refuse what is no finite number of 0 or more, or 0 too with ``above``; None is fine.

    Raises
    ------
    OptionError
        Naming it.
    """
    if number is None or (math.isfinite(number) and (number > 0 or (number == 0 and not above))):
        return
    raise OptionError(
        f"{field}: {number:g} cannot be", hint="more than 0" if above else "0 or more"
    )
