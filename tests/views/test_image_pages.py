"""What is in an image, and how two differ, as pages: one file, escaped, small, without requests."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import PackageError
from mfimage.image.find.files import LayerFiles, StoredFiles, read_file, read_files
from mfimage.image.find.places import find_image
from mfimage.inspect import card_page, compare_page, inspect_page
from mfimage.views.image import image_page
from mfimage.views.treemap import MOST_FILES, installed, tree
from tests.image.sample import Sample, make_sample
from tests.image.tiny import build_layout, write_base

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "</script><script>alert(1)</script>"
SITE = "opt/venv/lib/python3.11/site-packages"
INFO = f"{SITE}/some_name-1.2.dist-info"
RECORD = """some_name/__init__.py,sha256=x,9
"some_name/a,""b"".so",sha256=x,5000
../../../bin/some,sha256=x,7
some_name-1.2.dist-info/RECORD,,
"""
METADATA = f"Name: some-name\nLicense: {EVIL}\n\nLicense-Expression: not a field\n"
FILES = {
    f"{SITE}/some_name/__init__.py": b"x" * 9,
    f"{SITE}/some_name/__pycache__/__init__.cpython-311.pyc": b"x" * 20,
    f'{SITE}/some_name/a,"b".so': b"x" * 5000,
    "opt/venv/bin/some": b"x" * 7,
    f"{INFO}/RECORD": RECORD.encode(),
    f"{INFO}/METADATA": METADATA.encode(),
    f"usr/share/{EVIL.replace('/', '|')}": b"x" * 300,
    "etc/base": b"",
}


class Html(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag if tag != "script" else f"script {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.content[self._open] = self.content.get(self._open, "") + data

    @property
    def tree(self) -> list[Any]:
        return json.loads(self.content["script application/json"])


def check_page(text: str) -> Html:
    """Check what each page promises: one file, and its own style and script, alone allowed."""
    page = Html(text)
    names = [name for name, _ in page.tags]
    assert not {"link", "iframe", "img", "object", "form", "base"} & {*names}
    attributes = [(key, value or "") for _, attrs in page.tags for key, value in attrs.items()]
    assert not [key for key, _ in attributes if key.startswith("on") or key in ("style", "src")]
    policy = next(str(a["content"]) for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for kind in ("style", "script"):
        if kind in page.content:
            digest = base64.b64encode(hashlib.sha256(page.content[kind].encode()).digest())
            assert f"{kind}-src 'sha256-{digest.decode()}'" in policy
    assert names.count("style") == 1
    assert [a.get("type") for name, a in page.tags if name == "script"] in (
        ["application/json", None], ["application/json"], [None], [],
    )  # fmt: skip
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def sample(folder: Path) -> Sample:
    sample = make_sample(folder / "blobs")
    sample.description = f"Predict {EVIL}."
    sample.artifacts = {"model": b"m" * 3000, EVIL: b"names"}
    return sample


@pytest.fixture(scope="module")
def image(folder: Path, sample: Sample) -> str:
    base = write_base(folder / "base", files=FILES)
    labels = {"evil": EVIL}
    return build_layout(base, sample, folder / "image", labels=labels, env={"GONE": "1"})[0]


@pytest.fixture(scope="module")
def changed(folder: Path, sample: Sample, image: str) -> str:
    del image  # of the same base
    other = replace(sample, artifacts={"model": b"m" * 4000, EVIL: b"names", "new": b"n"})
    base = write_base(folder / "base", files=FILES)
    return build_layout(base, other, folder / "changed", env={"EVIL": EVIL})[0]


@pytest.fixture(scope="module")
def page_of_image(image: str) -> str:
    return inspect_page(image)


def find(node: list[Any], *path: str) -> list[Any]:
    for name in path:
        node = next(each for each in node[2] if each[0] == name)
    return node


def test_all_bytes_of_an_image_are_in_the_tree(image: str, page_of_image: str) -> None:
    page = check_page(page_of_image)
    root = page.tree
    assert root[:2] == [image, sum(layer[1] for layer in root[2])]
    kinds = ["artifacts", "artifacts", "code", "dependencies", "dependencies", "runtime"]
    assert sorted(layer[3] for layer in root[2]) == kinds
    first = next(layer for layer in root[2] if layer[0] == "1 dependencies")
    assert first[1] == sum(map(len, FILES.values()))


def test_files_are_grouped_by_distribution(page_of_image: str) -> None:
    """Compiled files and scripts, too."""
    root = check_page(page_of_image).tree
    found = find(root, "1 dependencies", "some-name 1.2")
    assert found[1] == 9 + 20 + 5000 + 7 + len(RECORD)
    assert find(found, "some_name", 'a,"b".so') == ['a,"b".so', 5000]
    assert find(found, "bin", "some") == ["some", 7]
    assert "some-name</td>" in page_of_image


def test_artifacts_have_their_names(page_of_image: str) -> None:
    names = [each[0] for layer in check_page(page_of_image).tree[2] for each in layer[2]]
    assert any(name == "artifact model" for name in names), names


@pytest.mark.parametrize("what", ["inspect", "diff", "card"])
def test_everything_shown_is_escaped(what: str, image: str, changed: str, page_of_image: str):
    """Docstring, artifact, label, variable, file in a layer, licence: none becomes an element."""
    pages = {
        "inspect": lambda: page_of_image,
        "diff": lambda: compare_page(image, changed),
        "card": lambda: card_page(image),
    }
    text = pages[what]()
    check_page(text)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


def test_an_sbom_is_escaped(image: str) -> None:
    found = find_image(image)
    with found.open() as stored:
        assert stored.layers
    part = {"properties": [{"name": "mfimage:kind", "value": "distribution"}], "version": EVIL}
    sbom = {"bomFormat": "CycloneDX", "components": [{"name": EVIL, **part}]}
    text = image_page(found, StoredFiles(layers=()), json.dumps(sbom).encode())
    check_page(text)
    assert EVIL not in text
    cell = '<td class="text">&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;</td>'
    assert cell * 2 in text


def test_a_damaged_layer_is_refused(folder: Path, image: str) -> None:
    found = find_image(image)
    with found.open() as stored, pytest.raises(PackageError, match="damaged"):
        first = replace(stored.layers[0], diff_id=stored.layers[1].diff_id)
        read_files(replace(stored, layers=(first,)), keep=lambda _: True)


@pytest.mark.parametrize("damage", ["cut", "changed", "no header"])
def test_a_layer_that_cannot_be_read_is_named(damage: str, image: str) -> None:
    with find_image(image).open() as stored:
        layer = stored.layers[-2]  # compressed
        with layer.open() as file:
            data = bytearray(file.read())
        if damage == "changed":
            data[len(data) // 2] ^= 0xFF
        elif damage == "no header":
            data[2:6] = b"\xff" * 4
        broken = replace(layer, open=lambda: io.BytesIO(data[: -9 if damage == "cut" else None]))
        with pytest.raises(PackageError, match=layer.digest):
            read_files(replace(stored, layers=(broken,)), keep=lambda _: True)
        with pytest.raises(PackageError, match=layer.digest):
            read_file(broken, "/no/such/file")


def layer_of(files: Mapping[str, int], **kept: bytes) -> LayerFiles:
    digest = f"sha256:{'a' * 64}"
    return LayerFiles(diff_id=digest, digest=digest, stored=1, files=files, kept=kept)


def test_many_files_make_a_small_page(image: str) -> None:
    """What is too small to see is counted together, and nothing is lost."""
    files = {f"usr/lib/{n % 300}/package-{n % 7}/module_{n}.py": n for n in range(30_000)}
    start = time.monotonic()
    text = image_page(find_image(image), StoredFiles(layers=(layer_of(files),)), None)
    assert time.monotonic() - start < 8
    assert len(text) < 1_000_000
    root = check_page(text).tree
    assert root[1] == sum(files.values())
    assert [layer[3] for layer in root[2]] == ["base"]

    def leaves(node: list[Any]) -> list[list[Any]]:
        return [each for child in node[2] for each in leaves(child)] if len(node) > 2 else [node]

    named = [leaf for leaf in leaves(root) if leaf[0] != "smaller files"]
    assert MOST_FILES - 10 <= len(named) <= MOST_FILES
    assert sum(leaf[1] for leaf in leaves(root)) == root[1]


def test_licences_as_metadata_has_them() -> None:
    texts = {
        "a": b"License-Expression: MIT\nLicense: long\nClassifier: License :: OSI Approved :: X\n",
        "b": b"Classifier: License :: OSI Approved :: BSD License\nLicense: text\n",
        "c": b"License: " + b"words " * 40,
        "d": b"Name: d\n\nLicense: in the description\n",
    }
    kept = {f"s/{n}-1.dist-info/{file}": data for n, text in texts.items()
            for file, data in (("METADATA", text), ("RECORD", f"{n}.py,,\n".encode()))}  # fmt: skip
    layer = layer_of({f"s/{name}.py": 1 for name in texts})
    found = installed(StoredFiles(layers=(replace(layer, kept=kept),)))
    licences = {each.name: each.licence for each in found}
    assert licences | {"c": ""} == {"a": "MIT", "b": "BSD License", "c": "", "d": ""}
    assert len(licences["c"]) == 60
    assert {each.size for each in found} == {1}


def test_a_tree_of_nothing() -> None:
    assert tree("empty", StoredFiles(layers=()), {}).to_json() == ["empty", 0]


def rows(text: str, kind: str) -> list[str]:
    found = re.findall(rf'<tr class="{kind}">(.*?)</tr>', text)
    return [re.sub(r"<.*?>", " ", row) for row in found]


def test_what_changed_between_two_images(image: str, changed: str) -> None:
    said: list[str] = []
    text = compare_page(image, changed, say=said.append)
    check_page(text)
    assert any("= " in row and "dependencies" in row for row in rows(text, "same"))
    (model,) = (row for row in rows(text, "changed") if " model " in row)
    assert "3.0 kB" in model
    assert "+1.0 kB" in model
    assert any("+ " in row and " new " in row for row in rows(text, "added"))
    assert any("- " in row and " GONE " in row for row in rows(text, "removed"))
    layers = len(find_image(image).layers)
    assert len(said) < 2 * layers, "a layer that both have is read once"
    same = compare_page(image, image)
    assert "do not differ" in same
    assert not rows(same, "added") + rows(same, "changed") + rows(same, "removed")


def test_the_card_of_an_image_reads_its_last_layer_only(image: str) -> None:
    text = card_page(image)
    assert "Size by layer" in text
    assert "MyTrainFlow" in text


def test_files_are_written_whole(image: str, tmp_path: Path) -> None:
    run = CliRunner().invoke
    path = tmp_path / "page.html"
    for command in (
        ["inspect", image, "--html", str(path)],
        ["diff", image, image, "--html", str(path)],
        ["card", image, "-o", str(path)],
    ):
        done = run(main, command)
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        assert path.read_text().endswith("</html>")
        assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
        assert run(main, [*command[:-1], "-"]).stdout == path.read_text()
    absent = tmp_path / "absent" / "page.html"
    reason = f"{absent} cannot be written: No such file or directory"
    done = run(main, ["card", image, "-o", str(absent)])
    assert (done.exit_code, done.stderr) == (1, f"error: output: {reason}\n")
    # No layer was read before.
    done = run(main, ["inspect", image, "--html", str(absent)])
    assert (done.exit_code, done.stderr) == (1, f"error: html: {reason}\n")


@pytest.mark.browser
def test_the_treemap_by_mouse_and_keyboard(page_of_image: str, page: Page, tmp_path: Path) -> None:
    """No violation of the policy, which the fixture would report, either."""
    path = tmp_path / "image.html"
    path.write_text(page_of_image)
    page.goto(f"file://{path}")
    treemap, crumbs, under = (page.locator(f"#{name}") for name in ("treemap", "crumbs", "under"))
    layer = treemap.get_by_role("button", name="1 dependencies, ")
    layer.first.hover(position={"x": 10, "y": 6})
    assert "1 dependencies: " in under.inner_text()
    layer.first.click(position={"x": 10, "y": 6})
    assert crumbs.inner_text().split("\n")[-1] == "1 dependencies"
    page.keyboard.press("ArrowRight")
    assert "some-name 1.2 / some_name" in under.inner_text()
    page.keyboard.press("Enter")
    assert "some_name" in crumbs.inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert "dependencies" not in crumbs.inner_text()
    page.get_by_label("Search").fill("no such name")
    assert page.locator("#packages tbody tr:visible").count() == 0
    assert page.get_by_text("0 of 1").is_visible()
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_an_image_that_mfimage_did_not_build(folder: Path, image: str) -> None:
    """No SBOM, no lineage, nothing to say of what its layers are for."""
    del image  # has made the base
    text = inspect_page(f"oci:{folder / 'base'}")
    page = check_page(text)
    assert [layer[0] for layer in page.tree[2]] == ["1 layer"]
    assert "The image has no SBOM" in text
    assert "Where it comes from" not in text
