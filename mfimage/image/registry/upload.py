"""Sending one blob: mounted if it can be, in chunks, and on from where a connection broke."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import quote, urljoin

from mfimage.errors import RegistryError
from mfimage.image.registry.http import Answer, Dropped, Http, check, told

# One request each; a registry keeps what has arrived of a chunk, or nothing of it.
CHUNK = 32 << 20
_BLOCK = 1 << 18
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class Upload:
    """A blob on its way to a repository.

    Parameters
    ----------
    http : Http
        The registry.
    repository, digest : str
        Where to, and what.
    size : int
        In bytes.
    open : callable
        Opens the content.
    on_progress : callable
        Told how many bytes are there so far.
    """

    def __init__(
        self,
        http: Http,
        *,
        repository: str,
        digest: str,
        size: int,
        open: Callable[[], BinaryIO],
        on_progress: Callable[[int], None],
    ) -> None:
        self._http = http
        self._repository = repository
        self._digest = digest
        self._size = size
        self._open = open
        self._on_progress = on_progress
        self._scopes: frozenset[str] = frozenset((f"repository:{repository}:pull,push",))
        self._location = ""
        self._there = False

    def run(self, sources: tuple[str, ...]) -> bool:
        """Send it; return False if it could be mounted instead.

        Raises
        ------
        RegistryError
            When the registry refuses it, or stays unreachable.
        """
        for source in sources:
            if self._begin(source):
                self._on_progress(self._size)
                return False
        if not self._location and self._begin(None):
            return False
        offset, attempt = 0, 1
        with self._open() as file:
            while True:
                try:
                    while offset < self._size:
                        offset = self._send(file, offset)
                        attempt = 1
                        self._on_progress(offset)
                    self._end()
                    return True
                except Dropped as error:
                    self._http.pause(attempt, error)
                    attempt += 1
                    offset = self._resume()

    def _begin(self, source: str | None) -> bool:
        """Open an upload, or have the blob mounted; tell which."""
        url = f"{self._repository}/blobs/uploads/"
        scopes = self._scopes
        if source:
            url += f"?mount={quote(self._digest)}&from={quote(source, safe='')}"
            scopes |= {f"repository:{source}:pull"}
        answer = self._http.request("POST", url, scopes=scopes, headers=_EMPTY)
        if answer.status == 201:
            return True
        if source and answer.status in (401, 403, 404, 405):
            return False  # it may not be mounted from there
        self._location = self._follow(answer, 202)
        return False

    def _send(self, file: BinaryIO, start: int) -> int:
        """Send a chunk; return how much is there."""
        length = min(CHUNK, self._size - start)
        file.seek(start)
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(length),
            "content-range": f"{start}-{start + length - 1}",
        }
        answer = self._http.once(
            "PATCH", self._location, scopes=self._scopes, headers=headers,
            body=self._blocks(file, start, length),
        )  # fmt: skip
        if answer.status in (404, 416):
            raise Dropped(f"it lost track of the upload ({told(answer)})")
        self._location = self._follow(answer, 202)
        return _arrived(answer, start + length)

    def _blocks(self, file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
        sent = 0
        while sent < length:
            block = file.read(min(_BLOCK, length - sent))
            if not block:
                raise RegistryError(f"{self._digest}: its file is shorter than {self._size} bytes")
            yield block
            sent += len(block)
            self._on_progress(start + sent)

    def _end(self) -> None:
        if self._there:
            return
        separator = "&" if "?" in self._location else "?"
        url = f"{self._location}{separator}digest={quote(self._digest)}"
        answer = self._http.once("PUT", url, scopes=self._scopes, headers=_EMPTY)
        if answer.status == 404:
            raise Dropped("it lost the upload")
        if answer.status != 201:
            raise RegistryError(
                f"{self._http.host} did not take {self._digest}: {told(answer)}",
                hint="try again; if that does not help, ask whoever runs the registry",
            )

    def _resume(self) -> int:
        """Return from where to go on: what arrived, or 0 of an upload begun anew."""
        try:
            answer = self._http.once("GET", self._location, scopes=self._scopes)
        except Dropped:
            return self._again()
        if answer.status != 204 or not (found := _RANGE.fullmatch(answer.headers.get("range", ""))):
            return self._again()
        self._location = urljoin(self._location, answer.headers.get("location", self._location))
        # "0-0" is nothing to some registries, one byte to others: from the start it is right.
        last = int(found[1])
        return last + 1 if 0 < last < self._size else self._again()

    def _again(self) -> int:
        url = f"{self._repository}/blobs/{self._digest}"
        # Maybe only the last answer was lost.
        if self._http.request("HEAD", url, scopes=self._scopes).status == 200:
            self._there = True
            return self._size
        self._begin(None)
        return 0

    def _follow(self, answer: Answer, wanted: int) -> str:
        where = f"{self._http.host}/{self._repository}"
        check(answer, wanted, f"{self._http.host}: cannot write to {self._repository}", where)
        location = answer.headers.get("location")
        if not location:
            raise RegistryError(f"{self._http.host} does not say where to send {self._digest}")
        return urljoin(self._location or self._http.base, location)


_EMPTY = {"content-length": "0"}


def _arrived(answer: Answer, expected: int) -> int:
    """Return how many bytes a registry has, as it says itself."""
    found = _RANGE.fullmatch(answer.headers.get("range", ""))
    return int(found[1]) + 1 if found else expected
