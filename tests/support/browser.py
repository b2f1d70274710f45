"""A headless Chromium, by playwright, for the tests marked ``browser``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_NAMES = ("chromium", "google-chrome", "chromium-browser")


def find_chromium() -> str | None:
    """Return where Chromium is: the tests' own setting, or the first on ``PATH``."""
    names = (os.environ.get("MFIMAGE_TEST_CHROMIUM"), *_NAMES)
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a module; its tests cannot call ``asyncio.run``.

    While playwright's synchronous API is used, its event loop counts as running in this thread:
    for a whole session it would break the tests of other modules.
    """
    path = find_chromium()
    if path is None:
        reason = "no Chromium: install Debian's package chromium, or set MFIMAGE_TEST_CHROMIUM"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # /dev/shm is small in containers; Chromium's sandbox refuses root.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile without cookies or storage; what fails in one of its pages fails the test.

    Violations of a Content-Security-Policy are errors of the console. That a response has an error
    status is one, too, but is what some tests are about.
    """
    errors: list[str] = []
    profile = browser.new_context(viewport={"width": 1200, "height": 900})
    profile.on("weberror", lambda error: errors.append(str(error.error)))
    profile.on(
        "console",
        lambda message: (
            errors.append(f"{message.text} ({message.location['url']})")
            if message.type == "error" and not message.text.startswith("Failed to load resource")
            else None
        ),
    )
    profile.set_default_timeout(10_000)
    yield profile
    profile.close()
    assert errors == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """An empty page."""
    return context.new_page()
