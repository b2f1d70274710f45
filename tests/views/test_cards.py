"""The card of a function: as a page, and in Metaflow after a real run."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mfimage.inspect import card_page
from mfimage.package.spec import EnvironmentSpec, Example, Lineage
from mfimage.package.store import PackageStore, open_package
from mfimage.views import metaflow
from mfimage.views.card import function_page
from mfimage.views.function import view
from mfimage.views.lineage import lineage_of_function, lineage_svg
from tests.support.packages import make_package
from tests.support.projects import python

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<script>alert(1)</script>"
FLOW = Path(__file__).parents[1] / "support" / "flows" / "cards.py"
GOLDEN = Path(__file__).parents[1] / "golden" / "card.html"


@pytest.fixture
def reference(tmp_path: Path) -> str:
    lock = PackageStore(tmp_path).put_bytes(b'lock-version = "1.0"\npackages = []\n')
    return make_package(
        tmp_path,
        artifacts={"factor": b"f" * 30, "table": b"t" * 19_000},
        description="Multiply.\n\nBy the factor.",
        input_schema={"type": "object", "properties": {"x": {"type": "integer"}}},
        examples=(Example(input={"x": 1}, output={"y": 3}),),
        environment=EnvironmentSpec(
            python="3.11.7", platform="linux/amd64", source="imports", lock=lock
        ),
        lineage=Lineage(
            flow="IrisFlow", run="1", step="train", task="2", user="alice",
            git_commit="0123456789abcdef", created="2026-11-20T12:00:00Z",
        ),
    )  # fmt: skip


def test_golden(reference: str) -> None:
    """The page, but for the stylesheets that all pages share and their digest."""
    digest = open_package(reference).spec.digest
    text = re.sub(r"<style>.*?</style>", "<style></style>", card_page(reference), flags=re.S)
    text = re.sub(r'-Policy" content="[^"]*"', '-Policy" content=""', text)
    text = text.replace(reference, "<reference>").replace(digest[7:19], "<digest>")
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_component_has_texts_and_no_html(tmp_path: Path) -> None:
    """Other cards show its tables and code as text; its drawing is an image of escaped text."""
    reference = make_package(tmp_path, artifacts={"factor": 3}, description=EVIL)
    component = metaflow.FunctionComponent(view(open_package(reference)))
    rendered = component.render()
    assert rendered["subtitle"] == EVIL
    assert {each["type"] for each in rendered["contents"]} <= {"image", "pythonCode", "table"}
    assert json.dumps(rendered)


def test_a_drawing_has_escaped_texts(reference: str) -> None:
    from dataclasses import replace

    function = replace(view(open_package(reference)), name=EVIL[:20])
    drawn = lineage_svg(lineage_of_function(function))
    assert EVIL[:20] not in drawn
    assert "&lt;script&gt;" in drawn


def test_where_only_the_runtime_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's image may lack Jinja: the card says what to install, and the step is done."""
    monkeypatch.setitem(__import__("sys").modules, "mfimage.views.card", None)
    assert "pip install mfimage" in metaflow.FunctionCard().render(None)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cards of a run of ``flows/cards.py``, by their ids."""
    folder = tmp_path_factory.mktemp("cards")
    shutil.copy(FLOW, folder)
    python(["cards.py", "--quiet", "--no-pylint", "run"], folder=folder)
    listed = list(folder.glob(".metaflow/mf.cards/CardsFlow/runs/*/steps/start/tasks/*/cards/*"))
    kinds = {"one": "mfimage-one", "wrong": "mfimage-wrong", "own": "blank-own", "all": "mfimage"}
    found = {
        name: next(each for each in listed if each.name.rpartition("-")[0] == kind)
        for name, kind in kinds.items()
    }
    got = folder / "got.html"
    python(["cards.py", "card", "get", "start", "--id", "one", str(got)], folder=folder)
    assert got.read_text() == found["one"].read_text()
    return found


@pytest.mark.e2e
def test_cards_of_a_run(cards: dict[str, Path]) -> None:
    """All functions of the task, or those that are named; nothing else is unpickled."""
    text = {name: path.read_text() for name, path in cards.items()}
    assert text["all"].count("<article") == 2
    assert re.findall(r'<article aria-label="(\w+)">', text["all"]) == ["predict", "other"]
    assert re.findall(r'<article aria-label="(\w+)">', text["one"]) == ["other"]
    assert "&#34;y&#34;: 3" in text["all"]
    assert EVIL not in text["all"]
    assert "Add. &lt;script&gt;" in text["all"]
    assert "This task has no bound function." in function_page([], title="F/1/start/1")


@pytest.mark.e2e
@pytest.mark.browser
def test_how_cards_look(cards: dict[str, Path], page: Page) -> None:
    """In a browser: ours without a violation of its policy, and Metaflow's own with our parts."""
    page.goto(f"file://{cards['all']}")
    assert page.get_by_role("list", name="Lineage of predict").get_by_role("listitem").count() == 5
    page.goto(f"file://{cards['own']}")
    page.get_by_text("Lineage of predict").wait_for()
    assert page.get_by_text(f"Add. {EVIL}", exact=True).count() == 1
    drawing = page.locator("img[src^='data:image/svg+xml']")
    assert drawing.evaluate("image => image.naturalWidth") > 400
    page.goto(f"file://{cards['wrong']}")
    page.get_by_text("Card Render Failed").first.wait_for()
