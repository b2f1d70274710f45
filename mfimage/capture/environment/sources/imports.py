"""What code and artifacts import, at the versions installed here."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from packaging.requirements import Requirement

from mfimage.capture.code.imports import Search, search_imports
from mfimage.capture.environment.sources import base
from mfimage.capture.environment.sources.base import Environment, Maker, Request
from mfimage.capture.lock.uv import NEVER_LOCKED
from mfimage.errors import LockError


def find(request: Request) -> Callable[[], Environment]:
    """Every function imports something."""
    return partial(_describe, request)


def _describe(request: Request) -> Environment:
    """Lock the closure; what the source says is solved while the module is being imported."""
    # Its first use is not safe in threads before Python 3.13; uv and pydantic use it.
    sysconfig.get_config_vars()
    with search_imports(request.code) as search, ThreadPoolExecutor(1) as pool:
        early, expected = _expected(request, search)
        solving = pool.submit(early.lock, expected) if early else None
        request.meanwhile()
        maker = request.maker(search.result())
        lines = _requirements(maker)
        # Running the module rarely shows imports that its source does not.
        lock = solving.result() if solving and lines == expected else maker.lock(lines)
    return maker.environment(lock, "imports")


def _expected(request: Request, search: Search) -> tuple[Maker | None, list[str]]:
    imports = search.expected()
    if imports is None:
        return None, []
    maker = request.maker(imports)
    try:
        return maker, _requirements(maker)
    except LockError:
        return None, []  # running the module may show where something comes from


def _requirements(maker: Maker) -> list[str]:
    installed = maker.imports.installed
    start = maker.imports.distributions()
    absent = []
    for text in base.RUNTIME_REQUIREMENTS:
        name = Requirement(text).name
        if name in installed:
            start.setdefault(name, base.LOADER)
        else:
            absent.append(text)
    names = installed.close(start, maker.platform).keys() - set(NEVER_LOCKED)
    return [*(installed[name].requirement() for name in sorted(names)), *absent]
