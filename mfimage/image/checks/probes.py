"""Every endpoint that is not the function's own, and every way to call that one wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.image.checks.client import Answer, ask
from mfimage.image.checks.report import Failed, Recorder
from mfimage.image.checks.runner import Address
from mfimage.package.spec import FunctionSpec

PROBLEM = "application/problem+json"
_NOWHERE = "/no-such-path-of-any-function"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One request, and what the answer has to be.

    Attributes
    ----------
    name : str
        Of the check.
    method, path : str
        What is asked.
    status : int
        Of the answer.
    type : str
        The answer's media type.
    body, sent_type : bytes or None, str
        What is sent.
    holds : callable or None
        Says what else is wrong with the answer, or returns what is right.
    """

    name: str
    path: str
    status: int = 200
    type: str = "application/json"
    method: str = "GET"
    body: bytes | None = None
    sent_type: str = "application/json"
    holds: Callable[[Answer], str] | None = None

    def __call__(self, address: Address) -> str:
        """Ask; return what was found."""
        answer = ask(address, self.method, self.path, self.body, type=self.sent_type)
        asked = f"{self.method} {self.path}"
        if answer.status != self.status:
            raise Failed(f"{asked} answers {answer.problem}; expected {self.status}")
        if answer.type != self.type:
            raise Failed(f"{asked} answers {self.status} as {answer.type!r}; expected {self.type}")
        if self.type == PROBLEM and answer.json().get("status") != self.status:
            raise Failed(f"{asked}: the document of a {self.status} does not say its status")
        return self.holds(answer) if self.holds else f"{asked}: {self.status}"


def probes(spec: FunctionSpec) -> tuple[Probe, ...]:
    """Return the probes of a function's server."""
    record = f"/{spec.name}"
    post: dict[str, Any] = {"path": record, "method": "POST", "type": PROBLEM}
    return (
        Probe(name="healthz", path="/healthz"),
        Probe(name="readyz", path="/readyz"),
        Probe(name="metrics", path="/metrics", type="text/plain", holds=_metrics),
        Probe(name="openapi", path="/openapi.json", holds=lambda answer: _openapi(answer, spec)),
        Probe(name="identity", path="/", holds=lambda answer: _identity(answer, spec)),
        Probe(name="unknown-path", path=_NOWHERE, status=404, type=PROBLEM),
        Probe(name="malformed-body", status=422, body=b"{", **post),
        Probe(name="content-type", status=415, body=b"a,b", sent_type="text/csv", **post),
    )


def call_probes(recorder: Recorder, address: Address, spec: FunctionSpec) -> None:
    """Call every probe."""
    for probe in probes(spec):
        recorder.run(probe.name, lambda probe=probe: probe(address))  # type: ignore[misc]


def _metrics(answer: Answer) -> str:
    text = answer.body.decode(errors="replace")
    named = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    ours = {name for name in named if name.startswith("mfimage_")}
    if not ours:
        raise Failed("GET /metrics has no line that starts with mfimage_")
    return f"{len(ours)} metrics"


def _identity(answer: Answer, spec: FunctionSpec) -> str:
    found = answer.json()
    for name, expected in (("name", spec.name), ("digest", spec.digest), ("pathspec", spec.task)):
        if not isinstance(found, dict) or found.get(name) != expected:
            raise Failed(f"GET / does not say that its {name} is {expected}")
    return spec.digest[:19]


def _openapi(answer: Answer, spec: FunctionSpec) -> str:
    document = answer.json()
    if not isinstance(document, dict) or not str(document.get("openapi", "")).startswith("3."):
        raise Failed("GET /openapi.json: it does not say which OpenAPI 3 it is")
    operations = document.get("paths") or {}
    for path in (f"/{spec.name}", f"/{spec.name}/batch"):
        if "post" not in operations.get(path, {}):
            raise Failed(f"GET /openapi.json: POST {path} is missing")
    lost = [ref for ref in _references(document) if not _leads_somewhere(document, ref)]
    if lost:
        raise Failed(f"GET /openapi.json: the reference {lost[0]} leads nowhere")
    return f"OpenAPI {document['openapi']}, {len(operations)} paths"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(target := value.get("$ref"), str):
            yield target
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _leads_somewhere(document: Any, reference: str) -> bool:
    if not reference.startswith("#/"):
        return reference == "#"
    found = document
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return True
