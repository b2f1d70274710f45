"""The page in Chromium: forms, calls, errors, keyboard, colors, frames."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.packages import Source, make_folder, make_functions
from tests.runtime.servers import Server, running
from tests.runtime.serving.page import functions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytestmark = pytest.mark.browser

IRIS = {"petal length (cm)": 1.4, "petal width (cm)": 0.2}
EXAMPLES = ((IRIS, {"prediction": 0, "name": "setosa"}), ({**IRIS, "petal length (cm)": 5.1}, None))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with functions of every kind."""
    sources = {
        "everything": Source(
            source=functions.EVERYTHING, module="a", examples=[(functions.ORDER, None)]
        ),
        "number": Source(source=functions.SCALAR, module="b"),
        "many/emea": Source(source=functions.BATCH, module="c"),
        "slow": Source(source=functions.SLOW, module="d"),
        "iris": Source(
            source=functions.IRIS,
            module="e",
            artifacts={"class_names": ["setosa", "other"]},
            examples=EXAMPLES,
        ),
        **{f"other/{n}": Source(source=functions.SCALAR, module="b") for n in range(30)},
    }
    folder = make_functions(tmp_path_factory.mktemp("several"), sources)
    # On demand: a process for each module, and there are five.
    with running(folder, MFIMAGE_LOAD="lazy", MFIMAGE_CORS_ORIGINS="none") as server:
        yield server.until_ready()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_folder(
        tmp_path_factory.mktemp("alone") / "f", functions.IRIS,
        artifacts={"class_names": ["setosa", "other"], "<b>": 1}, examples=EXAMPLES,
    )  # fmt: skip
    with running(folder, MFIMAGE_PAGE="frame") as server:
        yield server.until_ready()


def visit(page: Page, server: Server, name: str | None = None) -> Page:
    page.goto(server.url + (f"/?function={name}" if name else "/"))
    return page


def run(page: Page) -> Any:
    """Call the function; return the result, or None where there is an error."""
    status = page.get_by_role("status").filter(has_text=re.compile(r"\d ms|\d s"))
    page.get_by_role("button", name="Run").click()
    status.wait_for()
    shown = page.get_by_role("region", name="Result", exact=True)
    return json.loads(shown.inner_text()) if shown.count() else None


def sent(page: Page) -> Any:
    """Return the input of the form, as JSON."""
    page.get_by_text("JSON", exact=True).first.click()
    found = json.loads(page.locator("#json").input_value())
    page.get_by_text("Form", exact=True).click()
    return found


def focused(page: Page) -> Locator:
    return page.locator(":focus")


def test_a_form_for_every_kind_of_schema(page: Page, several: Server) -> None:
    visit(page, several, "everything")
    assert sent(page) == functions.ORDER  # the example, kept by both views
    page.get_by_label("Recorded examples").select_option("Empty")
    assert set(sent(page)) == {"customer", "color", "address", "payment"}  # amount has no value yet
    page.get_by_label("customer", exact=True).fill("Ada")
    page.get_by_label("amount", exact=True).fill("0.10")
    page.get_by_label("color", exact=True).select_option("green")
    page.get_by_label("street", exact=True).fill("1 High Street")
    page.get_by_label("city", exact=True).fill("Leeds\nUK")
    payment = page.get_by_role("group", name="payment")
    payment.get_by_label("number", exact=True).fill("1234")
    for name in (
        "express",
        "size",
        "tags",
        "matrix",
        "point",
        "discount",
        "extra",
        "when",
        "tree",
        "anything",
    ):
        page.get_by_role("checkbox", name=name, exact=True).check()
    page.get_by_role("combobox", name="express").select_option("true")
    page.get_by_role("combobox", name="size").select_option("L")
    tags = page.get_by_role("group", name=re.compile("^tags"))
    for text in ("a", "b", "c"):
        tags.get_by_role("button", name="Add item").click()
        focused(page).fill(text)
    tags.get_by_role("button", name="Remove [1]").click()
    matrix = page.get_by_role("group", name=re.compile("^matrix"))
    matrix.get_by_role("button", name="Add item").last.click()
    matrix.get_by_role("button", name="Add item").first.click()
    focused(page).fill("12345678901234567890")
    point = page.get_by_role("group", name=re.compile("^point"))
    point.get_by_role("spinbutton").nth(1).fill("2.50")
    discount = page.get_by_role("group", name=re.compile("^discount"))
    discount.get_by_label("kind of value").select_option("text")
    discount.get_by_role("textbox").fill("10%")
    extra = page.get_by_role("group", name=re.compile("^extra"))
    extra.get_by_role("button", name="Add entry").click()
    focused(page).fill("key")
    page.keyboard.press("Tab")
    focused(page).fill("7")
    page.get_by_role("textbox", name="when").fill("2026-01-31")
    tree = page.get_by_role("group", name=re.compile("^tree"))
    tree.get_by_label("label", exact=True).fill("root")
    tree.get_by_role("checkbox", name="children").check()
    tree.get_by_role("button", name="Add item").click()
    tree.get_by_label("label", exact=True).nth(1).fill("leaf")
    anything = page.get_by_role("group", name=re.compile("^anything"))
    anything.get_by_role("button", name="Add entry").click()
    focused(page).fill("any")
    page.keyboard.press("Tab")
    focused(page).fill('[null, {"deep": true}]')
    assert "0.10" in page.get_by_role("region", name="The call as code").inner_text()
    assert (
        "12345678901234567890" in page.get_by_role("region", name="The call as code").inner_text()
    )
    assert run(page) == {
        "customer": "Ada", "amount": 0.1, "count": 1, "express": True, "color": "green",
        "size": "L", "address": {"street": "1 High Street", "city": "Leeds\nUK", "zip": None},
        "tags": ["a", "c"], "matrix": [[12345678901234567890.0]], "point": [0.0, 2.5],
        "payment": {"kind": "card", "number": "1234"}, "discount": "10%", "extra": {"key": 7},
        "anything": {"any": [None, {"deep": True}]}, "when": "2026-01-31", "at": None,
        "note": None, "token": None,
        "tree": {"label": "root", "children": [{"label": "leaf", "children": []}]},
    }  # fmt: skip


def test_errors_are_at_their_fields_and_in_a_summary_with_the_focus(
    page: Page, several: Server
) -> None:
    visit(page, several, "everything")
    amount = page.get_by_label("amount", exact=True)
    amount.fill("-1")
    page.get_by_label("street", exact=True).fill("x" * 99)
    assert run(page) is None
    summary = page.get_by_role("group", name="What is wrong")
    assert summary.evaluate("it => it === document.activeElement")
    assert "422" in page.get_by_role("status").filter(has_text="Unprocessable").inner_text()
    assert amount.get_attribute("aria-invalid") == "true"
    described = (amount.get_attribute("aria-describedby") or "").split()
    assert [page.locator(f"#{each}").inner_text() for each in described] == [
        "more than 0 · at most 10000 · In euros", "input should be greater than 0, got -1",
    ]  # fmt: skip
    page.keyboard.press("Tab")
    assert focused(page).inner_text() == "data.amount"
    page.keyboard.press("Enter")
    assert amount.evaluate("it => it === document.activeElement")
    amount.fill("1")
    page.get_by_label("street", exact=True).fill("x")
    assert run(page)["amount"] == 1
    assert amount.get_attribute("aria-invalid") is None
    # What is not there, and what is not JSON.
    page.get_by_text("JSON", exact=True).first.click()
    page.locator("#json").fill("{}")
    assert run(page) is None
    assert summary.get_by_role("listitem").count() == 5
    page.get_by_text("Form", exact=True).click()
    summary.get_by_role("link", name="data.color").click()
    assert page.get_by_label("color", exact=True).evaluate("it => it === document.activeElement")
    page.get_by_text("JSON", exact=True).first.click()
    page.locator("#json").fill("{")
    page.get_by_text("Form", exact=True).click()
    assert "not JSON" in summary.inner_text()
    assert page.locator("#json").get_attribute("aria-invalid") == "true"
    assert page.get_by_role("radio", name="JSON").is_checked()


def test_examples_and_the_recorded_result(page: Page, alone: Server) -> None:
    visit(page, alone)
    assert run(page) == {"prediction": 0, "name": "setosa"}
    assert page.get_by_text("same as recorded").is_visible()
    page.get_by_label("Recorded examples").select_option(index=1)
    assert run(page)["name"] == "other"
    assert page.get_by_text("The recorded result differs").is_visible()
    # An untyped value gets the control of what the example has.
    page.get_by_role("spinbutton", name="petal width (cm)").fill("1.0")
    page.get_by_role("button", name="Remove petal length (cm)").click()
    assert sent(page) == {"petal width (cm)": 1.0}
    assert run(page) is None
    assert (
        "500 Internal Server Error" in page.get_by_role("group", name="What is wrong").inner_text()
    )


def test_a_list_of_records_and_the_errors_of_some(page: Page, several: Server) -> None:
    visit(page, several, "number")
    page.get_by_label("record", exact=True).fill("3")
    assert run(page) == 9
    page.get_by_text("List", exact=True).click()
    page.get_by_role("button", name="Add item").click()
    focused(page).fill("4.5")
    assert [each.get("result") for each in run(page)] == [9, None]
    assert "1 of 2 records failed" in page.get_by_role("group", name="What is wrong").inner_text()
    wrong = page.get_by_role("spinbutton", name="[1]")
    assert wrong.get_attribute("aria-invalid") == "true"
    assert "/number/batch" in page.get_by_role("region", name="The call as code").inner_text()


def test_a_record_of_any_members_opens_as_json(page: Page, several: Server) -> None:
    """A form of it has no fields."""
    visit(page, several, "many/emea")
    assert page.get_by_label("JSON", exact=True).is_checked()
    assert page.locator("#json").input_value() == "{}"


def test_the_call_as_code_does_the_same(page: Page, alone: Server, tmp_path: Path) -> None:
    visit(page, alone)
    page.get_by_text("JSON", exact=True).first.click()
    value = {**IRIS, 'it\'s $HOME \\ `x` "q" \u00e9\n': None, "t": [True, 1e3]}
    page.locator("#json").fill(json.dumps(value))
    code = page.get_by_role("region", name="The call as code")
    code.filter(has_text="HOME").wait_for()
    for language, command in (("curl", ["sh"]), ("Python", [sys.executable])):
        page.locator("label", has_text=language).click()
        file = tmp_path / language
        file.write_text(code.inner_text().replace("curl ", "curl -sS ", 1), encoding="utf-8")
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
        assert "setosa" in done.stdout, done.stderr


def test_by_keyboard_alone(page: Page, several: Server) -> None:
    visit(page, several)
    for _ in range(12):
        page.keyboard.press("Tab")
        if focused(page).get_attribute("type") == "search":
            break
    page.keyboard.type("square number other/29")
    assert page.locator("tbody tr:visible").count() == 1
    page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("h1")
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page).get_attribute("type") == "number":
            break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or (
            focused(page).get_attribute("type") == "radio"
        )
    page.keyboard.type("12")
    page.keyboard.press("Control+Enter")
    page.get_by_role("region", name="Result", exact=True).wait_for()
    assert page.get_by_role("region", name="Result", exact=True).inner_text() == "144"


def test_several_functions(page: Page, several: Server) -> None:
    visit(page, several)
    assert page.locator("tbody tr").count() == 35
    page.get_by_text("Loads when called").first.wait_for()
    with page.expect_navigation():
        page.get_by_role("link", name="many/emea").click()
    assert page.get_by_role("heading", level=1).inner_text() == "many/emea"
    page.get_by_text("JSON", exact=True).first.click()
    page.locator("#json").fill('{"a": 1, "b": 2}')
    assert run(page) == {"sum": 3}
    with page.expect_navigation():
        page.get_by_role("link", name="All functions").click()
    assert page.locator("tbody tr").count() == 35
    missing = page.goto(f"{several.url}/?function=<b>nope")
    assert missing is not None
    assert missing.status == 404
    assert page.get_by_role("alert").inner_text() == "There is no function <b>nope."


def test_a_call_can_be_cancelled(page: Page, several: Server) -> None:
    visit(page, several, "slow")
    page.get_by_label("record", exact=True).fill("20")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("status").filter(has_text="Cancelled").wait_for()
    assert page.get_by_role("button", name="Run").is_visible()


def test_a_page_of_text_only(page: Page, alone: Server) -> None:
    visit(page, alone)
    assert page.title() == "predict · mfimage"
    assert (
        '<script>document.title = "markup"</script> & <b>bold</b>'
        in page.locator(".lead").inner_text()
    )
    assert page.get_by_role("cell", name="<b>", exact=True).is_visible()
    assert page.locator("b", has_text="bold").count() == 0


def test_charts_of_what_is_called(page: Page, alone: Server) -> None:
    visit(page, alone)
    page.get_by_role("heading", name="Traffic").wait_for()
    for _ in range(3):
        run(page)
    page.get_by_label(re.compile(r"Latency: p50 .*, p99 [\d.]+ m?s")).wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1200)])
def test_colors_follow_the_system_and_nothing_is_wider_than_the_window(
    browser: Browser, several: Server, scheme: Any, width: int
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = visit(context.new_page(), several, "everything")
    page.wait_for_selector("h1")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


class _Embedding(http.server.BaseHTTPRequestHandler):
    page: str

    def do_GET(self) -> None:
        icon = '<link rel="icon" href="data:,">'
        body = f'<!doctype html><title>x</title>{icon}<iframe src="{self.page}"></iframe>'
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


def embedded(browser: Browser, url: str) -> str:
    """Return what a page of another origin shows of this one in a frame."""
    handler = type("Embedding", (_Embedding,), {"page": url})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://localhost:{server.server_address[1]}/")
        page.wait_for_load_state("networkidle")
        text = page.frames[1].locator("body").inner_text()
        context.close()
        server.shutdown()
    return str(text)


def test_only_where_it_is_allowed_another_origin_embeds_the_page(
    browser: Browser, alone: Server, several: Server
) -> None:
    assert "Classify an iris" in embedded(browser, f"{alone.url}/")
    assert "functions" not in embedded(browser, f"{several.url}/")


def test_a_function_that_still_loads(context: BrowserContext, tmp_path: Path) -> None:
    """The page goes on by itself."""
    gate = tmp_path / "gate"
    source = f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)\n" + functions.SCALAR
    gate.touch()  # while the source is read here
    folder = make_folder(tmp_path / "f", source)
    gate.unlink()
    page = context.new_page()
    with running(folder) as server:
        visit(page, server)
        page.get_by_role("status").filter(has_text="still loading").wait_for()
        assert page.get_by_role("button", name="Run").is_disabled()
        gate.touch()
        page.get_by_text("Ready").wait_for()
        page.get_by_label("record", exact=True).fill("5")
        assert run(page) == 25


def test_below_a_prefix(page: Page, alone: Server, context: BrowserContext) -> None:
    """As a proxy that strips it: also where the address has no slash at its end."""

    def forward(route: Any) -> None:
        url = route.request.url.replace("/models/iris", "") or "/"
        route.continue_(url=url)

    context.route("**/models/iris**", forward)
    page.goto(f"{alone.url}/models/iris")
    assert run(page)["name"] == "setosa"
    assert (
        f"{alone.url}/models/iris/predict"
        in page.get_by_role("region", name="The call as code").inner_text()
    )
    assert (
        page.get_by_role("link", name="Docs").get_attribute("href")
        == f"{alone.url}/models/iris/docs"
    )
