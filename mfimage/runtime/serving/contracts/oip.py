"""The Open Inference Protocol v2, of KServe, Triton and MLServer.

``/openapi.json`` does not have it: the protocol is documented by its own specification, and the
tensors of a function by ``GET /v2/models/<name>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from mfimage import __version__
from mfimage.function import json as json_values
from mfimage.package.spec import CallableSpec
from mfimage.runtime.serving.problems import NOT_UNICODE, Problem, unavailable
from mfimage.runtime.serving.route import Expectation, HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Service
from mfimage.runtime.serving.services import Services
from mfimage.runtime.serving.tabular.rows import (
    Rows,
    alike,
    call_rows,
    is_json,
    load_object,
    media_type,
    payloads_of,
)  # fmt: skip
from mfimage.runtime.serving.tabular.tables import invalid, table_of
from mfimage.runtime.serving.tabular.tensors import (
    describe,
    in_binary,
    in_json,
    read_tensors,
    record_of,
    records_of,
    result_in_json,
    tensors_of,
)  # fmt: skip

_expected = partial(Expectation, contract="oip")
_LENGTH = b"inference-header-content-length"
_BINARY = "application/octet-stream"
_BINARY_HEADERS = (b"content-type", _BINARY.encode())
_DIGITS = re.compile(rb"[0-9]{1,18}")


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    names = tuple(served.specs)
    route = partial(Route, errors=error_response, while_loading=True)
    probe = partial(route, endpoint=None)
    return (
        route(name="v2", path="/v2", handler=_metadata, claims="/v2/"),
        probe(
            name="v2-live",
            path="/v2/health/live",
            handler=_live,
            expectations=(_expected(name="live"),),
        ),
        probe(
            name="v2-ready",
            path="/v2/health/ready",
            handler=_ready,
            expectations=(_expected(name="health"),),
        ),
        route(name="v2-models", path="/v2/models", handler=partial(_models, names)),
        *(each for name, spec in served.specs.items() for each in _model(name, spec)),
    )


def _model(name: str, spec: CallableSpec) -> tuple[Route, ...]:
    path = f"/v2/models/{name}"
    model = _Model(name, spec)
    route = partial(Route, function=name, errors=error_response)
    return (
        route(
            name="v2-model", path=path, handler=model.metadata, while_loading=True,
            expectations=(_expected(name="metadata", verify=model.verify),),
        ),
        route(
            name="v2-model-ready", path=f"{path}/ready", handler=model.ready, endpoint=None,
            while_loading=True,
        ),
        route(
            name="v2-infer", path=f"{path}/infer", handler=model.infer, method="POST",
            endpoint="batch", expectations=(
                *model.expectations(),
                _expected(name="malformed-body", status=400, body=b"{"),
            ),
        ),
    )  # fmt: skip


def error_response(problem: Problem, request_id: str) -> Response:
    """Return an error in the form of KServe's protocols."""
    places = "; ".join(map(str, problem.faults))
    status = 400 if problem.status == 422 else problem.status
    try:
        body = orjson.dumps({"error": places or problem.detail})
    except TypeError:  # surrogates in a client's text
        body = orjson.dumps({"error": NOT_UNICODE})
    return Response(body, [(b"content-type", b"application/json"), *problem.headers], status)


def models_body(names: Sequence[str]) -> bytes:
    """Return the list of models."""
    return orjson.dumps({"models": names})


async def _metadata(services: Services, request: HttpRequest) -> Response:
    return Response(
        orjson.dumps({
            "name": "mfimage", "version": __version__, "extensions": ["binary_tensor_data"]
        })
    )  # fmt: skip


async def _live(services: Services, request: HttpRequest) -> Response:
    return Response(b'{"live":true}')


async def _ready(services: Services, request: HttpRequest) -> Response | BaseException:
    reason = services.not_ready()
    return unavailable(reason) if reason else Response(b'{"ready":true}')


async def _models(names: Sequence[str], services: Services, request: HttpRequest) -> Response:
    return Response(models_body(names))


@dataclass(eq=False, slots=True)
class _Inference(Rows):
    """An inference request."""

    id: str | None = None
    outputs: dict[str, bool | None] | None = None  # as requested
    binary: bool = False  # whether outputs are binary unless they say otherwise


class _Model:
    """A function as a model: its handlers."""

    def __init__(self, name: str, spec: CallableSpec) -> None:
        self._name = name
        self._examples = spec.examples
        self._inputs = table_of(spec.input_schema, name="data")
        self._outputs = table_of(spec.output_schema, name="result")

    def expectations(self) -> Iterator[Expectation]:
        """Yield a request for all examples with the same members."""
        for indices in alike([each.input for each in self._examples]):
            tensors = tensors_of([self._examples[index].input for index in indices], self._inputs)
            body = json_values.dumps({"inputs": [*map(in_json, tensors)]}, root="examples")
            yield _expected(name="infer", body=body, examples=indices, results=self.results)

    def results(self, body: bytes) -> Sequence[Any]:
        """Return the results in a response."""
        given = json_values.loads(body)
        return records_of(read_tensors(given["outputs"]), self._outputs)

    def verify(self, served: Served, body: bytes) -> str:
        """Return what the metadata say of the inputs."""
        found = json_values.loads(body)
        if found.get("name") != self._name or found.get("inputs") != describe(self._inputs):
            raise ValueError(f"/v2/models/{self._name} does not describe {self._name}")
        return ", ".join(f"{each['name']} {each['datatype']}" for each in found["inputs"])

    async def metadata(self, service: Service, request: HttpRequest) -> Response:
        inputs, outputs = describe(self._inputs), describe(self._outputs)
        named = {"name": self._name, "platform": "mfimage"}
        return Response(orjson.dumps({**named, "inputs": inputs, "outputs": outputs}))

    async def ready(self, service: Service, request: HttpRequest) -> Response | BaseException:
        reason = service.not_ready()
        if reason:
            return unavailable(reason)
        return Response(orjson.dumps({"name": self._name, "ready": True}))

    async def infer(self, service: Service, request: HttpRequest) -> Response:
        size = _json_size(request)
        read = partial(self._read, size)
        return await call_rows(service, request, read, partial(self._write, request.id))

    def _read(self, size: int | None, body: bytes) -> _Inference:
        if size is not None and size > len(body):
            raise invalid("inference-header-content-length", f"the body has {len(body)} bytes")
        given = load_object(body if size is None else body[:size])
        inputs = given.get("inputs")
        record = record_of(inputs, self._inputs) if size is None else None
        if record:
            records: list[Any] = [record]
        else:
            tensors = read_tensors(inputs, b"" if size is None else body[size:])
            records = records_of(tensors, self._inputs)
        parameters = given.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise invalid("parameters", "expected an object")
        name = given.get("id")
        if name is not None and not isinstance(name, str):
            raise invalid("id", "expected text")
        payloads, outputs = payloads_of(records, "rows"), _outputs(given.get("outputs"))
        binary = parameters.get("binary_data_output") is True
        return _Inference(payloads, "rows", name, outputs, binary)

    def _write(self, request_id: str, rows: _Inference, results: Sequence[bytes]) -> Response:
        values = [*map(json_values.loads, results)]
        if len(values) == 1 and rows.outputs is None and not rows.binary:
            quick = result_in_json(values[0], self._outputs)
            if quick is not None:
                return Response(self._body(rows, quick, request_id))
        tensors = {each.name: each for each in tensors_of(values, self._outputs)}
        chosen = dict.fromkeys(tensors, rows.binary)
        if rows.outputs is not None:
            unknown = [name for name in rows.outputs if name not in tensors]
            if unknown:
                raise invalid("outputs", f"expected {', '.join(tensors)}; got {unknown[0]!r}")
            chosen = {
                name: rows.binary if binary is None else binary
                for name, binary in rows.outputs.items()
            }
        outputs, blocks = [], []
        for name, binary in chosen.items():
            if binary:
                head, data = in_binary(tensors[name])
                outputs.append(head)
                blocks.append(data)
            else:
                outputs.append(in_json(tensors[name]))
        body = self._body(rows, outputs, request_id)
        if not blocks:
            return Response(body)
        length = (_LENGTH, b"%d" % len(body))
        return Response(b"".join([body, *blocks]), [_BINARY_HEADERS, length])

    def _body(self, rows: _Inference, outputs: Sequence[Any], request_id: str) -> bytes:
        made = {"model_name": self._name, "id": rows.id or request_id, "outputs": outputs}
        try:
            return orjson.dumps(made)  # what was JSON has no NaN
        except TypeError:  # an integer of more than 64 bits, or surrogates in a client's text
            return json_values.dumps(made, root="outputs")


def _json_size(request: HttpRequest) -> int | None:
    """Return the size of the JSON before binary data; None if the body is JSON alone."""
    media, given = media_type(request.headers), request.headers.get(_LENGTH)
    if given is None and not is_json(media):
        raise Problem(415, f"expected application/json, or {_LENGTH.decode()}; got {media}")
    if given is not None and not _DIGITS.fullmatch(given):
        raise invalid(_LENGTH.decode(), f"expected a number, got {given[:20]!r}")
    return None if given is None else int(given)


def _outputs(given: Any) -> dict[str, bool | None] | None:
    """Return the requested outputs, and whether each is binary; None for all."""
    if not given:
        return None
    if not isinstance(given, list):
        raise invalid("outputs", "expected a list")
    found: dict[str, bool | None] = {}
    for index, each in enumerate(given):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise invalid(f"outputs[{index}]", "expected an output with a name")
        parameters = each.get("parameters") or {}
        unsupported = {"classification", "shared_memory_region"}
        if not isinstance(parameters, dict) or unsupported & parameters.keys():
            raise invalid(f"outputs[{index}].parameters", "only binary_data is supported")
        binary = parameters.get("binary_data")
        found[each["name"]] = binary if isinstance(binary, bool) else None
    return found
