"""The labels of every image. To add one, add it to `image_labels`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mfimage import __version__
from mfimage.errors import OptionError
from mfimage.image.plan.options import LABEL_PREFIX, LONGEST_VALUE, check_text
from mfimage.image.plan.subject import FUNCTIONS, Subject

VERSION = f"{LABEL_PREFIX}version"
PYTHON = f"{LABEL_PREFIX}python"
TARGET = f"{LABEL_PREFIX}target"
FUNCTION_NAME = f"{LABEL_PREFIX}function.name"
FUNCTION_DIGEST = f"{LABEL_PREFIX}function.digest"
LOCK_DIGEST = f"{LABEL_PREFIX}lock.digest"
# Instead of a base's digest, which images have that were pulled or pushed.
BASE_ID = f"{LABEL_PREFIX}base.id"

_OCI = "org.opencontainers.image."
_LONGEST_DESCRIPTION = 1000
_NONE: Mapping[str, str] = MappingProxyType({})


def image_labels(
    subject: Subject,
    *,
    target: str,
    # The digest of the one that is installed.
    lock: str,
    base: str,
    base_digest: str | None,
    base_id: str | None = None,
    more: Mapping[str, str] = _NONE,
) -> dict[str, str]:
    """Return the labels of an image, sorted by name; ``more`` are the target's own."""
    # None contains a time: equal inputs give equal images.
    labels = {
        f"{_OCI}title": subject.name,
        f"{_OCI}description": _paragraph(subject.description),
        f"{_OCI}version": subject.digest.removeprefix("sha256:")[:12],
        f"{_OCI}revision": subject.revision,
        f"{_OCI}base.name": base,
        f"{_OCI}base.digest": base_digest or "",
        BASE_ID: base_id or "",
        VERSION: __version__,
        TARGET: target,
        # Of several functions, the names are in the image's functions.json.
        f"{LABEL_PREFIX}{subject.kind}.name": "" if subject.kind == FUNCTIONS else subject.name,
        f"{LABEL_PREFIX}{subject.kind}.digest": subject.digest,
        PYTHON: subject.environment.python_minor,
        LOCK_DIGEST: lock,
        **{LABEL_PREFIX + name: value for name, value in subject.labels.items()},
        **more,
    }
    # What is too long for a label is in the image's function.json only.
    return {
        name: value
        for name, value in sorted(labels.items())
        if value and len(value.encode()) <= LONGEST_VALUE
    }


def _paragraph(text: str) -> str:
    words = " ".join(text.strip().partition("\n\n")[0].split())
    if len(words) > _LONGEST_DESCRIPTION:
        words = words[: _LONGEST_DESCRIPTION - 1] + "…"
    return "".join(char for char in words if char.isprintable())


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that would show a password."""
    for name, value in labels.items():
        try:
            check_text(f"label {name}", value)
        except OptionError as error:
            raise OptionError(
                error.message, hint="remove it from the function's docstring or hints"
            ) from None
