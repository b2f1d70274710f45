"""Checks of the HTTP contract: a request to each route, refusals, and the recorded examples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from mfimage.image.checks.client import request
from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.runner import Address
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.records.run import Difference, Tolerance, differences
from mfimage.runtime.serving.contract import find_route, routes
from mfimage.runtime.serving.problems import MEDIA_TYPE
from mfimage.runtime.serving.route import Expectation
from mfimage.runtime.serving.served import Served

_UNKNOWN = Expectation(name="unknown-path", status=404, media_type=MEDIA_TYPE)


@dataclass(frozen=True, kw_only=True)
class ContractCheck:
    """A request and the response that is expected."""

    method: str
    path: str
    expected: Expectation

    @property
    def name(self) -> str:
        """Name of the check."""
        return self.expected.name

    def run(self, address: Address, served: Served) -> str:
        """Send the request; return what was found."""
        expected, sent = self.expected, f"{self.method} {self.path}"
        response = request(
            address, self.method, self.path, expected.body, media_type=expected.content_type
        )
        if response.status != expected.status:
            raise Failed(f"{sent} answers {response.problem}; expected {expected.status}")
        if response.media_type != expected.media_type:
            raise Failed(
                f"{sent} answers {response.status} as {response.media_type!r}; "
                f"expected {expected.media_type}"
            )
        if expected.media_type == MEDIA_TYPE and response.json().get("status") != expected.status:
            raise Failed(f"{sent}: the problem document does not have status {expected.status}")
        if expected.verify is None:
            return f"{sent}: {expected.status}"
        try:
            return expected.verify(served, response.body)
        except ValueError as error:
            raise Failed(str(error)) from None


def contract_checks(served: Served) -> tuple[ContractCheck, ...]:
    """Return the checks of a server."""
    checks = [
        ContractCheck(method=route.method, path=route.path, expected=expected)
        for route in routes(served)
        for expected in route.expectations
    ]
    unknown = ContractCheck(method="GET", path="/no-such-path-of-any-function", expected=_UNKNOWN)
    return (*checks, unknown)


def check_contract(recorder: Recorder, address: Address, served: Served) -> None:
    """Make every check."""
    for check in contract_checks(served):
        recorder.run(check.name, partial(check.run, address, served))


def function_path(spec: FunctionSpec, name: str) -> str:
    """Return the path of a route of a function."""
    return find_route(Served.alone(spec), name, spec.name).path


NO_EXAMPLES = "none were recorded; bind the function with --example RECORD to have some"


def replay(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send the input of each example; compare the results with those recorded."""
    path = function_path(spec, "record")
    found: list[Difference] = []
    for index, example in enumerate(spec.examples):
        response = request(address, "POST", path, json.dumps(example.input).encode())
        pairs: Iterable[tuple[str, str]] = [("result", f"answered {response.problem}")]
        if response.status == 200:
            pairs = differences(example.output, response.json(), tolerance)
        found += [Difference(example=index, path=where, message=text) for where, text in pairs]
    return _verdict(spec, found)


def replay_as_list(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send the inputs of all examples as one list; compare likewise."""
    if not spec.examples:
        raise Skipped(NO_EXAMPLES)
    path = function_path(spec, "batch")
    body = json.dumps([example.input for example in spec.examples]).encode()
    response = request(address, "POST", path, body)
    if response.status != 200:
        raise Failed(f"POST {path} answers {response.problem}")
    items = response.json()
    if not isinstance(items, list) or len(items) != len(spec.examples):
        raise Failed(f"POST {path} does not answer item by item")
    found = [
        Difference(example=index, path=where, message=message)
        for index, (example, item) in enumerate(zip(spec.examples, items, strict=True))
        for where, message in differences({"result": example.output}, item, tolerance, path="item")
    ]
    return _verdict(spec, found)


def _verdict(spec: FunctionSpec, found: list[Difference]) -> str:
    if not spec.examples:
        raise Skipped(NO_EXAMPLES)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{found[0]}{more}")
    count = len(spec.examples)
    return "1 example" if count == 1 else f"{count} examples"
