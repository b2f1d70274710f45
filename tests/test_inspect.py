"""What ``inspect`` says of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.inspect import inspect
from mfimage.package.spec import Example
from tests.backends.process_support import Packages

SOURCE = "@json_function\ndef predict(data: dict) -> dict:\n    return data\n"


@pytest.mark.parametrize(
    ("inputs", "suggested"),
    [
        ([{"text": "x" * 600}, {"text": "it's"}], {"text": "it's"}),
        ([{"text": "x" * 600}], {}),
        ([], {}),
    ],
)
def test_a_recorded_example_is_suggested_if_it_is_short(
    tmp_path: Path, inputs: list[Any], suggested: Any
) -> None:
    examples = tuple(Example(input=each, output={}) for each in inputs)
    reference = Packages(tmp_path).write(SOURCE, examples=examples).reference
    assert inspect(reference).get("example", {}) == suggested
    shown = CliRunner().invoke(main, ["inspect", reference]).stdout
    (call,) = (line for line in shown.splitlines() if line.startswith("call"))
    text = """'{"text": "it'"'"'s"}'""" if suggested else "'{}'"
    assert call.split(None, 1)[1].startswith(f"echo {text} | mfimage call ")
