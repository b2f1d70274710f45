"""What a user reads and scripts rely on: two lines for an error, and the exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import BuildError

MFIMAGE = str(Path(sys.executable).with_name("mfimage"))


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MFIMAGE, *arguments], capture_output=True, text=True, check=False, **kwargs
    )


def test_help_needs_nothing_heavy():
    script = (
        "import sys; from click.testing import CliRunner; from mfimage.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print([m for m in ('docker', 'metaflow', 'pydantic', 'jinja2', 'rich', 'uv') "
        "if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script]) == b"[]\n"


def test_help_answers_at_once():
    took = []
    for _ in range(3):
        start = time.monotonic()
        assert run("--help").returncode == 0
        took.append(time.monotonic() - start)
    assert min(took) < 0.5  # 0.13 s on an idle machine


def test_an_error_is_one_line_and_a_hint(tmp_path):
    done = run("inspect", "nowhere/functions/f/0/function.json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: no function package at ")
    assert hint.startswith("hint: ")


def test_debug_shows_the_traceback(tmp_path):
    done = run("--debug", "inspect", "nowhere/functions/f/0/function.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


COMMANDS = [command for name, command in main.commands.items() if name != "manifest"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_says_what_an_option_does(command):
    """In a sentence, not a fragment, as each command's own does."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    for text in (command.help, *(each.help for each in options)):
        assert re.match(r"[A-Z].*\.( \[default: \w+\])?$", text.strip(), re.DOTALL), text
        assert text.split()[0] not in ("Of", "For", "By", "Until", "The", "In"), text


def test_wrong_usage_exits_with_2():
    assert run("bind").returncode == 2
    assert run("no-such-command").returncode == 2


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (BuildError("step 3 failed", hint="do this"), 1, "error: step 3 failed\nhint: do this\n"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd\nhint: this is a bug"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_every_failure_has_its_exit_code(monkeypatch, failure, code, said):
    def fail(what: str, platform: str | None) -> None:
        raise failure

    monkeypatch.setattr("mfimage.inspect.inspect", fail)
    result = CliRunner().invoke(main, ["inspect", "x"])
    assert result.exit_code == code
    assert result.stderr.startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bind", "a.py:f", "--task", "F", "--param", "x"], "--param: expected NAME=JSON"),
        (["bind", "a.py:f", "--task", "F", "--param", "x=y"], "--param x: 'y' is not JSON"),
        (["bind", "a.py:f", "--task", "F", "--example", "{"], "--example: '{' is not JSON"),
        (["bind", "a.py:f", "--task", "F", "--example", "@no"], "--example: cannot read no"),
        (["build", "x", "--target", "fastapy"], "target: unknown target 'fastapy'"),
        (["build", "x", "--env", "A"], "env: 'A' has no value"),
        (["build", "x", "--platform", "amiga"], "platform: images cannot be built for 'amiga'"),
        (["build", "x", "--push"], "push: the image has no name"),
    ],
)
def test_options_are_refused_by_name(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {said}")


def test_binding_prints_the_reference_alone_and_ends() -> None:
    """What the module prints came before it, and a thread that it started kept it from ending."""
    code = (
        "import contextlib, threading, time\n"
        "import mfimage.bind, mfimage.package.store, mfimage.capture.code.named as named\n"
        "from types import SimpleNamespace as Any\n"
        "from mfimage.cli import main\n"
        "@contextlib.contextmanager\n"
        "def find_function(*args, **options):\n"
        "    print('Hello from the library')\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    yield Any(function=None, package=None)\n"
        "named.find_function = find_function\n"
        "mfimage.bind.bind = lambda *args: 'the reference'\n"
        "mfimage.package.store.open_package = lambda _: Any(spec=Any(name='f', task='T', "
        "artifacts={}, environment=Any(source='s', python_minor='3')))\n"
        "main(['bind', 'a:b', '--task', 'T'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "the reference\n"
    assert "Hello from the library" in done.stderr
