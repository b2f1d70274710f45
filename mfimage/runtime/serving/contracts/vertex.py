"""Vertex AI's routes, where its variables say: ``instances`` and ``predictions``.

``/openapi.json`` does not have them: they are there on Vertex AI only.
"""

from __future__ import annotations

from mfimage.runtime.serving.contracts.invocations import no_default, ping
from mfimage.runtime.serving.contracts.kserve import predict
from mfimage.runtime.serving.route import Handler, HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.services import Services


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes; none where Vertex AI did not choose their paths."""
    found = []
    if served.health_route:
        path = served.health_route
        found.append(
            Route(name="vertex-health", path=path, handler=ping, endpoint=None, while_loading=True)
        )
    if served.predict_route:
        handler: Handler = _which if served.default is None else predict
        found.append(
            Route(
                name="vertex-predict", path=served.predict_route, handler=handler,
                function=served.default, method="POST", endpoint="batch",
            )
        )  # fmt: skip
    return tuple(found)


async def _which(services: Services, request: HttpRequest) -> Response:
    raise no_default(services.served)
