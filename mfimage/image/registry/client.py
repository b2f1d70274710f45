"""A registry: its manifests and blobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mfimage.errors import RegistryError
from mfimage.image.registry.auth import Credentials, stored_credentials
from mfimage.image.registry.descriptors import ANY_MANIFEST, INDEX, Descriptor
from mfimage.image.registry.http import Answer, Dropped, Http, check
from mfimage.image.registry.reference import DEFAULT_NAMESPACE, DEFAULT_REGISTRY, Reference
from mfimage.image.registry.upload import Upload

_CHUNK = 1 << 20
_MOST_MANIFEST = 4 << 20
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
OnProgress = Callable[[int], None]


class RegistryClient:
    """One registry; any thread may use it.

    Parameters
    ----------
    host : str
        ``host[:port]``; ``docker.io`` is Docker Hub.
    credentials : Credentials, optional
        Who we are; anonymous by default.
    ca : Path, optional
        A file of certificates to trust as well.
    """

    def __init__(
        self, host: str, *, credentials: Credentials | None = None, ca: Path | None = None
    ) -> None:
        self.host = host
        self._http = Http(host, credentials, ca=ca)

    def manifest(
        self, repository: str, reference: str, *, accept: tuple[str, ...] = ANY_MANIFEST
    ) -> tuple[Descriptor, bytes] | None:
        """Return a manifest or index, verified, by tag or digest; None when there is none.

        Raises
        ------
        RegistryError
            When the registry refuses, or sends other bytes than the digest says.
        """
        answer = self._get(
            f"{repository}/manifests/{reference}", repository, {"accept": ", ".join(accept)}
        )
        if answer.status == 404:
            return None
        self._check(answer, 200, f"read {repository} {reference}", repository)
        digest = _digest(answer.body)
        wanted = reference if reference.startswith("sha256:") else None
        if wanted not in (None, digest) or len(answer.body) > _MOST_MANIFEST:
            raise RegistryError(f"{self.host}/{repository}: {reference} is not what its name says")
        kind = answer.headers.get("content-type", "").partition(";")[0]
        return Descriptor(media_type=kind, digest=digest, size=len(answer.body)), answer.body

    def has_blob(self, repository: str, digest: str) -> bool:
        """Tell whether a repository has a blob."""
        answer = self._http.request(
            "HEAD", f"{repository}/blobs/{digest}", scopes=_pull(repository)
        )
        if answer.status not in (200, 404):
            self._check(answer, 200, f"look for {digest}", repository)
        return answer.status == 200

    def blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in chunks; the last comes after the whole was verified.

        A connection that breaks is made again, and goes on where the last one ended.

        Raises
        ------
        RegistryError
            Before the end, when it is missing or not what its digest says.
        """
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
            raise RegistryError(f"{self.host}/{repository}: {digest} is not what its name says")
        yield held

    def _blob_from(self, repository: str, digest: str, start: int) -> Iterator[bytes]:
        import urllib3

        headers = {"range": f"bytes={start}-"} if start else {}
        url = f"{repository}/blobs/{digest}"
        with self._http.stream("GET", url, scopes=_pull(repository), headers=headers) as response:
            if response.status == 416:  # all of it had come
                return
            if response.status not in (200, 206):
                answer = Answer(status=response.status, headers={}, body=response.read(_CHUNK))
                self._check(answer, 200, f"read {digest}", repository)
            skip = start if response.status == 200 else 0
            try:
                for chunk in response.stream(_CHUNK, decode_content=False):
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
        """Send a blob, unless the registry has it; return whether it had to be sent.

        Parameters
        ----------
        open : callable
            Opens the content, for each try anew.
        sources : tuple of str
            Other repositories of this registry that have it.
        on_progress : callable
            Told how many bytes are there so far.
        """
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
        digest = _digest(data)
        answer = self._http.request(
            "PUT",
            f"{repository}/manifests/{reference}",
            scopes=push_scopes(repository),
            headers={"content-type": media_type},
            body=data,
        )
        self._check(answer, 201, f"write {repository}:{reference}", repository)
        self._keep_subject(repository, data, digest, answer)
        return digest

    def referrers(
        self, repository: str, digest: str, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Return what is attached to a manifest."""
        url: str | None = f"{repository}/referrers/{digest}"
        found: list[Descriptor] = []
        while url:
            answer = self._get(url, repository, {"accept": INDEX})
            if answer.status == 404:
                found = self._tagged_referrers(repository, digest)
                break
            self._check(answer, 200, f"list what refers to {digest}", repository)
            found += map(Descriptor.parse, json.loads(answer.body).get("manifests", []))
            following = _NEXT.search(answer.headers.get("link", ""))
            url = following[1].partition("/v2/")[2] if following else None
        return [each for each in found if artifact_type in (None, each.artifact_type)]

    def _keep_subject(self, repository: str, data: bytes, digest: str, answer: Answer) -> None:
        """List a referrer under the tag of its subject, for registries without that API."""
        plain = json.loads(data)
        subject = plain.get("subject")
        if subject is None or "oci-subject" in answer.headers:
            return
        known = self._tagged_referrers(repository, subject["digest"])
        if digest in {each.digest for each in known}:
            return
        new = Descriptor(
            media_type=plain["mediaType"],
            digest=digest,
            size=len(data),
            artifact_type=plain.get("artifactType") or plain["config"]["mediaType"],
            annotations=plain.get("annotations") or {},
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

    def _get(self, url: str, repository: str, headers: Mapping[str, str]) -> Answer:
        return self._http.request("GET", url, scopes=_pull(repository), headers=headers)

    def _check(self, answer: Answer, wanted: int, what: str, repository: str) -> None:
        check(answer, wanted, f"{self.host}: cannot {what}", f"{self.host}/{repository}")

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def open_registry(reference: Reference) -> RegistryClient:
    """Return the registry that a reference names, with Docker's stored credentials."""
    host = reference.registry or DEFAULT_REGISTRY
    return RegistryClient(host, credentials=stored_credentials(host))


def repository_of(reference: Reference) -> str:
    """Return a reference's repository as the registry calls it."""
    bare = (reference.registry or DEFAULT_REGISTRY) == DEFAULT_REGISTRY
    plain = "/" not in reference.repository
    return f"{DEFAULT_NAMESPACE}/{reference.repository}" if bare and plain else reference.repository


def push_scopes(repository: str, *sources: str) -> frozenset[str]:
    """Return what a token must allow for pushing, and mounting from other repositories."""
    others = (f"repository:{source}:pull" for source in sources)
    return frozenset((f"repository:{repository}:pull,push", *others))


def _pull(repository: str) -> frozenset[str]:
    return frozenset((f"repository:{repository}:pull",))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")
