"""A process that runs one function for another process, in the function's own environment.

It receives what to load, then records, and sends results and exceptions back, as frames of JSON
over a socket. :mod:`mfimage.backends.process.worker` starts it and is the other end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from mfimage.package.spec import parse_spec
from mfimage.runtime.calls.queue import call_many
from mfimage.runtime.loading.loader import LiveFunction, load_function, read_verified
from mfimage.runtime.worker import frames
from mfimage.runtime.worker.exceptions import describe


def main(control: int) -> None:
    """Load a function and run it until the caller closes the socket, whose descriptor this is."""
    sock = _open(control)
    try:
        live = _start(sock)
        if live is not None:
            _serve(sock, live)
            live.close()
    except (EOFError, OSError):
        # The caller is gone; or this is a child forked by the function, without the socket.
        if sock.fileno() < 0:
            os._exit(0)


def _open(control: int) -> socket.socket:
    sys.argv[1:] = []
    faulthandler.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what the function prints
    sock = socket.socket(fileno=control)
    # While a child of the function holds the socket, the caller would wait for a dead worker.
    os.register_at_fork(after_in_child=sock.close)
    return sock


def _start(sock: socket.socket) -> LiveFunction | None:
    """Load the function that the first message describes; send ``READY`` or the exception."""
    config = json.loads(frames.receive_frame(sock).payload)
    show_logs(config["log_level"])
    try:
        spec = parse_spec(config["spec"].encode(), where=config["reference"])
        read_blob = functools.partial(read_verified, Path(config["blobs"]))
        live = load_function(spec, code=Path(config["code"]), read_blob=read_blob, dedicated=True)
    except BaseException as error:  # noqa: BLE001  (the caller raises it)
        frames.send_frame(sock, frames.FAILURE, describe(error))
        return None
    frames.send_frame(sock, frames.READY, json.dumps({"data": live.data}).encode())
    return live


def show_logs(level: int) -> None:
    """Write logs without a handler to stderr, from the caller's level up."""
    # No handler is added, since the function may call ``logging.basicConfig`` itself.
    logging.getLogger().setLevel(level)
    last = logging.StreamHandler()
    last.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.lastResort = last


def _serve(sock: socket.socket, live: LiveFunction) -> None:
    while True:
        frame = frames.receive_frame(sock)
        began = perf_counter_ns()
        kind, payload = reply(live, frame.kind, frame.payload)
        # The function may have closed or replaced it, or its reader is gone.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
        rest = frames.send_frame(sock, kind, payload, (perf_counter_ns() - began) // 1000)
        if rest:
            sock.sendall(rest)
        del frame, payload, rest  # frees large ones before the next


def reply(live: LiveFunction, kind: int, payload: bytes) -> tuple[int, bytes]:
    """Return the reply to a ``CALL`` or a ``BATCH``: a kind of frame, and its payload."""
    if kind == frames.BATCH:
        return _batch(live, payload)
    try:
        return frames.RESULT, live.dump(live.invoke(live.accept_json(payload)))
    except BaseException as error:  # noqa: BLE001  (the caller raises it)
        return frames.FAILURE, describe(error)


def _batch(live: LiveFunction, payload: bytes) -> tuple[int, bytes]:
    results = _together(live, payload) if live.batch else _one_by_one(live, payload)
    if isinstance(results, bytes):
        return frames.ARRAY, results
    if not any(isinstance(result, BaseException) for result in results):
        return frames.RESULTS, b"\n".join(results)
    lines = (
        b"-" + describe(result) if isinstance(result, BaseException) else b"+" + result
        for result in results
    )
    return frames.MIXED, b"\n".join(lines)


def _one_by_one(live: LiveFunction, payload: bytes) -> list[Any]:
    accept, invoke, dump = live.accept_json, live.invoke, live.dump
    results: list[Any] = []
    for record in payload.split(b"\n"):
        try:
            results.append(dump(invoke(accept(record))))
        except BaseException as error:  # noqa: BLE001  (the caller raises it)
            results.append(error)
    return results


def _together(live: LiveFunction, payload: bytes) -> list[Any] | bytes:
    """Return results, and exceptions in their places; without any, one array if possible."""
    records = live.many.accept(payload)
    if records is None:
        return [*call_many(live, payload.split(b"\n"))]
    outputs: Any = _try(live.invoke_many, records)
    if isinstance(outputs, BaseException):
        return [outputs] * len(records)
    if not any(isinstance(output, BaseException) for output in outputs):
        array = live.many.dump(outputs)
        if array is not None:
            return array
    return [each if isinstance(each, BaseException) else _try(live.dump, each) for each in outputs]


def _try(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        return call(value)
    except BaseException as error:  # noqa: BLE001  (the caller raises it)
        return error
