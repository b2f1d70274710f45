"""``/ping`` and ``/invocations``, which SageMaker and the clients of MLflow share.

A JSON object with one of MLflow's members is MLflow's, unless the function's records have such a
member. All else is SageMaker's: a record, a list of records, JSON lines or CSV.
``/openapi.json`` has neither: the platforms document them, and a record is documented already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import orjson

from mfimage.errors import shorten
from mfimage.function import json as json_values
from mfimage.package.spec import CallableSpec
from mfimage.runtime.serving.content import JSON, media_ranges
from mfimage.runtime.serving.problems import MEDIA_TYPE, NOT_UNICODE, Problem, unavailable
from mfimage.runtime.serving.route import Expectation, FunctionHandler, HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Service
from mfimage.runtime.serving.services import Services
from mfimage.runtime.serving.tabular.rows import (
    Rows,
    alike,
    call_rows,
    is_json,
    load,
    media_type,
    payloads_of,
    predictions_of,
)  # fmt: skip
from mfimage.runtime.serving.tabular.tables import (
    FRAMES,
    Table,
    invalid,
    read_csv,
    table_of,
    write_csv,
)  # fmt: skip

SAGEMAKER, MLFLOW = "sagemaker", "mlflow"
CSV = "text/csv"
LINES = "application/jsonlines"
_LINES = (LINES, "application/x-jsonlines", "application/jsonl", "application/x-ndjson")
_PARAMETERS = "params"  # of MLflow's models; functions have none, so it is ignored, as MLflow does
_HEADER = re.compile(rb";\s*header\s*=\s*\"?(present|absent)", re.IGNORECASE)
_CUSTOM = b"x-amzn-sagemaker-custom-attributes"
_FUNCTION = re.compile(r"(?:^|[,;\s])function=([^,;\s]+)")
_CODES = {400: "BAD_REQUEST", 404: "RESOURCE_DOES_NOT_EXIST", 503: "TEMPORARILY_UNAVAILABLE"}


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    invocations = _Invocations(served.specs)
    return (
        Route(
            name="ping", path="/ping", handler=ping, endpoint=None, while_loading=True,
            expectations=(
                Expectation(name="ping", contract=SAGEMAKER),
                Expectation(name="ping", contract=MLFLOW),
            ),
        ),
        Route(
            name="invocations", path="/invocations", handler=invocations.invoke, method="POST",
            endpoint="batch", errors=error_response, while_loading=True, chooses=True,
            expectations=tuple(_expectations(served)),
        ),
    )  # fmt: skip


def _expectations(served: Served) -> Iterator[Expectation]:
    for contract in (SAGEMAKER, MLFLOW):
        malformed = partial(Expectation, name="malformed-body", media_type=MEDIA_TYPE, body=b"{")
        yield malformed(contract=contract, status=400)
    examples = served.specs[served.default].examples if served.default else ()
    if not examples:
        return
    inputs = [each.input for each in examples]
    lines = payloads_of(inputs, "examples")
    yield Expectation(
        name="record", contract=SAGEMAKER, body=lines[0], examples=(0,),
        results=lambda body: [json_values.loads(body)],
    )  # fmt: skip
    yield Expectation(
        name="lines", contract=SAGEMAKER, body=b"\n".join(lines), content_type=LINES,
        media_type=LINES, examples=range(len(lines)),
        results=lambda body: [json_values.loads(line) for line in body.splitlines()],
    )  # fmt: skip
    for indices in alike(inputs):
        records = [inputs[index] for index in indices]
        frame: dict[str, Any] = {"inputs": records}
        if isinstance(records[0], dict):
            rows = [list(record.values()) for record in records]
            frame = {"dataframe_split": {"columns": list(records[0]), "data": rows}}
        yield Expectation(
            name="frame", contract=MLFLOW, body=json_values.dumps(frame, root="examples"),
            examples=indices, results=predictions_of,
        )  # fmt: skip


async def ping(services: Services, request: HttpRequest) -> Response | BaseException:
    """Answer as ``/readyz`` does."""
    reason = services.not_ready()
    return unavailable(reason) if reason else Response(b"{}")


def error_response(problem: Problem, request_id: str) -> Response:
    """Return a problem document that has the members of MLflow's errors, too."""
    status = 400 if problem.status == 422 else problem.status
    code = _CODES.get(status, "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST")
    problem = Problem(status, problem.detail, faults=problem.faults, headers=problem.headers)
    document = {**problem.document(request_id), "error_code": code, "message": problem.detail}
    try:
        body = orjson.dumps(document)
    except TypeError:  # surrogates in a client's text
        return error_response(Problem(status, NOT_UNICODE), request_id)
    return Response(body, [(b"content-type", MEDIA_TYPE.encode()), *problem.headers], status)


@dataclass(eq=False, slots=True)
class _Invocation(Rows):
    """The records of a request, and the form of its response."""

    form: Literal["record", "list", "predictions", "lines"] = "record"


class _Invocations:
    """The handler of ``/invocations``."""

    def __init__(self, specs: Mapping[str, CallableSpec]) -> None:
        self._inputs = {
            name: table_of(spec.input_schema, name="data") for name, spec in specs.items()
        }
        self._outputs = {
            name: table_of(spec.output_schema, name="result") for name, spec in specs.items()
        }

    async def invoke(self, services: Services, request: HttpRequest) -> Response | BaseException:
        """Call the function that a request names, which may have to be loaded first."""
        service = _chosen(services, request.headers)
        if service.wrap is not None:
            handle = cast("FunctionHandler", service.wrap(self._call))
            return await handle(service, request)
        if service.loading:
            raise unavailable(service.loading)
        return await self._call(service, request)

    async def _call(self, service: Service, request: HttpRequest) -> Response:
        media = media_type(request.headers)
        table = self._inputs[service.name]
        read: Callable[[bytes], _Invocation]
        if is_json(media):
            read = partial(_read_json, table)
        elif media in _LINES:
            read = _read_lines
        elif media == CSV and table.flat:
            given = _HEADER.search(request.headers[b"content-type"])
            header = None if given is None else given[1].lower() == b"present"
            read = partial(_read_table, table, header)
        else:
            supported = [JSON, LINES, *([CSV] if table.flat else [])]
            detail = f"expected {' or '.join(supported)}, got {media}"
            if media == CSV:
                detail += f": records of {service.name} are not rows of numbers and text"
            raise Problem(415, detail)
        accept = request.headers.get(b"accept", b"").decode("latin-1")
        written = _accepted(accept, LINES if media in _LINES else JSON)
        write = partial(_write, self._outputs[service.name], written)
        return await call_rows(service, request, read, write)


def _chosen(services: Services, headers: Mapping[bytes, bytes]) -> Service:
    """Return the function that SageMaker's custom attributes name, else the default."""
    given = headers.get(_CUSTOM)
    found = _FUNCTION.search(given.decode("latin-1")) if given is not None else None
    name = found[1] if found else None
    service = services.by_name.get(name) if name else services.default
    if service is not None:
        return service
    if name:
        raise Problem(
            404, f"there is no function {shorten(repr(name))}, but {services.served.shown}"
        )
    raise no_default(services.served)


def no_default(served: Served) -> Problem:
    """Return the error for a request that names none of several functions."""
    return Problem(404, f"MFIMAGE_DEFAULT_FUNCTION is not set, and there are {served.shown}")


# Reading


def _read_json(table: Table, body: bytes) -> _Invocation:
    infinite = b"NaN" in body
    value = load(body, infinite=infinite)
    if isinstance(value, dict) and (member := _frame(value, table)) is not None:
        found = _without_nan(value[member]) if infinite else value[member]
        records = FRAMES[member](found)
        return _Invocation(payloads_of(records, member), member, "predictions")
    whole = table.whole
    if isinstance(value, list) and (whole is None or (not whole.rank and whole.kind != "any")):
        return _Invocation(payloads_of(value, "records"), "records", "list")
    return _Invocation([body], "records", "record")


def _frame(value: Mapping[str, Any], table: Table) -> str | None:
    """Return the member by which an object is MLflow's."""
    members = [name for name in value if name in FRAMES and name not in table.columns]
    if not members or value.keys() - {*members, _PARAMETERS}:
        return None
    if len(members) > 1:
        raise invalid("body", f"expected one of {', '.join(FRAMES)}; got {', '.join(members)}")
    return members[0]


def _without_nan(value: Any) -> Any:
    """Return a value with None for NaN, which pandas has where a value is missing."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return value


def _read_lines(body: bytes) -> _Invocation:
    lines = [line for line in body.splitlines() if line.strip()]
    return _Invocation(lines, "lines", "lines")


def _read_table(table: Table, header: bool | None, body: bytes) -> _Invocation:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise invalid("body", f"not UTF-8: {error}") from None
    records = read_csv(text, table, header=header)
    return _Invocation(payloads_of(records, "rows"), "rows", "predictions")


# Writing


def _accepted(accept: str, default: str) -> str:
    """Return the media type of the response; of equal weights the default's wins, then JSON."""
    weights = dict(sorted(media_ranges(accept), key=lambda item: item[1])) if accept else {}
    if not weights:
        return default

    def weight(name: str) -> float:
        ranges = (name, f"{name.partition('/')[0]}/*", "*/*")
        return next((weights[each] for each in ranges if each in weights), 0.0)

    best = max((default, JSON, *_LINES, CSV), key=weight)
    if not weight(best):
        detail = f"can answer in {JSON} or {LINES} or {CSV}; the request accepts {accept}"
        raise Problem(406, detail)
    return best


def _write(table: Table, media: str, rows: _Invocation, results: Sequence[bytes]) -> Response:
    if media == CSV:
        text = write_csv([json_values.loads(each) for each in results], table)
        if text is None:
            raise Problem(406, f"the results are not rows of numbers and text, as {CSV} needs")
        body = text.encode()
    elif media in _LINES:
        body = b"".join(each + b"\n" for each in results)
    elif rows.form == "record":
        body = results[0]
    elif rows.form == "predictions":
        body = b'{"predictions":[%b]}' % b",".join(results)
    else:
        body = b"[%b]" % b",".join(results)
    return Response(body, [(b"content-type", media.encode())])
