"""The page that a browser gets from ``/``: when, with which headers, and what is in it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from mfimage.package.spec import ArtifactRef, Example, FunctionRef, PipelineSpec, sha256_digest
from mfimage.runtime.layout import RUNTIME_FILES
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.serving.contracts.status import wants_page
from mfimage.runtime.serving.page import response
from tests.runtime.apps import served
from tests.runtime.packages import live
from tests.test_architecture import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
EVIL = "</script><script>alert('&')</script>\u2028<!--"


def greet(data: dict[str, str]) -> str:
    """Greet someone."""
    return f"hello {data['name']}"


def get(
    path: str = "/", fn: Any = None, accept: str = HTML, headers: Mapping[str, str] = {},
    **settings: Any,
) -> httpx.Response:  # fmt: skip
    async def run() -> httpx.Response:
        load = settings.pop("load", True)
        async with served(fn or live(greet), load=load, **settings) as it:
            return await it.client.get(path, headers={"accept": accept, **headers})

    return asyncio.run(run())


def data_of(page: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (HTML, True),
        # Firefox, Safari
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html", True),
        ("TEXT/HTML; q=1.0", True),
        ("text/html, application/json", True),
        ("text/html;q=0.5, application/json", False),
        ("text/html;q=0, application/xhtml+xml", False),
        ("text/html, application/json;q=0.9", True),
        # Java's URLConnection, before and since 2021
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", False),
        ("text/html, image/gif, image/jpeg, */*; q=0.2", False),
        ("application/json", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        ("text/html;q=x", False),
    ],
)
def test_who_gets_the_page(accept: str, wanted: bool) -> None:
    assert wants_page(accept.encode()) == wanted
    found = get(accept=accept)
    assert found.status_code == 200
    expected = "text/html; charset=utf-8" if wanted else "application/json"
    assert found.headers["content-type"] == expected
    assert found.headers["vary"].startswith("accept")


def test_the_page_runs_only_its_own_script_and_asks_only_its_own_server() -> None:
    found = get()
    policy = dict(
        each.split(" ", 1) for each in found.headers["content-security-policy"].split("; ")
    )
    blocks = dict(re.findall(r"<(style|script)(?: type=\"module\")?>(.*?)</\1>", found.text, re.S))
    for name, text in blocks.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'self'",
    }  # fmt: skip
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert len(blocks) == 2
    # XML's name for SVG, in the icon, is no address.
    text = found.text.replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//\w+[.\w]*", text) == []


def test_a_page_that_others_may_embed() -> None:
    assert "frame-ancestors" not in get(page="frame").headers["content-security-policy"]


def test_the_page_turned_off() -> None:
    found = get(page="0")
    assert found.json()["name"] == "greet"
    assert "vary" in found.headers


def test_head_has_the_headers_of_the_page() -> None:
    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with served(live(greet)) as it:
            headers = {"accept": HTML}
            return (
                await it.client.head("/", headers=headers),
                await it.client.get("/", headers=headers),
            )

    head, whole = asyncio.run(run())
    assert head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_the_page_is_at_most_60_kb_without_the_functions_data() -> None:
    page = get().content
    start, end = page.index(b'id="data">'), page.index(b"</script>")
    assert len(page) - (end - start) <= 60_000


@pytest.mark.parametrize(
    ("encodings", "sent"), [("gzip, br", "gzip"), ("gzip;q=0", None), ("", None)]
)
def test_the_page_is_compressed_for_who_can_read_it(encodings: str, sent: str | None) -> None:
    found = get(headers={"accept-encoding": encodings})
    assert found.headers.get("content-encoding") == sent
    assert (int(found.headers["content-length"]) < 25_000) == (sent is not None)
    assert found.text.startswith("<!doctype html>")
    assert "accept-encoding" in found.headers["vary"]


def test_the_page_is_there_while_the_function_loads() -> None:
    assert get(load=False).status_code == 200
    assert get(load=False, accept="*/*").status_code == 503


def with_spec(**changes: Any) -> LiveFunction:
    fn = live(greet)
    fn.spec = dataclasses.replace(fn.spec, **changes)
    return fn


def test_data_never_becomes_markup() -> None:
    ref = ArtifactRef(digest=sha256_digest(b""), size=1, encoding="pickle-v4", type=EVIL)
    examples = (Example(input={"name": EVIL}, output=EVIL),)
    fn = with_spec(description=EVIL, artifacts={EVIL: ref}, examples=examples)
    page = get(fn=fn).text
    found = data_of(page)["function"]
    assert found["description"] == EVIL
    assert found["artifacts"][0]["name"] == EVIL
    assert found["examples"][0]["input"] == {"name": EVIL}
    assert "alert(" not in page.replace(r"alert('\u0026')", "")
    assert page.count("<script") == 2
    assert "\u2028" not in page


def test_the_script_has_no_way_to_make_markup_of_text() -> None:
    script = (ROOT / "mfimage/runtime/serving/page/page.js").read_text()
    for name in (
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(",
        "createContextualFragment", "DOMParser", "srcdoc", "setHTML",
    ):  # fmt: skip
        assert name not in script


def test_nothing_private_is_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    page = get(fn=with_spec(parameters={"threshold": "hidden-value"})).text
    assert "a-secret" not in page
    assert "hidden-value" not in page
    assert data_of(page)["function"]["parameters"] == ["threshold"]


def test_examples_that_are_too_large_stay_away() -> None:
    texts = ("small", "x" * 30_000, "also small")
    examples = tuple(Example(input={"name": text}, output=text) for text in texts)
    found = data_of(get(fn=with_spec(examples=examples)).text)["function"]
    assert [each["output"] for each in found["examples"]] == ["small", "also small"]
    assert found["omitted"] == 1


@pytest.mark.parametrize("path", ["/", "/models/iris/", "/?function=other"])
def test_paths_are_relative(path: str) -> None:
    found = data_of(get(path, root_path="/models/iris").text)["paths"]
    assert found == {
        "call": "greet", "batch": "greet/batch", "docs": "docs", "openapi": "openapi.json",
        "metrics": "metrics", "readyz": "readyz", "functions": None,
    }  # fmt: skip


def paths_below(root: str) -> Mapping[str, Any]:
    """Return the paths of the page behind Ray Serve."""
    from mfimage.runtime.serving.app import App
    from mfimage.runtime.serving.contract import mounted

    async def run() -> Any:
        async with served(live(greet)) as it:
            app = App(it.services, mounted(it.services.served, root), access=None)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.get(root or "/", headers={"accept": HTML})

    return data_of(asyncio.run(run()).text)["paths"]


def test_behind_ray_serve_there_are_fewer_paths() -> None:
    alone = {"metrics": None, "functions": None}
    assert paths_below("") == {
        **alone, "call": "greet", "batch": "greet/batch", "docs": "docs",
        "openapi": "openapi.json", "readyz": "readyz",
    }  # fmt: skip
    assert paths_below("/models/a") == {
        **alone, "call": "", "batch": "batch", "docs": "docs", "openapi": "openapi.json",
        "readyz": None,
    }  # fmt: skip


def test_the_parts_of_a_pipeline_are_in_its_page() -> None:
    fn = live(greet)
    parts = tuple(FunctionRef(name=name, digest=fn.spec.digest) for name in ("tokenize", "score"))
    fn.spec = PipelineSpec(name="greet", task="Flow/1/a/1, Flow/2/b/2", parts=parts)
    found = data_of(get(fn=fn, load=False).text)["function"]
    assert [part["name"] for part in found["parts"]] == ["tokenize", "score"]


def test_the_page_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = response._page
    monkeypatch.setattr(response, "_page", lambda data: made.append(1) or make(data))

    async def run() -> None:
        async with served(live(greet)) as it:
            for _ in range(3):
                await it.client.get("/", headers={"accept": HTML})

    asyncio.run(run())
    assert made == [1]


def test_images_and_wheels_have_the_files_of_the_page() -> None:
    folder = ROOT / "mfimage/runtime/serving/page"
    files = {path for path in folder.iterdir() if path.suffix in (".css", ".html", ".js")}
    assert len(files) == 4
    assert files <= {path for each in RUNTIME_FILES for path in ROOT.glob(each)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["mfimage.runtime.serving.page"]
    assert files == {path for each in patterns for path in folder.glob(each)}
