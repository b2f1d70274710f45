"""Image references: ``registry:port/repository:tag@sha256:...``."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from mfimage.errors import OptionError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_MAX_REPOSITORY = 255
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\]"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_HUB = ("", "index.docker.io", "registry-1.docker.io")
_EXAMPLE = "write it as registry.example.com:5000/team/name:tag, or name:tag"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image's name; made by `parse_reference`."""

    repository: str  # as ``team/name``
    registry: str = ""  # host and port as written; empty for the default registry
    tag: str | None = None  # as written
    digest: str | None = None  # ``sha256:<hex>`` of a manifest

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Registry and repository as written, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def host(self) -> str:
        """Host and port of the registry, in lower case."""
        return registry_host(self.registry)

    @property
    def canonical(self) -> str:
        """The full form, with the registry, namespace and tag that a short name omits."""
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


def registry_host(text: str) -> str:
    """Return a registry's host and port; Docker Hub, which has several, is ``docker.io``."""
    host = text.partition("/")[0].lower()
    return DEFAULT_REGISTRY if host in _HUB else host


def parse_reference(text: str, *, field: str = "image") -> Reference:
    """Parse an image reference; ``field`` is the option's name, for the error."""
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise _error(field, text, f"it starts with {scheme}://", f"write {rest!r}")
    if not text or text != text.strip() or any(char.isspace() for char in text):
        raise _error(field, text, "it is empty or contains white space")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _error(field, text, f"digest {digest!r} is not sha256:<64 hex digits>")
    rest, colon, tag = _split_tag(rest)
    if colon and not _TAG.fullmatch(tag):
        hint = "a tag is at most 128 letters, digits, '_', '.' and '-'; it starts with none of '.-'"
        raise _error(field, text, f"tag {tag!r} is too long or has other characters", hint)
    registry, repository = _split_registry(rest)
    _check_registry(field, text, registry)
    _check_repository(field, text, repository, bare=not registry)
    return Reference(
        registry=registry, repository=repository, tag=tag or None, digest=digest or None
    )


def parse_tag(text: str, *, field: str = "tag") -> Reference:
    """Parse the name of an image to build; the tag is ``latest`` by default."""
    reference = parse_reference(text, field=field)
    if reference.digest:
        raise _error(
            field, text, "a digest is known only after the build", f"leave out @{reference.digest}"
        )
    return dataclasses.replace(reference, tag=reference.tag or DEFAULT_TAG)


def _split_tag(text: str) -> tuple[str, str, str]:
    # A colon before the last slash belongs to the registry's port.
    head, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    return head + slash + last, colon, tag


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_host = "." in first or ":" in first or first.lower() == "localhost"
    return (first, rest) if slash and is_host else ("", text)


def _check_registry(field: str, text: str, registry: str) -> None:
    if not registry:
        return
    host, port = registry, None
    if not registry.endswith("]"):
        host, colon, after = registry.rpartition(":")
        host, port = (host, after) if colon else (registry, None)
    if not _HOST.fullmatch(host):
        raise _error(field, text, f"{host!r} is not a host name")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _error(field, text, f"{port!r} is not a port")


def _check_repository(field: str, text: str, repository: str, *, bare: bool) -> None:
    if not repository:
        raise _error(field, text, "the repository is missing")
    if repository != repository.lower():
        hint = f"write {text.replace(repository, repository.lower())!r}"
        raise _error(field, text, f"{repository!r} has capital letters", hint)
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise _error(field, text, f"{component!r} cannot be part of a repository's name")
    if len(repository) > _MAX_REPOSITORY:
        raise _error(field, text, f"the repository is longer than {_MAX_REPOSITORY} characters")
    if bare and _IMAGE_ID.fullmatch(repository):
        raise _error(field, text, "64 hex digits are an image ID, not a name")


def _error(field: str, text: str, what: str, hint: str = _EXAMPLE) -> OptionError:
    return OptionError(f"{field}: {text!r} is not an image reference: {what}", hint=hint)
