"""The recorded examples, again: one by one, and all in one list."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mfimage.image.checks.client import ask
from mfimage.image.checks.report import Failed, Skipped
from mfimage.image.checks.runner import Address
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.records.run import Difference, Tolerance, differences

NO_EXAMPLES = "none were recorded; bind the function with --example RECORD to have some"


def replay(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send each example's input; compare what comes with what was recorded.

    Raises
    ------
    Failed
        Naming the first difference.
    Skipped
        If there are no examples.
    """
    return _verdict(spec, list(_replayed(address, spec, tolerance)))


def _replayed(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> Iterator[Difference]:
    for index, example in enumerate(spec.examples):
        answer = ask(address, "POST", f"/{spec.name}", json.dumps(example.input).encode())
        if answer.status != 200:
            yield Difference(example=index, path="result", message=f"answered {answer.problem}")
            continue
        for path, message in differences(example.output, answer.json(), tolerance):
            yield Difference(example=index, path=path, message=message)


def replay_as_list(address: Address, spec: FunctionSpec, tolerance: Tolerance) -> str:
    """Send all inputs as one list; compare likewise.

    Raises
    ------
    Failed
        Naming the first difference.
    Skipped
        If there are no examples.
    """
    return _verdict(spec, list(_replayed_as_list(address, spec, tolerance)))


def _replayed_as_list(
    address: Address, spec: FunctionSpec, tolerance: Tolerance
) -> Iterator[Difference]:
    if not spec.examples:
        return
    body = json.dumps([example.input for example in spec.examples]).encode()
    answer = ask(address, "POST", f"/{spec.name}/batch", body)
    if answer.status != 200:
        raise Failed(f"POST /{spec.name}/batch answers {answer.problem}")
    items = answer.json()
    if not isinstance(items, list) or len(items) != len(spec.examples):
        raise Failed(f"POST /{spec.name}/batch does not answer item by item")
    for index, (example, item) in enumerate(zip(spec.examples, items, strict=True)):
        for path, message in differences({"result": example.output}, item, tolerance, path="item"):
            yield Difference(example=index, path=path, message=message)


def _verdict(spec: FunctionSpec, found: list[Difference]) -> str:
    if not spec.examples:
        raise Skipped(NO_EXAMPLES)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(f"{found[0]}{more}")
    count = len(spec.examples)
    return "1 example" if count == 1 else f"{count} examples"
