"""What the documentation says is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def rows(page: str) -> set[str]:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return {line for line in lines if line.startswith(("| `PORT`", "| `MFIMAGE_"))}


def test_the_server_variables_are_the_same_in_both_tables():
    assert rows("serving.md") < rows("environment-variables.md")


def test_every_variable_that_is_read_is_documented():
    code = "".join(path.read_text() for path in (ROOT / "mfimage").rglob("*.py"))
    read = set(re.findall(r"\"(MFIMAGE_[A-Z_]+)\"", code)) - {"MFIMAGE_IMPORTING"}
    documented = (ROOT / "docs" / "environment-variables.md").read_text()
    assert {name for name in read if f"`{name}`" not in documented} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
