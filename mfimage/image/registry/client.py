"""Reads and writes a registry's manifests and blobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin

from mfimage.errors import RegistryError
from mfimage.files import CHUNK
from mfimage.image.registry.auth import Credentials, Scopes, stored_credentials
from mfimage.image.registry.descriptors import ANY_MANIFEST, INDEX, MANIFEST, Descriptor
from mfimage.image.registry.http import Attempts, Dropped, Http, RegistryResponse
from mfimage.image.registry.reference import DEFAULT_NAMESPACE, DEFAULT_REGISTRY, Reference
from mfimage.package.spec import sha256_digest

_MAX_MANIFEST = 4 << 20
_BLOCK = 1 << 18
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_EMPTY = {"content-length": "0"}
OnProgress = Callable[[int], None]


class RegistryClient:
    """A client of one registry, ``host[:port]``; safe to use from threads."""

    def __init__(
        self, host: str, *, credentials: Credentials | None = None, ca: Path | None = None
    ) -> None:
        self.host = host
        self._http = Http(host, credentials, ca=ca)

    def settle(self) -> None:
        """Connect and find out how to authenticate; best done before threads start."""
        self._http.settle()

    def manifest(
        self, repository: str, reference: str, *, accept: tuple[str, ...] = ANY_MANIFEST
    ) -> tuple[Descriptor, bytes] | None:
        """Return a manifest or index by tag or digest, verified; None if there is none."""
        response = self._http.request(
            "GET", f"{repository}/manifests/{reference}",
            _pull(repository), {"accept": ", ".join(accept)},
        )  # fmt: skip
        if response.status == 404:
            return None
        self._check(response, f"read {repository} {reference}", repository)
        digest, size = sha256_digest(response.body), len(response.body)
        if (reference.startswith("sha256:") and reference != digest) or size > _MAX_MANIFEST:
            raise RegistryError(f"{self.host}/{repository}: {reference} does not match its digest")
        kind = response.headers.get("content-type", "").partition(";")[0]
        document = _document(response.body)
        if document is None:
            raise RegistryError(
                f"{self.host}/{repository}: {reference} is not a manifest, but {kind or 'no JSON'}",
                hint="check the name, and whether a proxy answers in the registry's place",
            )
        usual = INDEX if "manifests" in document else MANIFEST
        media_type = document.get("mediaType") or (kind if kind in ANY_MANIFEST else usual)
        return Descriptor(media_type=media_type, digest=digest, size=size), response.body

    def has_blob(self, repository: str, digest: str, size: int) -> bool:
        """Return whether a repository certainly has a blob; False if that is not found out."""
        self.settle()
        url, scopes = f"{repository}/blobs/{digest}", _pull(repository)
        try:
            response = self._http.request("HEAD", url, scopes, tries=2)
            held = response.headers.get("content-length")
            if not response.ok and not response.url.partition("?")[0].endswith(url):
                # It redirects, perhaps to a URL that is signed for GET.
                ranged = {"range": "bytes=0-0"}
                with self._http.stream("GET", url, scopes, ranged) as (_, found):
                    held = found.headers.get("content-range", "/").rpartition("/")[2]
                    return found.status == 206 and held == str(size)
            return response.ok and held in (None, str(size))
        except (RegistryError, Dropped):
            return False  # what fails here fails again, and is reported, when it is needed

    def blob(self, repository: str, digest: str, size: int = 0) -> Iterator[bytes]:
        """Yield a blob in chunks; the last chunk only after the blob was verified."""
        # A broken download is resumed. ``size`` allows for a longer time.
        hasher, count, held = hashlib.sha256(), 0, b""
        attempts = Attempts(self.host, size)
        while True:
            try:
                for chunk in self._blob_from(repository, digest, count):
                    if held:
                        yield held
                    hasher.update(chunk)
                    count += len(chunk)
                    held = chunk
                    attempts.progressed()
                    attempts.check_time()
                break
            except Dropped as error:
                attempts.pause(error)
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise RegistryError(f"{self.host}/{repository}: {digest} does not match its digest")
        yield held

    def _blob_from(self, repository: str, digest: str, start: int) -> Iterator[bytes]:
        import urllib3

        headers = {"range": f"bytes={start}-"} if start else {}
        url = f"{repository}/blobs/{digest}"
        with self._http.stream("GET", url, _pull(repository), headers) as (at, response):
            if start and response.status == 416:  # it was complete
                return
            if not 200 <= response.status < 300:
                self._check(self._http.read(at, response), f"read {digest}", repository)
            resumed = response.headers.get("content-range", "").startswith(f"bytes {start}-")
            skip = 0 if resumed else start
            try:
                for chunk in response.stream(CHUNK, decode_content=False):
                    part = chunk[skip:]
                    skip = max(skip - len(chunk), 0)
                    if part:
                        yield part
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Dropped(f"the connection broke: {error}") from error

    def push_blob(
        self, repository: str, digest: str, size: int, open: Callable[[], BinaryIO], *,
        sources: Sequence[str] = (), on_progress: OnProgress = lambda _: None,
    ) -> bool:  # fmt: skip
        """Send a blob unless the registry has it; return whether it was sent."""
        # ``sources`` are other repositories that have it; ``on_progress`` gets the bytes sent.
        if self.has_blob(repository, digest, size) or any(
            self._mount(repository, digest, size, source) for source in sources
        ):
            on_progress(size)
            return False
        attempts = Attempts(self.host, size)

        def blocks() -> Iterator[bytes]:
            sent = 0
            with open() as file:
                while sent < size and (block := file.read(min(_BLOCK, size - sent))):
                    yield block
                    sent += len(block)
                    attempts.check_time()
                    on_progress(sent)
            if sent < size:
                raise RegistryError(f"{digest}: the file is shorter than {size} bytes")

        while True:
            try:
                self._upload(repository, digest, size, blocks)
                return True
            except Dropped as error:
                attempts.pause(error)
                # Perhaps only the last response was lost; else the blob is sent anew.
                if self.has_blob(repository, digest, size):
                    return True

    def _upload(
        self, repository: str, digest: str, size: int, blocks: Callable[[], Iterator[bytes]]
    ) -> None:
        # As go-containerregistry does, which works everywhere: no chunks, no ranges.
        scopes, once = _push(repository), self._http.once
        begun = once("POST", f"{repository}/blobs/uploads/", scopes, _EMPTY)
        self._check(begun, f"write to {repository}", repository)
        if "location" not in begun.headers:
            raise RegistryError(f"{self.host} gave no location to send {digest} to")
        location = self._http.follow(begun.url, begun.headers["location"])
        kind = {"content-type": "application/octet-stream", "content-length": str(size)}
        sent = once("PATCH", location, scopes, kind, blocks)
        if sent.status in (404, 416):
            raise Dropped(f"it lost the upload ({sent.reason})")
        self._check(sent, f"send {digest}", repository)
        location = self._http.follow(sent.url, sent.headers.get("location", sent.url))
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(digest)}"
        ended = once("PUT", url, scopes, _EMPTY)
        if ended.status == 404:
            raise Dropped(f"it lost the upload ({ended.reason})")
        self._check(ended, f"keep {digest}", repository)
        if ended.status != 201 and not self.has_blob(repository, digest, size):
            raise Dropped(f"it has not kept {digest} ({ended.reason})")

    def _mount(self, repository: str, digest: str, size: int, source: str) -> bool:
        url = f"{repository}/blobs/uploads/?mount={quote(digest)}&from={quote(source, safe='')}"
        scopes = (*_push(repository), *_pull(source))
        try:
            mounted = self._http.once("POST", url, scopes, _EMPTY)
        except (RegistryError, Dropped):
            return False  # as a token for two repositories that is denied
        accepted = mounted.ok and mounted.status != 202
        return accepted and self.has_blob(repository, digest, size)

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> str:
        """Write a manifest or index under a tag or its digest; return its digest."""
        digest = sha256_digest(data)
        response = self._http.request(
            "PUT", f"{repository}/manifests/{reference}",
            _push(repository), {"content-type": media_type}, data,
        )  # fmt: skip
        kept = response.headers.get("docker-content-digest") if response.ok else None
        # Tags may be immutable: one that leads there already is done.
        if kept != digest and not self._leads_to(repository, reference, digest):
            what = f"write {repository}:{reference}"
            self._check(response, what, repository)
            raise RegistryError(f"{self.host}: could not {what} ({response.reason})")
        self._keep_subject(repository, data, digest, response)
        return digest

    def _leads_to(self, repository: str, reference: str, digest: str) -> bool:
        with suppress(RegistryError):
            found = self.manifest(repository, reference)
            return found is not None and found[0].digest == digest
        return False

    def referrers(
        self, repository: str, digest: str, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Return the artifacts attached to a manifest."""
        url = f"{repository}/referrers/{digest}"
        found: list[Descriptor] = []
        while url:
            response = self._http.request("GET", url, _pull(repository), {"accept": INDEX})
            listed = _document(response.body) if response.ok else None
            if listed is None or listed.get("manifests") is None:
                # No such API, or a page in its place.
                found = self._tagged_referrers(repository, digest)
                break
            found += _listed(listed)
            following = _NEXT.search(response.headers.get("link", ""))
            url = urljoin(response.url, following[1]) if following else ""
        return [each for each in found if artifact_type in (None, each.artifact_type)]

    def _keep_subject(
        self, repository: str, data: bytes, digest: str, response: RegistryResponse
    ) -> None:
        """Add a referrer to the tag of its subject, for registries without the referrers API."""
        manifest = json.loads(data)
        subject = manifest.get("subject")
        if subject is None or "oci-subject" in response.headers:
            return
        known = self._tagged_referrers(repository, subject["digest"])
        if digest in {each.digest for each in known}:
            return
        new = Descriptor(
            media_type=manifest["mediaType"], digest=digest, size=len(data),
            artifact_type=manifest.get("artifactType") or manifest["config"]["mediaType"],
            annotations=manifest.get("annotations") or {},
        )  # fmt: skip
        listed = [each.to_dict() for each in (*known, new)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        encoded = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        self.push_manifest(repository, _referrers_tag(subject["digest"]), INDEX, encoded)

    def _tagged_referrers(self, repository: str, digest: str) -> list[Descriptor]:
        found = self.manifest(repository, _referrers_tag(digest), accept=(INDEX,))
        return _listed(json.loads(found[1])) if found else []

    def _check(self, response: RegistryResponse, what: str, repository: str) -> None:
        """Raise `RegistryError`, with what to do, unless a response is a success."""
        hints = {
            401: f"docker login {self.host}",
            403: f"ask for write access, or `docker login {self.host}` as another user",
            404: f"check the name {self.host}/{repository}",
            413: f"raise the upload limit of {self.host}, or of the proxy before it",
        }
        if not response.ok:
            message = f"{self.host}: cannot {what}: {response.reason}"
            raise RegistryError(message, hint=hints.get(response.status))

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def open_registry(reference: Reference) -> RegistryClient:
    """Return a client of a reference's registry, with the credentials that Docker stored."""
    return RegistryClient(reference.host, credentials=stored_credentials(reference.host))


def repository_of(reference: Reference) -> str:
    """Return the name of a reference's repository in its registry."""
    official = reference.host == DEFAULT_REGISTRY and "/" not in reference.repository
    return f"{DEFAULT_NAMESPACE}/{reference.repository}" if official else reference.repository


def _document(body: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        found = json.loads(body)
        return found if isinstance(found, dict) else None
    return None


def _listed(document: dict[str, Any]) -> list[Descriptor]:
    """Return the descriptors of an index; some registries list ``null``."""
    try:
        return [Descriptor.parse(each) for each in document.get("manifests") or ()]
    except (LookupError, TypeError) as error:
        raise RegistryError(f"a list of artifacts has an entry without {error}") from None


def _pull(repository: str) -> Scopes:
    return (f"repository:{repository}:pull",)


def _push(repository: str) -> Scopes:
    return (f"repository:{repository}:pull,push",)


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")
