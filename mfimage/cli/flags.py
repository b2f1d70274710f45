"""Flags that several commands take, and the options that they make."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mfimage.errors import OptionError
from mfimage.image.plan.options import OPTIONS, Option

if TYPE_CHECKING:
    from mfimage.bind import BindOptions
    from mfimage.image.plan.options import BuildOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator that adds all these options, in this order."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


json_flag = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

foreach_flag = click.option(
    "--foreach", is_flag=True,
    help="Bind FUNCTION to each task of a foreach step, as NAME/VALUE; --task is FLOW/RUN/STEP.",
)  # fmt: skip
bind_flags = options(
    click.option("--name", help="Name of the function package; by default the function's."),
    click.option(
        "--artifact", "artifacts", multiple=True, metavar="NAME",
        help="Artifact to include; by default those that the function reads.",
    ),
    click.option(
        "--environment", type=click.Path(dir_okay=False), metavar="FILE",
        help="File that describes the environment: requirements, pylock.toml or uv.lock.",
    ),
    click.option(
        "--example", "examples", multiple=True, metavar="JSON",
        help="Record to run the function on; @FILE reads one from each line.",
    ),
    click.option(
        "--param", "params", multiple=True, metavar="NAME=JSON",
        help="Value to use instead of an artifact.",
    ),
    click.option("--root", metavar="DIR", help="Folder or URL to write the package to."),
    click.option("--namespace", help="Metaflow namespace to search; '' is the global one."),
    click.option(
        "--code", type=click.Choice(["here", "task"]),
        help="Where to find FUNCTION: here, or in the code package of the task's run; "
        "by default here, if it exists.",
    ),
)  # fmt: skip


def build_flags(command: str) -> Callable[[Command], Command]:
    """Return the decorator that adds the build options of a command."""
    return options(*(_flag(option) for option in OPTIONS if command in option.commands))


def _flag(option: Option) -> Callable[[Command], Command]:
    names = (*option.flags, option.name)
    if option.kind == "switch":
        return click.option(*names, is_flag=True, default=None, help=option.help)
    return click.option(
        *names,
        multiple=option.kind in ("list", "table"),
        type=click.Choice(option.choices) if option.choices else str,
        metavar=option.metavar,
        help=option.help,
    )


def build_options(given: Mapping[str, Any]) -> BuildOptions:
    """Return the build options that flags and the project's settings give."""
    from mfimage.image.plan.settings import make_options, read_settings

    return make_options(given, read_settings(Path.cwd()))


def bind_options(given: Mapping[str, Any]) -> BindOptions:
    """Return the bind options that flags give."""
    from mfimage.bind import BindOptions

    parameters = {}
    for text in given["params"]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise OptionError(f"--param: expected NAME=JSON, got {text!r}")
        parameters[name] = _json(value, f"--param {name}")
    return BindOptions(
        name=given["name"],
        artifacts=given["artifacts"] or None,
        environment=given["environment"],
        examples=[record for text in given["examples"] for record in _records(text)],
        parameters=parameters,
        root=given["root"],
        namespace=given["namespace"],
    )


def _records(text: str) -> list[Any]:
    if not text.startswith("@"):
        return [_json(text, "--example")]
    try:
        lines = Path(text[1:]).read_text().splitlines()
    except OSError as error:
        raise OptionError(f"--example: cannot read {text[1:]}: {error.strerror}") from None
    return [_json(line, f"--example {text}:{n}") for n, line in enumerate(lines, 1) if line.strip()]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"{where}: {text[:80]!r} is not JSON: {error}") from None
