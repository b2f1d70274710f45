"""One BuildKit build through the engine's own HTTP interface, without docker's command line."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO

import docker
import requests
from docker.utils import parse_repository_tag

from mfimage.errors import BuildError, EngineError
from mfimage.image.engine_connect import CONNECTION_ERRORS, alive, engine_gone
from mfimage.image.engine_events import BuildEvent, BuildTrace
from mfimage.image.engine_session import Session, hijack
from mfimage.image.plan.files import ContextFile
from mfimage.masking import Masker

Context = Sequence[ContextFile] | Iterable[bytes] | BinaryIO
"""The files of a context, or a tar of it."""

_DOING = "building the image"
_CHUNK = 1 << 20
_UPLOAD_TIMEOUT = 60.0
_WATCH_INTERVAL = 2.0
_LONGEST_STEP_NAME = 300
_HINTS = {
    "no space left on device": "free space on the engine: `docker system df`, then "
    "`docker system prune`",
    "exit code: 137": "the step was killed: the engine has too little memory for it",
    "pull access denied": "check the base image's name, and `docker login` to its registry",
    "401 unauthorized": "`docker login` to the base image's registry",
    "exec format error": "the engine cannot run this platform's programs: install emulation "
    "(`docker run --privileged --rm tonistiigi/binfmt --install all`), or build on that platform",
}


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What is asked of the engine; see `Engine.build`."""

    tags: Sequence[str] = ()
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    platform: str | None = None
    no_cache: bool = False
    cache_from: Sequence[str] = ()
    build_args: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    dockerfile: str = "Dockerfile"
    target: str | None = None

    @property
    def shared_key(self) -> str:
        """Return what builds have in common whose contexts are worth comparing."""
        return ",".join(parse_repository_tag(tag)[0] for tag in self.tags)

    def parameters(self) -> dict[str, str | list[str]]:
        """Return the query of ``POST /build``."""
        query: dict[str, str | list[str]] = {
            "version": "2",  # BuildKit, not the classic builder
            "dockerfile": self.dockerfile,
            "t": list(self.tags),
            "rm": "1",
            "buildargs": json.dumps(dict(self.build_args)),
            "labels": json.dumps(dict(self.labels)),
            "cachefrom": json.dumps(list(self.cache_from)),
        }
        if self.no_cache:
            query["nocache"] = "1"
        if self.platform:
            query["platform"] = self.platform
        if self.target:
            query["target"] = self.target
        return query


def run_build(
    api: docker.APIClient,
    context: Context,
    request: BuildRequest,
    on_event: Callable[[BuildEvent], None],
) -> str:
    """Build; return the image's ID.

    Raises
    ------
    BuildError
        If a step fails: with its name and the end of its log.
    EngineError
        If the engine goes away.
    """
    redact = Masker(request.secrets.values())
    trace = BuildTrace(redact)
    files, archive = _sort_out(context)
    query = request.parameters()
    if archive is None:
        query["remote"] = "client-session"
    with Session(
        api, secrets=request.secrets, files=files, shared_key=request.shared_key
    ) as session:
        query["session"] = session.id
        with _post(api, archive, query) as response:
            _check(response, redact)
            with _Watchdog(api, response) as watchdog:
                try:
                    return _follow(_messages(response, watchdog), trace, on_event)
                except _StreamError as error:
                    if not alive(api):  # a dying engine cancels its builds
                        raise engine_gone(_DOING) from None
                    raise _build_error(redact(str(error)), trace) from None


def _sort_out(context: Context) -> tuple[Sequence[ContextFile], Iterator[bytes] | None]:
    """Tell files, which the engine fetches over the session, from an archive to upload."""
    if isinstance(context, Sequence):
        return context, None
    return (), _chunks(context)


class _StreamError(Exception):
    """The build's own failure, as the engine words it."""


def _post(
    api: docker.APIClient, archive: Iterator[bytes] | None, query: Mapping[str, Any]
) -> requests.Response:
    untyped: Any = api
    try:
        response: requests.Response = untyped.post(
            untyped._url("/build"),
            params=query,
            data=archive,
            headers={"Content-Type": "application/x-tar"},
            stream=True,
            # Not for the answer as a whole, which may take hours: for each send, and for its head.
            timeout=_UPLOAD_TIMEOUT,
        )
    except CONNECTION_ERRORS as error:
        raise engine_gone(_DOING, error) from None
    return response


def _chunks(context: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    read = getattr(context, "read", None)
    if read is None:
        yield from context
        return
    while chunk := read(_CHUNK):
        yield chunk


def _check(response: requests.Response, redact: Masker) -> None:
    if response.ok:
        return
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code}"
    raise EngineError(f"{_DOING}: the Docker engine refused: {redact(message)}")


def _messages(response: requests.Response, watchdog: _Watchdog) -> Iterator[Mapping[str, Any]]:
    try:
        for line in response.iter_lines(chunk_size=None):
            if line:
                yield json.loads(line)
    except (*CONNECTION_ERRORS, ValueError) as error:  # ValueError: a line is cut short
        raise engine_gone(_DOING, error, hangs=watchdog.bit) from None


def _follow(
    messages: Iterable[Mapping[str, Any]],
    trace: BuildTrace,
    on_event: Callable[[BuildEvent], None],
) -> str:
    image = None
    for message in messages:
        if message.get("id") == "moby.buildkit.trace":
            for event in trace.feed(base64.b64decode(message["aux"])):
                on_event(event)
        elif message.get("id") == "moby.image.id":
            image = str(message["aux"]["ID"])
        elif "error" in message:
            raise _StreamError(message["error"])
    if image is None:
        raise engine_gone(_DOING)
    return image


def _build_error(message: str, trace: BuildTrace) -> BuildError:
    failure = trace.failure()
    text = message
    if failure is not None:
        step = failure.step[:_LONGEST_STEP_NAME]
        text = "\n".join([f"{step}: {failure.error}", *(f"  | {line}" for line in failure.log)])
    everything = f"{message}\n{text}".lower()
    hint = next((hint for sign, hint in _HINTS.items() if sign in everything), None)
    return BuildError(text, hint=hint)


class _Watchdog:
    """Cuts the build's connection when the engine no longer answers.

    An engine that dies closes its connections. One that hangs, or whose machine is gone, does not:
    the build would wait for ever.
    """

    def __init__(self, api: docker.APIClient, response: requests.Response) -> None:
        self.bit = False
        self._api = api
        self._socket = hijack(response)[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="mfimage-engine-watchdog", daemon=True
        )

    def __enter__(self) -> _Watchdog:
        self._socket.settimeout(None)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        silent = 0
        while not self._stop.wait(_WATCH_INTERVAL):
            silent = 0 if alive(self._api) else silent + 1
            # Twice: a busy engine may miss one.
            if silent == 2:
                self.bit = True
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                return
