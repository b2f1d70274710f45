"""The HTTP contract: one table of routes.

The app (``app.py``), its documentation (``openapi.py``), Ray Serve (``runtime/ray/serve.py``) and
``mfimage test`` (``image/checks/contract.py``) are made from it. An endpoint, or the contract of
another platform, is a module in ``contracts/`` and its line in ``CONTRACTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mfimage.runtime.serving.contracts import (
    documentation,
    function,
    invocations,
    kserve,
    oip,
    status,
    vertex,
)  # fmt: skip
from mfimage.runtime.serving.route import Route
from mfimage.runtime.serving.served import Served

# In the order of the documentation.
CONTRACTS: tuple[Callable[[Served], tuple[Route, ...]], ...] = (
    vertex.routes,  # first: its paths are the platform's choice, and may be those of another
    status.routes,
    function.routes,
    documentation.routes,
    oip.routes,
    kserve.routes,
    invocations.routes,
)


def routes(served: Served) -> tuple[Route, ...]:
    """Return the routes of a server."""
    return tuple(route for contract in CONTRACTS for route in contract(served))


def find_route(served: Served, name: str, function: str | None = None) -> Route:
    """Return the route of a name, of a function or of the server."""
    return next(
        route for route in routes(served) if (route.name, route.function) == (name, function)
    )


def mounted(served: Served, root: str) -> tuple[Route, ...]:
    """Return the routes of a function behind Ray Serve, below the route prefix ``root``.

    Only the function's own are documented: the others depend on where it is mounted.
    """
    found = []
    for each in routes(served):
        documented = each.operation is not None and each.operation.tag == "function"
        route = replace(each, documented=documented)
        if not root and not route.local:
            found.append(route)
        elif root and route.below is not None:
            found.append(replace(route, path=root + route.below))
            if not route.below:
                found.append(replace(route, path=f"{root}/", documented=False))
    return tuple(found)
