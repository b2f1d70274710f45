"""A contract is a function that returns routes, and its line in the table."""

from __future__ import annotations

import asyncio

import pytest

from mfimage.image.checks.contract import contract_checks
from mfimage.runtime.serving import contract
from mfimage.runtime.serving.openapi import document
from mfimage.runtime.serving.route import Expectation, HttpRequest, Operation, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.services import Services
from tests.runtime.apps import served
from tests.runtime.packages import live


def echo(data: int) -> int:
    return data


FN = live(echo)
SERVED = Served.alone(FN.spec)


async def alive(services: Services, request: HttpRequest) -> Response:
    return Response(b'"pong"', status=200 if services.not_ready() is None else 503)


def other_platform(served: Served) -> tuple[Route, ...]:
    (record,) = (route for route in contract.routes(served) if route.name == "record")
    return (
        Route(
            name="alive",
            path="/alive",
            handler=alive,
            endpoint=None,
            while_loading=True,
            operation=Operation(id="alive", summary="Alive", response=lambda _: {}),
            expectations=(Expectation(name="alive"),),
        ),
        Route(
            name="score",
            path="/score",
            handler=record.handler,
            function=served.default,
            method="POST",
            endpoint="record",
            below="/score",
        ),
    )


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    added = other_platform(SERVED)
    monkeypatch.setattr(contract, "CONTRACTS", (*contract.CONTRACTS, lambda served: added))


@pytest.mark.usefixtures("extended")
def test_everything_is_made_from_the_table() -> None:
    routes = contract.routes(SERVED)
    assert document(SERVED, {}, routes)["paths"]["/alive"]["get"]["operationId"] == "alive"
    assert "/score" not in document(SERVED, {}, routes)["paths"]
    assert "alive" in {check.name for check in contract_checks(SERVED)}
    at_root = {(route.method, route.path) for route in contract.mounted(SERVED, "")}
    assert {("GET", "/alive"), ("POST", "/score")} <= at_root
    below = {route.path for route in contract.mounted(SERVED, "/models/a")}
    assert {each for each in below if "alive" in each or "score" in each} == {"/models/a/score"}


@pytest.mark.usefixtures("extended")
def test_the_app_answers_every_route() -> None:
    async def run() -> None:
        async with served(FN, load=False) as it:
            assert (await it.client.get("/alive")).status_code == 503
        async with served(FN) as it:
            assert (await it.client.get("/alive")).json() == "pong"
            assert (await it.post("/score", "5")).json() == 5
            wrong = await it.client.delete("/alive")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
            assert it.requests() == {("record", "200"): 1, ("other", "405"): 1}

    asyncio.run(run())


def test_names_of_routes_and_checks_are_unique() -> None:
    names = [route.name for route in contract.routes(SERVED)]
    checks = [check.name for check in contract_checks(SERVED)]
    assert len(set(names)) == len(names)
    assert len(set(checks)) == len(checks)
