"""What a kind of manifest is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.manifests import KINDS
from mfimage.manifests.options import flags, read_options

Group = tuple[type, str]  # options, and the prefix of their flags


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of manifest."""

    stated: type  # what the user states about the image, see `read`
    options: tuple[Group, ...]
    read: Callable[..., Any]  # read(name, stated, say=...) -> image
    write: Callable[..., str]  # write(image, *options)

    @property
    def summary(self) -> str:
        """What it writes, in a line."""
        return (self.write.__doc__ or "").partition("\n")[0].replace("``", "")

    def flags(self) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
        """Yield its flags, as `mfimage.manifests.options.flags` does."""
        for group, prefix in ((self.stated, ""), *self.options):
            yield from flags(group, prefix)

    def make(self, image: str, given: Mapping[str, Any], *, say: Callable[[str], None]) -> str:
        """Return the manifest of an image, from the values of its flags."""
        # Options first: checking them takes no time.
        options: list[Any] = [read_options(group, given, prefix) for group, prefix in self.options]
        found = self.read(image, read_options(self.stated, given), say=say)
        return self.write(found, *options)


def find_kind(name: str) -> Kind:
    """Return a kind of ``KINDS``."""
    kind: Kind = importlib.import_module(KINDS[name]).KIND
    return kind


def kinds_with(flag: str) -> list[str]:
    """Return the names of the kinds that have a flag."""
    return [name for name in KINDS if any(flag in names for names, _ in find_kind(name).flags())]
