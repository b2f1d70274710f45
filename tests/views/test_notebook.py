"""What a notebook shows of a function: escaped, in its own theme, and without the network."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mfimage.compose import compose
from mfimage.load import JsonFunction, _opened
from mfimage.package.spec import Example, Lineage
from mfimage.package.store import Package
from mfimage.views.html import stylesheet
from mfimage.views.notebook import function_html
from tests.support.packages import make_package

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """The tags of a document, and what it says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def fn(tmp_path: Path) -> JsonFunction:
    return _opened(
        make_package(
            tmp_path,
            artifacts={"factor": 3, "table": list(range(9000))},
            description="Multiply.\n\nBy the factor.",
            examples=(Example(input={"x": 1}, output={"y": 3}),),
        )
    )


def test_a_function_shows_itself(fn: JsonFunction) -> None:
    bundle = fn._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {"text/plain": repr(fn), "text/html": fn._repr_html_()}
    shown = Tags(bundle["text/html"])
    for text in ("IrisFlow/1/train/2", "By the factor.", fn.reference, "table", '{"y": 3}'):
        assert text in shown.text
    assert shown.urls == [], "nothing is loaded"
    assert "url(" not in bundle["text/html"]


def test_what_is_shown_stays_text(fn: JsonFunction) -> None:
    package = fn._package
    assert isinstance(package, Package)
    spec = package.spec
    artifact = replace(spec.artifacts["factor"], type=EVIL)
    evil = replace(
        spec,
        name=EVIL,
        description=EVIL,
        task=EVIL,
        artifacts={EVIL: artifact},
        parameters={EVIL: EVIL},
        input_schema={"type": "object", "title": EVIL, "properties": {EVIL: {}}},
        output_schema={"$ref": f"#/{EVIL}"},
        examples=(Example(input=EVIL, output={EVIL: EVIL}),),
        environment=replace(
            spec.environment, source=EVIL, system_packages=(EVIL,), reasons={EVIL: EVIL}
        ),
        lineage=Lineage(flow=EVIL, run=EVIL, step=EVIL, task=EVIL, user=EVIL, git_commit=EVIL),
    )
    store = package.store
    lock = store.put_bytes(b"not a lock")
    evil = replace(evil, environment=replace(evil.environment, lock=lock))
    html = function_html(replace(package, spec=evil, reference=f'/"{EVIL}/function.json'))
    shown = Tags(html)
    assert "script" not in shown.tags
    assert shown.text.count(EVIL) > 15
    assert html.count("onclick") == 1


def test_a_pipeline_shows_its_parts(tmp_path: Path) -> None:
    made = compose("both", [make_package(tmp_path), make_package(tmp_path, description="Again.")])
    shown = Tags(str(_opened(made.store.write(made.spec))._repr_html_()))
    assert "both pipeline" in shown.text
    assert "Again." in shown.text or shown.text.count("IrisFlow/1/train/2") >= 2


def test_it_is_fast(fn: JsonFunction) -> None:
    """A cell's output waits for it."""
    fn._repr_html_()  # imports
    start = time.perf_counter()
    fn._repr_html_()
    assert time.perf_counter() - start < 0.1


def test_without_templates_it_is_text(fn: JsonFunction) -> None:
    """An image has mfimage's runtime only."""
    code = f"""
import sys
from mfimage.load import _opened
fn = _opened({fn.reference!r})
assert not {{"jinja2", "mfimage.views", "mfimage.serve"}} & {{*sys.modules}}, "imported for nothing"
sys.modules["jinja2"] = None
assert fn._repr_html_() is None
print(fn._repr_mimebundle_())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{{'text/plain': {repr(fn)!r}}}\n"


def test_a_notebooks_theme_outranks_the_systems() -> None:
    """The palettes are those of the shared stylesheet."""
    assert stylesheet().count("--ink:") == 2


@pytest.mark.browser
def test_it_follows_the_notebook_and_copies_its_reference(fn: JsonFunction, page: Page) -> None:
    colors = set()
    for theme, system in (("true", "dark"), ("false", "light")):
        page.emulate_media(color_scheme=system)  # type: ignore[arg-type]
        page.set_content(f'<body data-jp-theme-light="{theme}">{fn._repr_html_()}</body>')
        colors.add(page.locator(".mfimage").evaluate("e => getComputedStyle(e).backgroundColor"))
        assert page.locator(".mfimage").evaluate("e => e.scrollWidth <= e.clientWidth")
    assert colors == {"rgb(255, 255, 255)", "rgb(20, 24, 31)"}
    page.get_by_role("button", name="Copy the reference").click()
    assert page.evaluate("getSelection().toString()") == fn.reference
    page.set_viewport_size({"width": 360, "height": 600})
    assert page.locator(".mfimage").evaluate("e => e.scrollWidth <= e.clientWidth")
