"""Image references: ``registry:port/repository:tag@sha256:...``, parsed once at the edge."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from mfimage.errors import OptionError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_LONGEST_REPOSITORY = 255
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\]"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_EXAMPLE = "write it as registry.example.com:5000/team/name:tag, or name:tag"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image by name; make one with `parse_reference`.

    Attributes
    ----------
    repository : str
        The path within the registry, as ``team/name``.
    registry : str
        Host and port as written; empty for the default registry.
    tag : str or None
        The tag, if one was written.
    digest : str or None
        ``sha256:<hex>`` of a manifest, if one was written.
    """

    repository: str
    registry: str = ""
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Registry and repository as written, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def canonical(self) -> str:
        """The full form, with the defaults that a bare name leaves out."""
        registry = self.registry or DEFAULT_REGISTRY
        repository = self.repository
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = f"{DEFAULT_NAMESPACE}/{repository}"
        tag = self.tag or (None if self.digest else DEFAULT_TAG)
        full = dataclasses.replace(self, registry=registry, repository=repository, tag=tag)
        return str(full)

    def with_digest(self, digest: str) -> Reference:
        """Return the same name, pinned to ``digest``."""
        return dataclasses.replace(self, digest=digest)


def parse_reference(text: str, *, field: str = "image") -> Reference:
    """Parse and check an image reference.

    Parameters
    ----------
    text : str
        As ``python:3.11-slim`` or ``registry:5000/team/name:tag@sha256:...``.
    field : str
        What the user calls it, for the error.

    Raises
    ------
    OptionError
        Naming the part that is wrong.
    """
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise _error(field, text, f"an image reference has no {scheme}://", f"write {rest!r}")
    if not text or text != text.strip() or any(char.isspace() for char in text):
        raise _error(field, text, "it is empty or has white space in it")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _error(field, text, f"digest {digest!r} is not sha256:<64 hex digits>")
    rest, colon, tag = _split_tag(rest)
    if colon and not _TAG.fullmatch(tag):
        hint = "a tag is up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"
        raise _error(field, text, f"tag {tag!r} has a character or length it cannot have", hint)
    registry, repository = _split_registry(rest)
    _check_registry(field, text, registry)
    _check_repository(field, text, repository, bare=not registry)
    return Reference(
        registry=registry, repository=repository, tag=tag or None, digest=digest or None
    )


def parse_tag(text: str, *, field: str = "tag") -> Reference:
    """Parse what a built image shall be called: a name and a tag, ``latest`` if none is given.

    Raises
    ------
    OptionError
        If it is no valid reference, or has a digest: that is known only after the build.
    """
    reference = parse_reference(text, field=field)
    if reference.digest:
        raise _error(
            field, text, "a digest is what a build gives", f"leave out @{reference.digest}"
        )
    return dataclasses.replace(reference, tag=reference.tag or DEFAULT_TAG)


def _split_tag(text: str) -> tuple[str, str, str]:
    # A colon before the last slash belongs to the registry's port.
    head, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    return head + slash + last, colon, tag


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_host = "." in first or ":" in first or first == "localhost"
    return (first, rest) if slash and is_host else ("", text)


def _check_registry(field: str, text: str, registry: str) -> None:
    if not registry:
        return
    host, port = registry, None
    if not registry.endswith("]"):
        host, colon, after = registry.rpartition(":")
        host, port = (host, after) if colon else (registry, None)
    if not _HOST.fullmatch(host):
        raise _error(field, text, f"{host!r} is no registry's host name")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _error(field, text, f"{port!r} is no port")


def _check_repository(field: str, text: str, repository: str, *, bare: bool) -> None:
    if not repository:
        raise _error(field, text, "the repository's name is missing")
    if repository != repository.lower():
        hint = f"write {text.replace(repository, repository.lower())!r}"
        raise _error(field, text, f"{repository!r} has capital letters", hint)
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise _error(field, text, f"{component!r} is no part of a repository's name")
    if len(repository) > _LONGEST_REPOSITORY:
        raise _error(field, text, f"the repository's name is over {_LONGEST_REPOSITORY} characters")
    if bare and _IMAGE_ID.fullmatch(repository):
        raise _error(field, text, "64 hex digits are an image's ID, not a name")


def _error(field: str, text: str, what: str, hint: str = _EXAMPLE) -> OptionError:
    return OptionError(f"{field}: {text!r} is no image reference: {what}", hint=hint)
