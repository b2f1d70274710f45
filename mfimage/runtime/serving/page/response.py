"""What is served -> a page to try it: one response, which runs only its own script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import urllib.parse
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mfimage import __version__
from mfimage.package.spec import CallableSpec, Example, FunctionSpec, PipelineSpec
from mfimage.runtime.layout import TARGET_VARIABLE
from mfimage.runtime.serving.route import HttpRequest, Response, Route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.services import Services

# Of recorded examples, as JSON: the page has those that fit.
_EXAMPLES = 20_000
_CACHED = 32
# Indentation, and lines that are empty or a comment.
_LEFT_OUT = re.compile(r"^ *(?:(?:/\*.*\*/|//.*)?\n)?", re.MULTILINE)

# Named in ``Accept-Encoding``, with a weight above 0 if it has one.
_GZIP = re.compile(
    rb"(?:^|,)[ \t]*gzip[ \t]*(?:;[ \t]*q=(?!0(?:\.0*)?[ \t]*(?:,|$))|,|$)", re.IGNORECASE
)

# The pages of an app, by function; that of None lists the functions.
Pages = MutableMapping[str | None, bytes]


def respond(pages: Pages, services: Services, request: HttpRequest) -> Response:
    """Return the page that a request asks for: ``/``, or ``/?function=NAME``."""
    served = services.served
    query = urllib.parse.parse_qs(request.scope.get("query_string", b"").decode("latin-1"))
    name = query.get("function", [None])[-1]
    if len(served.specs) == 1:
        name = next(iter(served.specs))
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", _policy(framed=services.settings.page == "frame")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
        (b"vary", b"accept, accept-encoding"),
    ]
    status = 200
    if name not in (None, *served.specs):
        status, page = 404, _page(_data(served, request.routes, None, name))
    else:
        if name not in pages:
            if len(pages) >= _CACHED:
                pages.clear()
            pages[name] = _page(_data(served, request.routes, name))
        page = pages[name]
    # A third of the bytes. What others have sent is not in it, so its length gives nothing away.
    if _GZIP.search(request.headers.get(b"accept-encoding", b"")):
        headers.append((b"content-encoding", b"gzip"))
        page = gzip.compress(page, mtime=0)
    return Response(page, headers, status)


# The parts of a page


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _blocks() -> Mapping[str, str]:
    """Return the text of each inline block, without what only its readers need."""
    texts = {"style": _file("style.css") + _file("page.css"), "script": _file("page.js")}
    return {name: _LEFT_OUT.sub("", text) for name, text in texts.items()}


@cache
def _frame() -> tuple[bytes, bytes]:
    """Return what is before and after a page's data."""
    html = _file("page.html")
    for name, text in _blocks().items():
        html = html.replace(f"[[{name}]]", text)
    before, _, after = html.partition("[[data]]")
    return before.encode(), after.encode()


@cache
def _policy(*, framed: bool) -> bytes:
    """Return the Content-Security-Policy: nothing but the page's own blocks, and this server."""
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in _blocks().items()
    }
    directives = [
        "default-src 'none'",
        *(f"{name}-src 'sha256-{digest}'" for name, digest in hashes.items()),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        # Without it any page may embed this one; `*` would leave out those of editors.
        *([] if framed else ["frame-ancestors 'self'"]),
    ]
    return "; ".join(directives).encode()


def _page(data: Mapping[str, Any]) -> bytes:
    before, after = _frame()
    return before + _escape(data) + after


def _escape(data: Any) -> bytes:
    """Return JSON in ASCII that no HTML parser takes for markup."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


# The data


def _data(
    served: Served, routes: Sequence[Route], name: str | None, missing: str | None = None
) -> dict[str, Any]:
    return {
        "version": __version__,
        "count": len(served.specs),
        "title": served.title,
        "missing": missing,
        "paths": _paths(routes, name),
        "function": None if name is None else _function(served.specs[name]),
        "functions": _listed(served) if name is None else None,
        "image": _image(),
    }


def _paths(routes: Sequence[Route], function: str | None) -> dict[str, str | None]:
    """Return where the page finds what it needs, relative to itself; None for what is not here."""
    found: dict[tuple[str, str | None], str] = {}
    for route in routes:
        found.setdefault((route.name, route.function), route.path)
    root = found["about", None].rstrip("/")
    own = {"call": ("record", function), "batch": ("batch", function)}
    shared = {each: (each, None) for each in ("docs", "openapi", "metrics", "readyz", "functions")}
    paths = {name: found.get(key) for name, key in {**own, **shared}.items()}
    return {
        name: None if path is None else path.removeprefix(root).lstrip("/")
        for name, path in paths.items()
    }


def _listed(served: Served) -> list[dict[str, Any]]:
    return [
        {"name": name, "task": spec.task, "summary": _summary(spec)}
        for name, spec in served.specs.items()
    ]


def _summary(spec: CallableSpec) -> str:
    return (spec.description.strip().splitlines() or [""])[0]


def _function(spec: CallableSpec) -> dict[str, Any]:
    examples = _examples(spec.examples)
    found = {
        "name": spec.name,
        "description": spec.description.strip(),
        "kind": spec.kind,
        "batch": spec.batch,
        "digest": spec.digest,
        "task": spec.task,
        "input": spec.input_schema,
        "output": spec.output_schema,
        "examples": examples,
        "omitted": len(spec.examples) - len(examples),
    }
    if isinstance(spec, PipelineSpec):
        found["parts"] = [{"name": part.name, "digest": part.digest} for part in spec.parts]
    if isinstance(spec, FunctionSpec):
        lineage, environment = spec.lineage, spec.environment
        found |= {
            "user": lineage.user,
            "commit": lineage.git_commit,
            "created": lineage.created,
            "metaflow": lineage.metaflow_version,
            "entrypoint": spec.entrypoint,
            "artifacts": [
                {"name": name, "size": each.size, "type": each.type}
                for name, each in spec.artifacts.items()
            ],
            # Names only: values may be private.
            "parameters": [*spec.parameters],
            "environment": {
                "python": environment.python,
                "platform": environment.platform,
                "source": environment.source,
                "system": environment.system_packages,
                "reasons": environment.reasons,
            },
        }
    return found


def _examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    found, size = [], 0
    for each in examples:
        plain = {"input": each.input, "output": each.output}
        length = len(_escape(plain))
        if size + length <= _EXAMPLES:
            size += length
            found.append(plain)
    return found


@cache
def _image() -> dict[str, Any]:
    """Return what this process knows of where it runs."""
    found = {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
        if each.metadata["Name"]
    }
    return {
        "target": os.environ.get(TARGET_VARIABLE),
        "python": platform.python_version(),
        "platform": f"{platform.system().lower()}/{platform.machine()}",
        "distributions": sorted(found.items(), key=lambda item: item[0].lower()),
    }
