"""Make the pictures of the documentation: `make pictures`, or `python docs/pictures.py NAME ...`.

Drawings are the Mermaid fences of the pages; GitHub draws these itself, the site shows the SVGs
made here. Terminal pictures are what real commands print on 80 columns; pictures of pages are
screenshots of what real commands serve and write, in Debian's Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import pty
import re
import shutil
import socket
import struct
import subprocess
import tarfile
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyte
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from tests.support.browser import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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


COLUMNS = 80
# Where the commands run: what they print names it.
WORK = Path(tempfile.gettempdir(), "iris")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("METAFLOW")},
    "METAFLOW_USER": "ada",
    "METAFLOW_HOME": str(WORK / ".metaflowconfig"),
    "COLUMNS": str(COLUMNS),
    "TERM": "xterm-256color",
    "COLORTERM": "truecolor",
}
EXAMPLES = (
    {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2},
    {"sepal_length": 6.7, "sepal_width": 3.0, "petal_length": 5.2, "petal_width": 2.3},
)


def run(*command: str) -> str:
    """Run a command in the folder of the example; return what it printed on stdout."""
    done = subprocess.run(
        command, cwd=WORK, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


@functools.cache
def reference() -> str:
    """Train examples/iris, and bind its typed function."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    for path in (ROOT / "examples/iris").glob("*.py"):
        shutil.copy(path, WORK)
    run("python", "train.py", "run")
    given = [word for each in EXAMPLES for word in ("--example", json.dumps(each))]
    return run("mfimage", "bind", "classify.py:classify", "--task", "IrisFlow", *given)


@functools.cache
def changed() -> str:
    """Bind a function that is a little different."""
    reference()
    code = WORK / "classify.py"
    code.write_text(code.read_text().replace("), 3)}", "), 4)}"))
    return run("mfimage", "bind", "classify.py:classify", "--task", "IrisFlow")


@functools.cache
def images() -> tuple[str, str]:
    """Build an image of each function, with other variables."""
    run("mfimage", "build", reference(), "-t", "iris:1", "--output", "oci:iris-1")
    more = ["--output", "oci:iris-2", "--env", "MFIMAGE_WORKERS=2"]
    run("mfimage", "build", changed(), "-t", "iris:2", *more)
    return "oci:iris-1", "oci:iris-2"


class Screen(pyte.Screen):
    """A terminal that knows faint text, which pyte does not: it counts as italics."""

    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        """Change how characters look from here on."""
        for each in attributes or (0,):
            if each in (2, 22):
                super().select_graphic_rendition(3 if each == 2 else 23, **options)
            if each != 2:
                super().select_graphic_rendition(each, **options)


def shown(command: list[str]) -> Text:
    """Run a command in a terminal; return what the terminal shows at the end."""
    screen = Screen(COLUMNS, 200)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(WORK)
        os.execvpe(command[0], command, ENVIRONMENT)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 200, COLUMNS, 0, 0))
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(terminal, 65536):
            stream.feed(data)
    os.waitpid(child, 0)
    text = Text()
    rows = [screen.buffer[number] for number in range(screen.cursor.y + 1)]
    for row in rows:
        line = Text()
        for column in range(COLUMNS):
            line.append(row[column].data, style(row[column]))
        line.rstrip()
        text.append_text(line).append("\n")
    text.rstrip()
    return text


def style(char: pyte.screens.Char) -> str:
    """Return rich's name of how a character looks."""
    colour = {"default": "", "brown": "yellow"}.get(char.fg, char.fg)
    colour = f"#{colour}" if re.fullmatch("[0-9a-f]{6}", colour) else colour
    colour = re.sub("^bright(?=[a-z])", "bright_", colour)
    return " ".join(
        ["bold"] * char.bold + ["dim"] * char.italics + ["underline"] * char.underscore + [colour]
    ).strip()


def terminal(name: str, *commands: tuple[str, list[str]]) -> None:
    """Write an SVG of commands, each as a reader would type it, and what they print."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for number, (typed, command) in enumerate(commands):
        console.print(Text.assemble("\n" * bool(number), ("$ ", "dim"), (typed, "bold")))
        console.print(shown(command))
    console.print()  # rich cuts the last line
    svg = console.export_svg(title="", unique_id=f"terminal-{name}")
    # Nothing is fetched from elsewhere: the reader's own font.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    (PICTURES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.M))


def mfimage(*words: str) -> list[str]:
    """Return a command of mfimage."""
    return ["mfimage", *words]


def terminals() -> None:
    """Picture the commands that print for people."""
    here = reference()
    place = ["-t", "iris:1", "--output", "oci:iris-1"]
    terminal(
        "build", (f"mfimage build REFERENCE {' '.join(place)}", mfimage("build", here, *place))
    )
    one, two = images()
    terminal(
        "plan", (f"mfimage plan REFERENCE {' '.join(place)}", mfimage("plan", changed(), *place))
    )
    terminal("inspect", (f"mfimage inspect {one}", mfimage("inspect", one)))
    terminal("diff", (f"mfimage diff {one} {two}", mfimage("diff", one, two)))
    terminal("env", ("mfimage env REFERENCE", mfimage("env", here)))


def test() -> None:
    """Picture what the tests of an image print; only they need a Docker engine."""
    one, _ = images()
    terminal("test", (f"mfimage test {one}", mfimage("test", one)))


def picture(page: Page, name: str, **options: Any) -> None:
    """Write a PNG of a page, with 256 colours."""
    with Image.open(io.BytesIO(page.screenshot(**options))) as image:
        clear = options.get("omit_background")
        # Colours of small areas count as much as those of large ones.
        method = Image.Quantize.FASTOCTREE if clear else Image.Quantize.MAXCOVERAGE
        small = image.convert("RGBA" if clear else "RGB").quantize(256, method)
        small.save(PICTURES / f"{name}.png", optimize=True)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve the function; yield the server's address."""
    with socket.socket() as free:
        try:
            free.bind(("127.0.0.1", 8000))
        except OSError:
            free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**ENVIRONMENT, "PORT": str(port), "MFIMAGE_HOST": "127.0.0.1"}
    command = mfimage("serve", reference())
    server = subprocess.Popen(command, cwd=WORK, env=environment, stdout=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/readyz").close()
                break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, scheme: str = "light", width: int = 1000, height: int = 700
) -> Iterator[Page]:
    """Open a page that will be pictured."""
    size = {"width": width, "height": height}
    options = {"viewport": size, "color_scheme": scheme, "device_scale_factor": 1.5}
    with contextlib.closing(browser.new_context(**options)) as context:
        page = context.new_page()
        page.goto(address)
        yield page


def pages() -> None:
    """Picture the page of the server: light after some calls, dark, and with an error."""
    with serving() as address, chromium() as browser:
        for scheme in ("light", "dark"):
            with opened(browser, address, scheme, 1100, 920) as page:
                for _ in range(60):
                    page.get_by_role("button", name="Run", exact=True).click()
                    page.wait_for_timeout(200)
                picture(page, f"page-{scheme}")
        with opened(browser, address) as page:
            page.locator("input[type=number]").nth(1).fill("-1")
            page.get_by_role("button", name="Run", exact=True).click()
            page.wait_for_timeout(500)
            picture(page, "page-error")


def notebook() -> None:
    """Picture how a function shows itself in a notebook."""
    code = "import metaflow, sys; print(metaflow.function_from_json(sys.argv[1])._repr_html_())"
    html = run("python", "-c", code, reference())
    with chromium() as browser, opened(browser, "about:blank", width=860) as page:
        page.set_content(f"<!doctype html><body style='margin:16px'>{html}</body>")
        picture(page, "notebook", full_page=True)


DEMO = """<!doctype html><style>
body { margin: 0; position: relative; width: 1180px; height: 520px }
img { position: absolute; border-radius: 10px }
.terminal { left: 10px; top: 10px; width: 740px }
.page { right: 10px; top: 120px; width: 640px; height: 390px; border: 1px solid #888;
        object-fit: cover; object-position: top }
</style><img class="terminal" src="demo.svg"><img class="page" src="page-light.png">"""


def demo() -> None:
    """Picture the README's first command, and the page that the second gives."""
    reference()
    words = "build classify.py:classify --task IrisFlow -t iris:1 --output oci:iris"
    terminal("demo", (f"mfimage {words}", mfimage(*words.split())))
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=PICTURES) as file:
        file.write(DEMO)
        file.flush()
        with (
            chromium() as browser,
            opened(browser, f"file://{file.name}", "light", 1180, 520) as page,
        ):
            picture(page, "demo", omit_background=True)
    (PICTURES / "demo.svg").unlink()


def documents() -> None:
    """Picture the HTML files: a function's card, what is in an image, what differs."""
    one, two = images()
    run("mfimage", "card", reference(), "-o", "card.html")
    run("mfimage", "inspect", one, "--html", "inspect.html")
    run("mfimage", "diff", one, two, "--html", "diff.html")
    with chromium() as browser:
        for name in ("card", "inspect", "diff"):
            with opened(browser, (WORK / f"{name}.html").as_uri()) as page:
                if name == "inspect":
                    heading = page.get_by_role("heading", name="What is in it")
                    heading.evaluate("each => each.scrollIntoView()")
                page.wait_for_timeout(500)
                picture(page, f"{name}-html")


MAKERS = {
    each.__name__: each for each in (drawings, terminals, pages, notebook, documents, demo, test)
}


def main() -> None:
    """Make the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    for name in parser.parse_args().names or MAKERS:
        print(name, flush=True)
        MAKERS[name]()


if __name__ == "__main__":
    main()
