"""The pipelines under examples/ci can be read, and run commands that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mfimage.cli import main

FOLDER = Path(__file__).parents[2] / "examples" / "ci"
FILES = sorted(FOLDER.glob("*.yml"))


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def commands(path: Path) -> list[list[str]]:
    found = []
    for text in texts(yaml.safe_load(path.read_text())):
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r"mfimage [a-z]", line):
                found.append(shlex.split(line.partition(" >>")[0])[1:])
    return found


def test_both_services_have_one() -> None:
    assert {path.name.partition("-")[0] for path in FILES} == {"github", "gitlab"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_is_understood(path: Path) -> None:
    parsed = commands(path)
    assert {"oci", "docker"} <= {c[c.index("--builder") + 1] for c in parsed}
    for name, *arguments in parsed:
        command = main.get_command(click.Context(main), name)
        assert command is not None, name
        context = command.make_context(name, list(arguments))
        for option in ("cache_from", "cache_to", "max_size"):
            assert name != "build" or context.params[option], option


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_input_reaches_a_shell_unquoted(path: Path) -> None:
    """What others choose goes through the environment, never into a script's text."""
    for text in texts(yaml.safe_load(path.read_text())):
        if ("mfimage " in text and "\n" in text) or text.startswith("mfimage "):
            assert "${{" not in text
            bare = re.sub(r'"[^"]*"', "", text)
            assert "$" not in bare, bare


def test_the_reusable_workflow_can_be_called() -> None:
    document = yaml.safe_load((FOLDER / "github-build-function.yml").read_text())
    call = document[True]["workflow_call"]  # YAML 1.1 reads `on` as a boolean
    assert {"reference", "image", "builder"} <= set(call["inputs"])
    assert call["outputs"]["image"]["value"] == "${{ jobs.build.outputs.image }}"
    assert document["permissions"] == {"contents": "read", "packages": "write"}
