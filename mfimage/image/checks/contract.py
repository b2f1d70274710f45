"""Checks of the HTTP contract: a request to each route, refusals, and the recorded examples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from mfimage.errors import ValueFault
from mfimage.image.checks.client import request
from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.runner import Address
from mfimage.package.spec import CallableSpec
from mfimage.runtime.records.run import Difference, Tolerance, differences
from mfimage.runtime.serving.contract import find_route, routes
from mfimage.runtime.serving.problems import MEDIA_TYPE
from mfimage.runtime.serving.route import Expectation
from mfimage.runtime.serving.served import Served

_TOLERANCE = Tolerance()
_UNKNOWN = Expectation(name="unknown-path", status=404, media_type=MEDIA_TYPE)


@dataclass(frozen=True, kw_only=True)
class ContractCheck:
    """A request and the response that is expected."""

    method: str
    path: str
    expected: Expectation
    function: str | None = None  # whose route it is; None: the server's

    @property
    def name(self) -> str:
        """Name of the check."""
        return self.expected.name

    def run(self, address: Address, served: Served, tolerance: Tolerance = _TOLERANCE) -> str:
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
        if expected.results is not None:
            function = self.function or served.default
            assert function is not None
            return _compare(served.specs[function], expected, response.body, tolerance)
        if expected.verify is None:
            return f"{sent}: {expected.status}"
        try:
            return expected.verify(served, response.body)
        except ValueError as error:
            raise Failed(str(error)) from None


def _compare(spec: CallableSpec, expected: Expectation, body: bytes, tolerance: Tolerance) -> str:
    """Compare the results of recorded examples in a response."""
    assert expected.results is not None
    try:
        results = expected.results(body)
    except (ValueError, LookupError, TypeError, ValueFault) as error:
        raise Failed(f"its response is not of this contract: {error}") from None
    if len(results) != len(expected.examples):
        raise Failed(f"{len(expected.examples)} records have {len(results)} results")
    found = [
        Difference(example=index, path=path, message=message)
        for index, result in zip(expected.examples, results, strict=True)
        for path, message in differences(spec.examples[index].output, result, tolerance)
    ]
    return _verdict(spec, found)


def platform_checks(served: Served, contract: str | None) -> list[ContractCheck]:
    """Return the checks of a platform's contract, or of the server's own."""
    return [
        ContractCheck(
            method=route.method, path=route.path, expected=expected, function=route.function
        )
        for route in routes(served)
        for expected in route.expectations
        if expected.contract == contract
    ]


def contract_checks(served: Served) -> tuple[ContractCheck, ...]:
    """Return the checks of a server's own contract."""
    checks = platform_checks(served, None)
    unknown = ContractCheck(method="GET", path="/no-such-path-of-any-function", expected=_UNKNOWN)
    return (*checks, unknown)


def check_contract(recorder: Recorder, address: Address, served: Served) -> None:
    """Make every check; of several functions, those of the server's own routes."""
    for check in contract_checks(served):
        if not (served.several and check.function):
            recorder.run(check.name, partial(check.run, address, served))


def check_functions(
    recorder: Recorder, address: Address, served: Served, tolerance: Tolerance
) -> bool:
    """Check each of several functions: its routes, and its examples; return whether all work."""
    checks = contract_checks(served)
    own: dict[str, list[ContractCheck]] = {name: [] for name in served.specs}
    for check in checks:
        if check.function:
            own[check.function].append(check)

    def works(spec: CallableSpec) -> str:
        for check in own[spec.name]:
            check.run(address, served)
        responses = f"{len(own[spec.name])} responses"
        if not spec.examples:
            raise Skipped(f"{responses}; of examples, {NO_EXAMPLES}")
        replay_as_list(address, spec, tolerance)
        return f"{replay(address, spec, tolerance)}, {responses}"

    found = [recorder.run(name, partial(works, spec)) for name, spec in served.specs.items()]
    return all(found)


def function_path(spec: CallableSpec, name: str) -> str:
    """Return the path of a route of a function."""
    return find_route(Served.alone(spec), name, spec.name).path


NO_EXAMPLES = "none were recorded; bind the function with --example RECORD to have some"


def replay(address: Address, spec: CallableSpec, tolerance: Tolerance) -> str:
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


def replay_as_list(address: Address, spec: CallableSpec, tolerance: Tolerance) -> str:
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


def _verdict(spec: CallableSpec, found: list[Difference]) -> str:
    if not spec.examples:
        raise Skipped(NO_EXAMPLES)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{found[0]}{more}")
    count = len(spec.examples)
    return "1 example" if count == 1 else f"{count} examples"
