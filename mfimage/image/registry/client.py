"""Reads and writes a registry's manifests and blobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mfimage.errors import RegistryError
from mfimage.files import CHUNK
from mfimage.image.registry.auth import Credentials, stored_credentials
from mfimage.image.registry.descriptors import ANY_MANIFEST, INDEX, Descriptor
from mfimage.image.registry.http import Dropped, Http, RegistryResponse, check
from mfimage.image.registry.reference import DEFAULT_NAMESPACE, DEFAULT_REGISTRY, Reference
from mfimage.image.registry.upload import Upload
from mfimage.package.spec import sha256_digest

_MAX_MANIFEST = 4 << 20
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
OnProgress = Callable[[int], None]


class RegistryClient:
    """A client of one registry, ``host[:port]``; safe to use from threads."""

    def __init__(
        self, host: str, *, credentials: Credentials | None = None, ca: Path | None = None
    ) -> None:
        self.host = host
        self._http = Http(host, credentials, ca=ca)

    def manifest(
        self, repository: str, reference: str, *, accept: tuple[str, ...] = ANY_MANIFEST
    ) -> tuple[Descriptor, bytes] | None:
        """Return a manifest or index by tag or digest, verified; None if there is none."""
        response = self._get(
            f"{repository}/manifests/{reference}", repository, {"accept": ", ".join(accept)}
        )
        if response.status == 404:
            return None
        self._check(response, 200, f"read {repository} {reference}", repository)
        digest = sha256_digest(response.body)
        wanted = reference if reference.startswith("sha256:") else None
        if wanted not in (None, digest) or len(response.body) > _MAX_MANIFEST:
            raise RegistryError(f"{self.host}/{repository}: {reference} does not match its digest")
        kind = response.headers.get("content-type", "").partition(";")[0]
        return Descriptor(media_type=kind, digest=digest, size=len(response.body)), response.body

    def has_blob(self, repository: str, digest: str) -> bool:
        """Return whether a repository has a blob."""
        response = self._http.request(
            "HEAD", f"{repository}/blobs/{digest}", scopes=_pull(repository)
        )
        if response.status not in (200, 404):
            self._check(response, 200, f"look for {digest}", repository)
        return response.status == 200

    def blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in chunks; the last chunk only after the blob was verified."""
        # A broken download is resumed.
        hasher, size, attempt, held = hashlib.sha256(), 0, 1, b""
        while True:
            try:
                for chunk in self._blob_from(repository, digest, size):
                    if held:
                        yield held
                    hasher.update(chunk)
                    size += len(chunk)
                    held, attempt = chunk, 1
                break
            except Dropped as error:
                self._http.pause(attempt, error)
                attempt += 1
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise RegistryError(f"{self.host}/{repository}: {digest} does not match its digest")
        yield held

    def _blob_from(self, repository: str, digest: str, start: int) -> Iterator[bytes]:
        import urllib3

        headers = {"range": f"bytes={start}-"} if start else {}
        url = f"{repository}/blobs/{digest}"
        with self._http.stream("GET", url, scopes=_pull(repository), headers=headers) as response:
            if response.status == 416:  # it was complete
                return
            if response.status not in (200, 206):
                body = response.read(CHUNK)
                refused = RegistryResponse(status=response.status, headers={}, body=body)
                self._check(refused, 200, f"read {digest}", repository)
            skip = start if response.status == 200 else 0
            try:
                for chunk in response.stream(CHUNK, decode_content=False):
                    part = chunk[skip:]
                    skip = max(skip - len(chunk), 0)
                    if part:
                        yield part
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Dropped(f"the connection broke: {error}") from error

    def push_blob(
        self,
        repository: str,
        digest: str,
        size: int,
        open: Callable[[], BinaryIO],
        *,
        sources: tuple[str, ...] = (),
        on_progress: OnProgress = lambda _: None,
    ) -> bool:
        """Send a blob unless the registry has it; return whether it was sent."""
        # ``sources`` are other repositories that have it; ``on_progress`` gets the bytes sent so
        # far.
        if self.has_blob(repository, digest):
            on_progress(size)
            return False
        upload = Upload(
            self._http,
            repository=repository,
            digest=digest,
            size=size,
            open=open,
            on_progress=on_progress,
        )
        return upload.run(sources)

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> str:
        """Write a manifest or index under a tag or its digest; return its digest."""
        digest = sha256_digest(data)
        response = self._http.request(
            "PUT",
            f"{repository}/manifests/{reference}",
            scopes=frozenset((f"repository:{repository}:pull,push",)),
            headers={"content-type": media_type},
            body=data,
        )
        self._check(response, 201, f"write {repository}:{reference}", repository)
        self._keep_subject(repository, data, digest, response)
        return digest

    def referrers(
        self, repository: str, digest: str, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Return the artifacts attached to a manifest."""
        url: str | None = f"{repository}/referrers/{digest}"
        found: list[Descriptor] = []
        while url:
            response = self._get(url, repository, {"accept": INDEX})
            if response.status == 404:
                found = self._tagged_referrers(repository, digest)
                break
            self._check(response, 200, f"list the artifacts of {digest}", repository)
            found += map(Descriptor.parse, json.loads(response.body).get("manifests", []))
            following = _NEXT.search(response.headers.get("link", ""))
            url = following[1].partition("/v2/")[2] if following else None
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
            media_type=manifest["mediaType"],
            digest=digest,
            size=len(data),
            artifact_type=manifest.get("artifactType") or manifest["config"]["mediaType"],
            annotations=manifest.get("annotations") or {},
        )
        listed = [each.to_dict() for each in (*known, new)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        encoded = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        self.push_manifest(repository, _referrers_tag(subject["digest"]), INDEX, encoded)

    def _tagged_referrers(self, repository: str, digest: str) -> list[Descriptor]:
        found = self.manifest(repository, _referrers_tag(digest), accept=(INDEX,))
        if found is None:
            return []
        return [Descriptor.parse(each) for each in json.loads(found[1]).get("manifests", [])]

    def _get(self, url: str, repository: str, headers: Mapping[str, str]) -> RegistryResponse:
        return self._http.request("GET", url, scopes=_pull(repository), headers=headers)

    def _check(self, response: RegistryResponse, wanted: int, what: str, repository: str) -> None:
        check(response, wanted, f"{self.host}: cannot {what}", f"{self.host}/{repository}")

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def open_registry(reference: Reference) -> RegistryClient:
    """Return a client of a reference's registry, with the credentials that Docker stored."""
    host = reference.registry or DEFAULT_REGISTRY
    return RegistryClient(host, credentials=stored_credentials(host))


def repository_of(reference: Reference) -> str:
    """Return the name of a reference's repository in its registry."""
    official = reference.registry in ("", DEFAULT_REGISTRY) and "/" not in reference.repository
    return f"{DEFAULT_NAMESPACE}/{reference.repository}" if official else reference.repository


def _pull(repository: str) -> frozenset[str]:
    return frozenset((f"repository:{repository}:pull",))


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")
