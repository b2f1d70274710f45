"""KServe's protocol v1: ``instances`` and ``predictions``.

``/openapi.json`` does not have it: an instance is a record, and KServe documents the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import orjson

from mfimage.function import json as json_values
from mfimage.package.spec import CallableSpec
from mfimage.runtime.serving.contracts.oip import error_response, models_body
from mfimage.runtime.serving.problems import unavailable
from mfimage.runtime.serving.route import Expectation, HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Service
from mfimage.runtime.serving.services import Services
from mfimage.runtime.serving.tabular.rows import (
    Rows,
    call_rows,
    expect_json,
    load_object,
    payloads_of,
    predictions_of,
)  # fmt: skip
from mfimage.runtime.serving.tabular.tables import instances

_expected = partial(Expectation, contract="kserve")


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes."""
    route = partial(Route, errors=error_response)
    models = route(
        name="v1-models", path="/v1/models", handler=_models, while_loading=True,
        claims="/v1/models/",
    )  # fmt: skip
    found = [models]
    for name, spec in served.specs.items():
        path = f"/v1/models/{name}"
        found += [
            route(
                name="v1-model", path=path, handler=_ready, function=name, endpoint=None,
                while_loading=True, expectations=(_expected(name="model-ready"),),
            ),
            route(
                name="v1-predict", path=f"{path}:predict", handler=predict, function=name,
                method="POST", endpoint="batch", expectations=(
                    *expectations(spec, "kserve"),
                    _expected(name="malformed-body", status=400, body=b"{"),
                ),
            ),
        ]  # fmt: skip
    return tuple(found)


def expectations(spec: CallableSpec, contract: str) -> Iterator[Expectation]:
    """Yield a request with all examples as ``instances``."""
    if spec.examples:
        inputs = [each.input for each in spec.examples]
        body = json_values.dumps({"instances": inputs}, root="examples")
        yield Expectation(
            name="predict", contract=contract, body=body, examples=range(len(inputs)),
            results=predictions_of,
        )  # fmt: skip


async def _models(services: Services, request: HttpRequest) -> Response:
    return Response(models_body(list(services.by_name)))


async def _ready(service: Service, request: HttpRequest) -> Response | BaseException:
    reason = service.not_ready()
    if reason:
        return unavailable(reason)
    return Response(orjson.dumps({"name": service.name, "ready": True}))


async def predict(service: Service, request: HttpRequest) -> Response:
    """Return ``predictions`` for ``instances``."""
    expect_json(request.headers)
    return await call_rows(service, request, _read, _write)


def _write(_: Rows, results: Sequence[bytes]) -> Response:
    return Response(b'{"predictions":[%b]}' % b",".join(results))


def _read(body: bytes) -> Rows:
    path = "instances"
    return Rows(payloads_of(instances(load_object(body).get(path)), path), path)
