"""The documentation names only what exists: links, commands, options, variables, files, labels."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from mfimage.cli import main
from mfimage.runtime import settings
from mfimage.runtime.__main__ import main as run
from tests.test_architecture import FLOORS, OWNERS, ROOT

DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
CODE = "".join(path.read_text() for path in sorted((ROOT / "mfimage").rglob("*.py")))
TESTS = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
VARIABLE = r"\bMFIMAGE_[A-Z_]*[A-Z]"
# The server's are made from the fields of its settings.
VARIABLES = {*re.findall(VARIABLE, CODE + TESTS), *(each.name for each in settings.VARIABLES)}
ARCHITECTURE, DEVELOPMENT = ROOT / "docs/architecture.md", ROOT / "docs/development.md"


def each_page(pages: list[Path] = PAGES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda path: str(path.relative_to(ROOT)))


def rows(page: str) -> set[str]:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return {line for line in lines if line.startswith(("| `PORT`", "| `MFIMAGE_"))}


def test_the_server_variables_are_the_same_in_both_tables():
    assert rows("serving.md") < rows("environment-variables.md")


def test_every_variable_that_is_read_is_documented():
    # What ends with "_" begins names.
    read = set(re.findall(r"\"(MFIMAGE_[A-Z_]*[A-Z])\"", CODE)) - {"MFIMAGE_IMPORTING"}
    documented = (ROOT / "docs" / "environment-variables.md").read_text()
    assert {name for name in read if f"`{name}`" not in documented} == set()


@each_page()
def test_every_variable_that_is_documented_is_read(page):
    assert set(re.findall(VARIABLE, page.read_text())) <= VARIABLES


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@each_page()
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@each_page()
def test_links_to_elsewhere_are_complete(page):
    for url in re.findall(r"(?:\]\(|^\[[^]]+\]: )(\w+:[^)\n]*)", page.read_text(), re.M):
        parts = urlsplit(url)
        assert parts.scheme == "https", url
        assert "." in parts.netloc, url
        assert re.fullmatch(r"[!-~]+", url), url


def test_the_function_of_the_five_minutes_is_the_example():
    page = (ROOT / "docs/five-minutes.md").read_text()
    (shown,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    example = (ROOT / "examples/iris/classify.py").read_text().splitlines()
    assert [line for line in shown.splitlines() if line not in example] == ["    ..."]


def test_every_picture_is_shown_small_and_complete():
    shown = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs/pictures").glob("*.*g"):
        assert f"pictures/{picture.name})" in shown, picture.name
        assert picture.stat().st_size < 150_000, picture.name
        if picture.suffix == ".svg":
            assert "url(http" not in re.sub(r"\s", "", picture.read_text()), picture.name


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path):
    recipe = re.search(r"sphinx (-E -b html .*) docs build/docs", (ROOT / "Makefile").read_text())
    command = [sys.executable, "-m", "sphinx", *recipe[1].split(), "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in tmp_path.rglob("*.html"):
        assert (
            re.findall(r"<(?!a\b)[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*", page.read_text())
            == []
        )
    # All that docstrings and `--help` have to say is there.
    assert "function_from_json" in (tmp_path / "reference/api.html").read_text()
    assert "--base-image" in (tmp_path / "reference/cli.html").read_text()


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in readme] == []


def commands(page: Path) -> Iterator[list[str]]:
    """Yield each ``mfimage ...`` of a page, in code blocks and in the text."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        yield from map(words, re.findall(r"^(?:\$ )?(mfimage .*)$", block, re.M))
    yield from map(words, re.findall(r"`(mfimage [^`\n]+)`", text))


def words(line: str) -> list[str]:
    line = re.split(r" [|>] | >|\s#", line)[0]
    try:
        return shlex.split(line)[1:]
    except ValueError:  # JSON that continues in the next line
        return line.split()[1:]


def options_of(command: click.Command) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)}


@each_page()
def test_commands_and_their_options_exist(page):
    for given in commands(page):
        command: click.Command = main
        known = options_of(main) | {"-h", "--help"}
        for word in given:
            name = word.partition("=")[0]
            if isinstance(command, click.Group) and not word.startswith("-"):
                found = command.get_command(click.Context(command), word)
                if found is None and word == "...":
                    break
                assert found, f"mfimage {' '.join(given)}: {word} is not a command"
                command = found
                known |= options_of(command)
            elif re.match(r"--?[a-z]", word):
                assert name in known, f"mfimage {' '.join(given)}: {name} is not an option"


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in main.commands if f"`mfimage {name} " not in readme] == []


def every_option(command: click.Command) -> set[str]:
    found = options_of(command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            found |= every_option(inner) if inner else set()
    return found


@functools.cache
def options_of_images() -> set[str]:
    """Return the options of ``python -m mfimage.runtime``."""
    text = io.StringIO()
    for verb in ("serve", "call", "check", "batch"):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(text):
            run([verb, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", text.getvalue()))


@each_page()
def test_options_that_are_named_alone_exist(page):
    named = set(re.findall(r"`(--[a-z][a-z-]+)(?=[` =])", page.read_text()))
    assert named - every_option(main) - options_of_images() == set()


def test_extras_exist():
    project = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", project, re.S)
    known = set(re.findall(r"^(\w+) = \[", found[1], re.M))
    for page in PAGES:
        for names in re.findall(r"(?:mfimage|\.)\[([\w,]+)\]", page.read_text()):
            assert set(names.split(",")) <= known, (page.name, names)


@each_page(DOCS)
def test_labels_and_metrics_exist(page):
    text = page.read_text()
    for name in re.findall(r"`io\.mfimage\.([a-z.]+)`", text):
        assert f'"{name}"' in CODE or f'{{LABEL_PREFIX}}{name}"' in CODE, name
    for name in re.findall(r"`(mfimage_[a-z_]+)[`{]", text):
        assert re.sub("_(total|info)$", "", name) in CODE, name


@each_page([ARCHITECTURE, DEVELOPMENT])
def test_files_and_folders_exist(page):
    for name in re.findall(r"`([\w./]*/[\w./]*|\w+\.(?:py|md|toml))`", page.read_text()):
        if "NAME" not in name:
            assert any((ROOT / place / name).exists() for place in ("", "mfimage")), name


def test_every_room_is_in_the_architecture():
    text = ARCHITECTURE.read_text()
    rooms = {
        path.parent.relative_to(ROOT / "mfimage")
        for path in (ROOT / "mfimage").rglob("__init__.py")
    }
    # Described with the room that they are in, or by their own rooms.
    described = {".", "capture", "image", "runtime", "runtime/serving/contracts"}
    described.add("capture/environment/sources")
    assert {str(room) for room in rooms if f"`{room}/`" not in text} <= described
    floors = {name.removeprefix("mfimage.") for name in FLOORS if name.count(".") == 1}
    assert {name for name in floors if not re.search(rf"\b{name}\b", text)} == set()


def test_every_owner_is_in_the_architecture():
    table = [line for line in ARCHITECTURE.read_text().splitlines() if line.startswith("|")]
    for dependency, owner in OWNERS.items():
        line = next((line for line in table if f"`{dependency}`" in line), "")
        for name in [owner] if isinstance(owner, str) else owner:
            path = name.strip(".").removeprefix("mfimage.").replace(".", "/")
            assert f"`{path}" in line, (dependency, path)
