"""A process that runs one function for another process, in the function's own environment.

What to load comes over a socket, then records; results and exceptions go back, as JSON. See
:mod:`mfimage.runtime.worker.frames`; :mod:`mfimage.backends.process.worker` starts it and is
the other end.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from mfimage.package.spec import parse_spec
from mfimage.runtime.loading.loader import LiveFunction, load_function, read_verified
from mfimage.runtime.worker.exceptions import describe
from mfimage.runtime.worker.frames import (
    ARRAY,
    BATCH,
    FAILURE,
    MIXED,
    READY,
    RESULT,
    RESULTS,
    receive_frame,
    send_frame,
)


def main(control: int) -> None:
    """Load a function and run it until the caller hangs up.

    Parameters
    ----------
    control : int
        The socket, as an open file's number.
    """
    sock = _open(control)
    try:
        live = _start(sock)
        if live is not None:
            _serve(sock, live)
            live.close()
    except (EOFError, OSError):
        # The caller is gone; or this is a child that the function forked, which has no socket.
        if sock.fileno() < 0:
            os._exit(0)


def _open(control: int) -> socket.socket:
    sys.argv[1:] = []
    faulthandler.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what the function prints
    sock = socket.socket(fileno=control)
    # As long as a child of the function holds the socket, the caller waits for a dead worker.
    os.register_at_fork(after_in_child=sock.close)
    return sock


def _start(sock: socket.socket) -> LiveFunction | None:
    """Load what the first message says; tell the caller that it is done, or what went wrong."""
    config = json.loads(receive_frame(sock).payload)
    show_logs(config["log_level"])
    try:
        spec = parse_spec(config["spec"].encode(), where=config["reference"])
        read_blob = functools.partial(read_verified, Path(config["blobs"]))
        live = load_function(spec, code=Path(config["code"]), read_blob=read_blob, dedicated=True)
    except BaseException as error:  # noqa: BLE001  (the caller raises it)
        send_frame(sock, FAILURE, describe(error))
        return None
    send_frame(sock, READY, json.dumps({"data": live.data}).encode())
    return live


def show_logs(level: int) -> None:
    """Let logs that nobody handles reach stderr, as far as the caller wants to see any.

    No handler is added: the function may well call ``logging.basicConfig`` itself.
    """
    logging.getLogger().setLevel(level)
    last = logging.StreamHandler()
    last.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.lastResort = last


def _serve(sock: socket.socket, live: LiveFunction) -> None:
    while True:
        frame = receive_frame(sock)
        began = perf_counter_ns()
        kind, payload = answer(live, frame.kind, frame.payload)
        _flush()
        rest = send_frame(sock, kind, payload, (perf_counter_ns() - began) // 1000)
        if rest:
            sock.sendall(rest)
        del frame, payload, rest  # big ones are not kept until the next


def _flush() -> None:
    # The function may have closed or replaced it, or nobody reads it.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()


def answer(live: LiveFunction, kind: int, payload: bytes) -> tuple[int, bytes]:
    """Return the answer to a ``CALL`` or a ``BATCH``: a kind of frame, and its payload."""
    return _batch(live, payload) if kind == BATCH else _call(live, payload)


def _call(live: LiveFunction, payload: bytes) -> tuple[int, bytes]:
    try:
        return RESULT, live.dump(live.invoke(live.accept_json(payload)))
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is the answer)
        return FAILURE, describe(error)


def _batch(live: LiveFunction, payload: bytes) -> tuple[int, bytes]:
    failed: dict[int, bytes] = {}
    if live.batch:
        answers = _many(live, payload, failed)
    else:
        answers = _each(live, payload.split(b"\n"), failed)
    if isinstance(answers, bytes):
        return ARRAY, answers
    if not failed:
        return RESULTS, b"\n".join(answers)
    lines = (
        b"-" + failed[index] if index in failed else b"+" + answer
        for index, answer in enumerate(answers)
    )
    return MIXED, b"\n".join(lines)


def _each(live: LiveFunction, records: list[bytes], failed: dict[int, bytes]) -> list[bytes]:
    accept, invoke, dump = live.accept_json, live.invoke, live.dump
    answers: list[bytes] = []
    for record in records:
        try:
            answers.append(dump(invoke(accept(record))))
        except BaseException as error:  # noqa: BLE001  (as above)
            failed[len(answers)] = describe(error)
            answers.append(b"")
    return answers


def _many(live: LiveFunction, payload: bytes, failed: dict[int, bytes]) -> list[bytes] | bytes:
    """Return the results one by one, or as one array when nothing is amiss."""
    records = live.many.accept(payload)
    if records is not None:
        good: Sequence[int] = range(len(records))
        places: list[Any] = records
    else:
        places = [_try(live.accept_json, record) for record in payload.split(b"\n")]
        good = [index for index, place in enumerate(places) if not isinstance(place, BaseException)]
        records = [places[index] for index in good]
    outputs: Any = _try(live.invoke_many, records) if good else []
    if isinstance(outputs, BaseException):
        outputs = [outputs] * len(good)
    elif len(good) == len(places) and not any(isinstance(each, Exception) for each in outputs):
        array = live.many.dump(outputs)
        if array is not None:
            return array
    for index, output in zip(good, outputs, strict=True):
        places[index] = output if isinstance(output, BaseException) else _try(live.dump, output)
    for index, place in enumerate(places):
        if isinstance(place, BaseException):
            failed[index] = describe(place)
            places[index] = b""
    return places


def _try(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        return call(value)
    except BaseException as error:  # noqa: BLE001  (as above)
        return error
