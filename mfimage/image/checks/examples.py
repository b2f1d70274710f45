"""Replaying the recorded examples: one by one, and all in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mfimage.image.checks.client import request
from mfimage.image.checks.report import Failed, Skipped
from mfimage.image.checks.runner import Address
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.records.run import Difference, Tolerance, differences
from mfimage.runtime.serving.contract import find_route

NO_EXAMPLES = "none were recorded; bind the function with --example RECORD to have some"


def replay(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send the input of each example; compare the results with those recorded."""
    return _verdict(spec, list(_replayed(address, spec, tolerance)))


def _replayed(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> Iterator[Difference]:
    path = find_route(spec, "record").path
    for index, example in enumerate(spec.examples):
        response = request(address, "POST", path, json.dumps(example.input).encode())
        if response.status != 200:
            yield Difference(example=index, path="result", message=f"answered {response.problem}")
            continue
        for where, message in differences(example.output, response.json(), tolerance):
            yield Difference(example=index, path=where, message=message)


def replay_as_list(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send the inputs of all examples as one list; compare likewise."""
    return _verdict(spec, list(_replayed_as_list(address, spec, tolerance)))


def _replayed_as_list(
    address: Address, spec: FunctionSpec, tolerance: Tolerance
) -> Iterator[Difference]:
    if not spec.examples:
        return
    path = find_route(spec, "batch").path
    body = json.dumps([example.input for example in spec.examples]).encode()
    response = request(address, "POST", path, body)
    if response.status != 200:
        raise Failed(f"POST {path} answers {response.problem}")
    items = response.json()
    if not isinstance(items, list) or len(items) != len(spec.examples):
        raise Failed(f"POST {path} does not answer item by item")
    for index, (example, item) in enumerate(zip(spec.examples, items, strict=True)):
        expected = {"result": example.output}
        for where, message in differences(expected, item, tolerance, path="item"):
            yield Difference(example=index, path=where, message=message)


def _verdict(spec: FunctionSpec, found: list[Difference]) -> str:
    if not spec.examples:
        raise Skipped(NO_EXAMPLES)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{found[0]}{more}")
    count = len(spec.examples)
    return "1 example" if count == 1 else f"{count} examples"
