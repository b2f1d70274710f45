"""Uploads one blob: mounted if possible, else in chunks and resumed after broken connections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import quote, urljoin

from mfimage.errors import RegistryError
from mfimage.image.registry.http import Dropped, Http, RegistryResponse, check, refusal

# Sent in one request each; a registry keeps what arrived of a chunk, or nothing.
CHUNK = 32 << 20
_BLOCK = 1 << 18
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class Upload:
    """An upload of a blob; ``on_progress`` is called with the number of bytes sent."""

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
        """Upload the blob; return False if it was mounted from one of ``sources`` instead."""
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
        """Begin an upload, or mount the blob; return whether it was mounted."""
        url = f"{self._repository}/blobs/uploads/"
        scopes = self._scopes
        if source:
            url += f"?mount={quote(self._digest)}&from={quote(source, safe='')}"
            scopes |= {f"repository:{source}:pull"}
        response = self._http.request("POST", url, scopes=scopes, headers=_EMPTY)
        if response.status == 201:
            return True
        if source and response.status in (401, 403, 404, 405):
            return False  # it may not be mounted from there
        self._location = self._follow(response, 202)
        return False

    def _send(self, file: BinaryIO, start: int) -> int:
        """Send a chunk; return how many bytes the registry has."""
        length = min(CHUNK, self._size - start)
        file.seek(start)
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(length),
            "content-range": f"{start}-{start + length - 1}",
        }
        response = self._http.once(
            "PATCH", self._location, scopes=self._scopes, headers=headers,
            body=self._blocks(file, start, length),
        )  # fmt: skip
        if response.status in (404, 416):
            raise Dropped(f"it lost the upload ({refusal(response)})")
        self._location = self._follow(response, 202)
        return _arrived(response, start + length)

    def _blocks(self, file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
        sent = 0
        while sent < length:
            block = file.read(min(_BLOCK, length - sent))
            if not block:
                raise RegistryError(f"{self._digest}: the file is shorter than {self._size} bytes")
            yield block
            sent += len(block)
            self._on_progress(start + sent)

    def _end(self) -> None:
        if self._there:
            return
        separator = "&" if "?" in self._location else "?"
        url = f"{self._location}{separator}digest={quote(self._digest)}"
        response = self._http.once("PUT", url, scopes=self._scopes, headers=_EMPTY)
        if response.status == 404:
            raise Dropped("it lost the upload")
        if response.status != 201:
            raise RegistryError(
                f"{self._http.host} refused {self._digest}: {refusal(response)}",
                hint="try again; if that does not help, ask the registry's administrator",
            )

    def _resume(self) -> int:
        """Return the offset to resume at: the bytes that arrived, or 0 for a new upload."""
        try:
            response = self._http.once("GET", self._location, scopes=self._scopes)
        except Dropped:
            return self._again()
        if response.status != 204 or not (
            found := _RANGE.fullmatch(response.headers.get("range", ""))
        ):
            return self._again()
        self._location = urljoin(self._location, response.headers.get("location", self._location))
        # "0-0" means nothing to some registries, and one byte to others: start anew.
        last = int(found[1])
        return last + 1 if 0 < last < self._size else self._again()

    def _again(self) -> int:
        url = f"{self._repository}/blobs/{self._digest}"
        # Perhaps only the last response was lost.
        if self._http.request("HEAD", url, scopes=self._scopes).status == 200:
            self._there = True
            return self._size
        self._begin(None)
        return 0

    def _follow(self, response: RegistryResponse, wanted: int) -> str:
        where = f"{self._http.host}/{self._repository}"
        check(response, wanted, f"{self._http.host}: cannot write to {self._repository}", where)
        location = response.headers.get("location")
        if not location:
            raise RegistryError(f"{self._http.host} gave no location to send {self._digest} to")
        return urljoin(self._location or self._http.base, location)


_EMPTY = {"content-length": "0"}


def _arrived(response: RegistryResponse, expected: int) -> int:
    found = _RANGE.fullmatch(response.headers.get("range", ""))
    return int(found[1]) + 1 if found else expected
