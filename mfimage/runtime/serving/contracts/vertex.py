"""Vertex AI's routes, where its variables say: ``instances`` and ``predictions``.

``/openapi.json`` does not have them: they are there on Vertex AI only.
"""

from __future__ import annotations

from mfimage.runtime.serving.contracts.invocations import no_default, ping
from mfimage.runtime.serving.contracts.kserve import expectations, predict
from mfimage.runtime.serving.route import Expectation, Handler, HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.services import Services

CONTRACT = "vertex"


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes; none where Vertex AI did not choose their paths."""
    found = []
    if path := served.health_route:
        health = Expectation(name="health", contract=CONTRACT)
        found.append(
            Route(
                name="vertex-health", path=path, handler=ping, endpoint=None, while_loading=True,
                expectations=(health,),
            )
        )  # fmt: skip
    if path := served.predict_route:
        handler: Handler = _which if served.default is None else predict
        examples = expectations(served.specs[served.default], CONTRACT) if served.default else ()
        found.append(
            Route(
                name="vertex-predict", path=path, handler=handler, function=served.default,
                method="POST", endpoint="batch", expectations=tuple(examples),
            )
        )  # fmt: skip
    return tuple(found)


async def _which(services: Services, request: HttpRequest) -> Response:
    raise no_default(services.served)
