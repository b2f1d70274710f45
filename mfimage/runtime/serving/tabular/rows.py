"""Requests of many records with one response for all: what the contracts of platforms share."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic_core import from_json

from mfimage.errors import Fault, InputError
from mfimage.function import json as json_values
from mfimage.runtime.calls.queue import Outcome
from mfimage.runtime.serving.body import read_body, whole_body
from mfimage.runtime.serving.content import JSON
from mfimage.runtime.serving.problems import Problem
from mfimage.runtime.serving.route import HttpRequest, Response
from mfimage.runtime.serving.service import Service
from mfimage.runtime.serving.tabular.tables import invalid

# A body larger than this is converted in a thread.
LARGE = 64 * 1024
# Of all the places that do not fit; a wrong column has as many as there are rows.
_FAULTS = 20
_JSON = JSON.encode()
_JSON_TYPES = re.compile(r"application/(json|[\w.+-]+\+json|x-www-form-urlencoded)|", re.ASCII)
_ROOT = re.compile(r"[^.\[]*")


@dataclass(eq=False, slots=True)  # by position: keywords take longer
class Rows:
    """The records of a request, as JSON bytes; ``path`` is where they were in its body."""

    payloads: Sequence[bytes]
    path: str = "rows"


_Rows = TypeVar("_Rows", bound=Rows)


def media_type(headers: Mapping[bytes, bytes]) -> str:
    """Return a request's media type without parameters; a 415 if its body is compressed."""
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        detail = f"expected a body that is not compressed, got {encoding.decode('latin-1')}"
        raise Problem(415, detail, headers=[(b"accept-encoding", b"identity")])
    given = headers.get(b"content-type", b"")
    if given == _JSON:
        return JSON
    return given.decode("latin-1").partition(";")[0].strip().lower()


def is_json(media: str) -> bool:
    """Return whether a media type is JSON's, or none was given."""
    return media is JSON or _JSON_TYPES.fullmatch(media) is not None


def expect_json(headers: Mapping[bytes, bytes]) -> None:
    """Raise a 415 if a body is not JSON."""
    if not is_json(media := media_type(headers)):
        raise Problem(415, f"expected application/json, got {media}")


def load(body: bytes, *, path: str = "body", infinite: bool = False) -> Any:
    """Return the value of a JSON body; NaN and infinities only if they are allowed."""
    try:
        return from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=infinite)
    except ValueError as error:
        raise invalid(path, f"not JSON: {error}") from None


def load_object(body: bytes) -> dict[str, Any]:
    """Return the object in a JSON body."""
    value = load(body)
    if not isinstance(value, dict):
        raise invalid("body", "expected an object")
    return value


def payloads_of(records: Sequence[Any], path: str) -> list[bytes]:
    """Return records, which were JSON, as JSON bytes."""
    payloads = []
    for index, record in enumerate(records):
        try:
            data = orjson.dumps(record)
        except TypeError:  # an integer of more than 64 bits
            data = b"null"
        if b"null" in data:  # or NaN
            data = json_values.dumps(record, root=f"{path}[{index}]", error=InputError)
        payloads.append(data)
    return payloads


def alike(records: Sequence[Any]) -> Sequence[Sequence[int]]:
    """Return the indices of records in groups that have the same members."""
    groups: dict[Any, list[int]] = {}
    for index, record in enumerate(records):
        key = tuple(record) if isinstance(record, dict) else None
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def predictions_of(body: bytes) -> Sequence[Any]:
    """Return the results in a response with ``predictions``."""
    found: Sequence[Any] = json_values.loads(body)["predictions"]
    return found


async def call_rows(
    service: Service,
    request: HttpRequest,
    read: Callable[[bytes], _Rows],
    write: Callable[[_Rows, Sequence[bytes]], Response],
) -> Response:
    """Return what ``write`` makes of the rows that ``read`` finds in the body, and their results.

    Raises what is wrong with the rows, else the first reason why one has no result. What is large
    is read and written in a thread.
    """
    calls = service.admit()
    body = whole_body(request, service)
    if body is None:
        rows = await calls.arrive(request.started, _read(service, request, read))
    elif len(body) > LARGE:
        rows = await calls.arrive(request.started, _in_thread(service, read, body))
    else:
        rows = read(body)
    payloads = rows.payloads
    outcomes: Sequence[Outcome]
    if len(payloads) == 1:
        outcome = await calls.run(payloads[0], request.receive, request.started)
        if isinstance(outcome, bytes) and len(outcome) <= LARGE:
            return write(rows, [outcome])
        outcomes = [outcome]
    else:
        outcomes = await calls.run_many(
            payloads, request.receive, request.started, at_once=service.settings.max_batch
        )
    results = [each for each in outcomes if isinstance(each, bytes)]
    if len(results) < len(outcomes):
        raise _failure(outcomes, rows.path)
    if sum(map(len, results)) > LARGE:
        return await service.loop.run_in_executor(None, write, rows, results)
    return write(rows, results)


async def _read(service: Service, request: HttpRequest, read: Callable[[bytes], _Rows]) -> _Rows:
    body = await read_body(request, service)
    return await _in_thread(service, read, body) if len(body) > LARGE else read(body)


async def _in_thread(service: Service, read: Callable[[bytes], _Rows], body: bytes) -> _Rows:
    return await service.loop.run_in_executor(None, read, body)


def _failure(outcomes: Sequence[Outcome], path: str) -> BaseException:
    refused = [
        Fault(path=f"{path}[{index}]{_ROOT.sub('', fault.path, count=1)}", message=fault.message)
        for index, each in enumerate(outcomes)
        if isinstance(each, InputError)
        for fault in each.faults
    ]
    if refused:
        return InputError(refused[:_FAULTS])
    return next(each for each in outcomes if isinstance(each, BaseException))
