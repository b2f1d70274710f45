"""Checks of the HTTP contract: a request to each route, and some that must be refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mfimage.image.checks.client import request
from mfimage.image.checks.report import Failed, Recorder
from mfimage.image.checks.runner import Address
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.problems import MEDIA_TYPE
from mfimage.runtime.serving.route import Expectation

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

    def run(self, address: Address, spec: FunctionSpec) -> str:
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
            return expected.verify(spec, response.body)
        except ValueError as error:
            raise Failed(str(error)) from None


def contract_checks(spec: FunctionSpec) -> tuple[ContractCheck, ...]:
    """Return the checks of a function's server."""
    checks = [
        ContractCheck(method=route.method, path=route.path, expected=expected)
        for route in routes(spec)
        for expected in route.expectations
    ]
    unknown = ContractCheck(method="GET", path="/no-such-path-of-any-function", expected=_UNKNOWN)
    return (*checks, unknown)


def check_contract(recorder: Recorder, address: Address, spec: FunctionSpec) -> None:
    """Make every check."""
    for check in contract_checks(spec):
        recorder.run(check.name, partial(check.run, address, spec))
