"""Make the pictures of the documentation: `make pictures`, or `python docs/pictures.py NAME ...`.

Drawings are the Mermaid fences of the pages; GitHub draws these itself, the site shows the SVGs
made here. Terminal pictures are what real commands print on 80 columns; pictures of pages are
screenshots of what real commands serve and write, in Debian's Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from tests.support.browser import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PICTURES = DOCS / "pictures"
MERMAID = "mermaid@11"

# Mermaid needs colours to calculate with. In the SVG they become the theme's.
COLOURS = {
    "#fdf6e3": "var(--color-background-secondary)",
    "#93a1a1": "var(--color-foreground-border)",
    "#073642": "var(--color-foreground-primary)",
    "#586e75": "var(--color-foreground-secondary)",
    "#eee8d5": "var(--color-background-primary)",
}
FILL, BORDER, TEXT, LINE, PAPER = COLOURS
SETTINGS = {
    "startOnLoad": False,
    "theme": "base",
    "deterministicIds": True,
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False, "useMaxWidth": True, "padding": 12},
    "themeVariables": {
        "primaryColor": FILL,
        "primaryBorderColor": BORDER,
        "primaryTextColor": TEXT,
        "secondaryColor": FILL,
        "tertiaryColor": FILL,
        "lineColor": LINE,
        "textColor": TEXT,
        "edgeLabelBackground": PAPER,
        "fontFamily": "system-ui, sans-serif",
        "fontSize": "15px",
    },
}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium."""
    path = find_chromium()
    if path is None:
        raise SystemExit("no Chromium: install Debian's package chromium")
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def drawings() -> None:
    """Draw the Mermaid fences that have no picture yet; remove pictures without a fence."""
    folder = PICTURES / "drawings"
    texts = {}
    for page in sorted(DOCS.rglob("*.md")):
        for text in re.findall(r"^```mermaid\n(.*?)\n```$", page.read_text(), re.M | re.S):
            texts[hashlib.sha256(text.encode()).hexdigest()[:12]] = text
    for path in folder.glob("*.svg"):
        if path.stem not in texts:
            path.unlink()
    missing = {key: text for key, text in texts.items() if not (folder / f"{key}.svg").exists()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=work, check=True, stdout=-3)
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            archive.extract("package/dist/mermaid.min.js", work, filter="data")
        page = browser.new_page()
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(path=Path(work, "package/dist/mermaid.min.js"))
        page.evaluate("settings => mermaid.initialize(settings)", SETTINGS)
        for key, text in missing.items():
            draw = "async ([id, text]) => (await mermaid.render(id, text)).svg"
            svg = page.evaluate(draw, [f"drawing-{key}", text])
            for colour, variable in COLOURS.items():
                svg = re.sub(colour, variable, svg, flags=re.I)
            (folder / f"{key}.svg").write_text(svg + "\n")


MAKERS = {each.__name__: each for each in (drawings,)}


def main() -> None:
    """Make the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    for name in parser.parse_args().names or MAKERS:
        print(name)
        MAKERS[name]()


if __name__ == "__main__":
    main()
