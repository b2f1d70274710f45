"""What commands show on a terminal: golden files at 80 columns, and text that stays text."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType

from mfimage.cli import main
from mfimage.cli.about import about
from mfimage.cli.views import diff, env, inspect, plan, verify
from mfimage.cli.views import test as checks
from mfimage.environment import DistributionReport, EnvironmentReport
from mfimage.image.checks.compare import FileChange
from mfimage.image.checks.report import Check, Report
from mfimage.image.find.contents import Change, ImageDiff
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import FoundImage
from mfimage.image.plan.preview import PlannedImage, PlannedPart
from mfimage.inspect import inspect as inspect_it
from mfimage.terminal import console, visible
from mfimage.verify import LayerResult, Verification
from mfimage.views.commands import sample

GOLDEN = Path(__file__).parents[1] / "golden" / "views"
A, B = "a1b2" * 16, "c3d4" * 16


def distribution(name: str, size: int | None, why: str, **more: Any) -> DistributionReport:
    fields = {"version": "1.0", "origin": "index simple", "files": (), **more}
    return DistributionReport(name=name, size=size, why=why, **fields)


ENVIRONMENT = EnvironmentReport(
    function="predict",
    python="3.11.7",
    platform="linux/amd64",
    source="imports",
    lock=f"sha256:{A}",
    system_packages=("libgomp1",),
    distributions=(
        distribution("click", None, "imported by predict.py:3"),
        distribution("mine", 12_300, "required by torch", origin="wheel in the package"),
        distribution("torch", 812_000_000, "named by the pickle of artifact 'model'"),
    ),
)
PLANNED = PlannedImage(
    plan=cast(
        Any,
        SimpleNamespace(
            subject=SimpleNamespace(name="predict"),
            target=SimpleNamespace(name="fastapi"),
            platform="linux/amd64",
        ),
    ),
    before="registry.example.com/team/iris:main",
    parts=(
        PlannedPart(name="base", holds=f"python:3.11-slim@sha256:{A}", size=None, change="same"),
        PlannedPart(
            name="dependencies", holds=f"36 distributions, lock sha256:{A[:12]}", size=None,
            change="changed",
            reasons=("~ numpy 1.26.4 -> 2.1.0", *(f"+ name{n} 1.0" for n in range(9))),
        ),
        PlannedPart(
            name="artifact:model", holds=f"sha256:{A[:12]}", size=52_400_000, change="new",
            reasons=(f"+ model sha256:{A[:12]}",),
        ),
        PlannedPart(name="artifact:old", holds="", size=None, change="removed"),
        PlannedPart(name="runtime", holds="mfimage 0.1.0", size=20_400_000, change="same"),
    ),
)  # fmt: skip
DIFFERENCE = ImageDiff(
    before="iris:1",
    after="oci:out",
    changes=(
        Change(section="distributions", name="httpx", before=None, after="0.28.1"),
        Change(section="distributions", name="numpy", before="1.26.4", after="2.1.0"),
        Change(section="artifacts", name="model", before=f"sha256:{A}", after=f"sha256:{B}"),
        Change(section="env", name="DEBUG", before="1", after=None),
        Change(section="labels", name="about", before="one\ntwo", after="x" * 400),
    ),
    unknown=("code", "system"),
)
REPORT = Report(
    image="double:1",
    id=f"sha256:{A}",
    runner="docker",
    checks=(
        Check(name="function", status="passed", detail=f"double, sha256:{A}", seconds=0.12),
        Check(name="openapi", status="skipped", detail="not a server"),
        Check(
            name="read-only", status="failed", seconds=1.3,
            detail="example 0: result: responded 500\nTraceback\n  the end of its log",
        ),
    ),
    measured={"start_seconds": 0.8, "memory_bytes": 92_100_000},
)  # fmt: skip
VERIFICATION = Verification(
    image="oci:out",
    id=f"sha256:{A}",
    rebuilt=f"sha256:{B}",
    builder="oci",
    layers=(
        LayerResult(name="base", diff_id=f"sha256:{A}", same=True),
        LayerResult(
            name="code", diff_id=f"sha256:{B}", same=False, detail="2 files differ",
            changes=(FileChange(path="/opt/function/code/predict.py", how=("content", "mode")),),
        ),
    ),
    settings=("Labels",),
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "required": ["petals", "kind"],
    "properties": {
        "petals": {"type": "array", "items": {"type": "number"}},
        "kind": {"$ref": "#/$defs/Kind"},
        "note": {"type": "string"},
    },
    "$defs": {"Kind": {"enum": ["wild", "garden"]}},
}
LAYERS = [
    {"digest": None, "size": size, "instruction": name}
    for name, size in (
        ("RUN debian", 120_000_000), ("CMD python", 44_000_000),
        ("mfimage dependencies", 312_300_000), ("mfimage code", 55_100),
    )
]  # fmt: skip
OWN = {
    "image": f"sha256:{A}", "from": "engine", "tags": ["iris:1"], "size": "476.4 MB",
    "platform": "linux/amd64", "created": "1980-01-01T00:00:00Z", "user": "1000:0",
    "python": "3.11", "version": "0.1.0", "layers": LAYERS, "sbom": {"distributions": 36},
    "lineage": {"user": "alice", "git.commit": "42" * 20},
    "labels": {"org.opencontainers.image.description": "Classify an iris."},
}  # fmt: skip
IMAGE = {
    **OWN, "function.name": "predict", "function.digest": f"sha256:{A}", "target": "fastapi",
    "task": "IrisFlow/12/train/3", "schema.input": SCHEMA, "artifacts": {"model": f"sha256:{B}"},
}  # fmt: skip
MANY = {
    **OWN, "functions.digest": f"sha256:{A}", "target": "fastapi",
    "functions": {f"predict/{number:03}": f"sha256:{A}" for number in range(500)},
}  # fmt: skip
STEP = {
    **OWN, "tags": ["team/train:1"], "step.name": "train", "step.digest": f"sha256:{A}",
    "target": "step", "environment.source": "pypi",
}  # fmt: skip
FOREIGN = {
    "image": f"sha256:{A}", "from": "engine", "tags": ["nginx:1"], "size": "164.0 MB",
    "platform": "linux/amd64", "created": "2024-01-01T00:00:00Z", "layers": LAYERS[:2],
}  # fmt: skip
PACKAGE = {
    "reference": f"/data/functions/predict/{A}/function.json", "name": "predict",
    "digest": f"sha256:{A}", "task": "IrisFlow/12/train/3", "description": "Classify an iris.",
    "entrypoint": "predict:predict", "batch": False, "python": "3.11.7",
    "platform": "linux/amd64", "environment": f"imports, lock sha256:{B}", "wheels": [],
    "artifacts": {"model": "sklearn.LogisticRegression, 623 B"}, "parameters": {},
    "input": SCHEMA, "output": {}, "examples": 2, "bound": "2026-11-26T16:46:21Z by alice",
    "git commit": "unknown",
}  # fmt: skip
PIPELINE = {
    "reference": f"/data/functions/shop/{A}/function.json", "name": "shop",
    "digest": f"sha256:{A}", "batch": False, "input": SCHEMA, "output": {},
    "parts": [
        {"name": "clean", "reference": "x", "task": "CleanFlow/7/end/2"},
        {"name": "score", "reference": "y", "task": "ScoreFlow/12/train/3"},
    ],
    "junctions": ["clean -> score: fits"],
}  # fmt: skip
DESCRIBED = {
    "image": (IMAGE, "iris:1"), "several": (MANY, "models:1"), "step": (STEP, "T/1/train"),
    "foreign": (FOREIGN, "nginx:1"), "package": (PACKAGE, PACKAGE["reference"]),
    "pipeline": (PIPELINE, PIPELINE["reference"]),
    "layout": ({**IMAGE, "from": "files", "target": "ray"}, "oci:out"),
}  # fmt: skip
VIEWS: dict[str, RenderableType] = {
    "plan": plan.view([PLANNED]),
    "diff": diff.view(DIFFERENCE),
    "env": env.view(ENVIRONMENT),
    "test": checks.view(REPORT),
    "verify": verify.view(VERIFICATION),
    "inspect-all": inspect.view(IMAGE),
    **{f"inspect-{name}": inspect.view(about(*each)) for name, each in DESCRIBED.items()},
}


def rendered(found: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console(file=file, width=width).print(found, crop=False)
    file.flush()
    return "".join(f"{line.rstrip()}\n" for line in raw.getvalue().decode(encoding).splitlines())


@pytest.mark.parametrize("name", VIEWS)
def test_golden(name: str) -> None:
    text = rendered(VIEWS[name])
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("width", [40, 200])
def test_nothing_is_cut(name: str, width: int) -> None:
    """Every word is there, folded where it must be; only a command is longer than a line."""
    text = rendered(VIEWS[name], width)
    lines = text.splitlines()
    commands = [line for before, line in itertools.pairwise(lines) if before[:1] == "#"]
    assert max(len(line) for line in lines if line not in commands) <= min(width, 120)
    headings = {"version", "why", "content"}
    narrow, words = "".join(text.split()), {*rendered(VIEWS[name], 120).split()} - headings
    # Words of neighboring columns may come between the parts of one that is folded.
    assert [w for w in words if w[:8] not in narrow and not set(w) <= {"━"}] == []
    assert [w for w in words if w[-4:] not in narrow and not set(w) <= {"━"}] == []
    assert "…" not in text


@pytest.mark.parametrize("name", VIEWS)
def test_an_old_encoding_is_enough(name: str) -> None:
    assert rendered(VIEWS[name], encoding="ascii").isascii()


HOSTILE = (
    "[red]x[/red] [link=file:///etc]y[/link] :smile: \x1b[31m\x1b]0;t\x07 a\nforged\r\x9b2J\u202e"
)


def hostile(value: Any, text: str) -> Any:
    """Return data with this text instead of each string, and beside each name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = ("change", "section", "how", "status")
        fields = {
            each.name: getattr(value, each.name) if each.name in kept
            else hostile(getattr(value, each.name), text)
            for each in dataclasses.fields(value)
        }  # fmt: skip
        return dataclasses.replace(value, **fields)
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**hostile(vars(value), "ignored") | {"name": text})
    if isinstance(value, dict):
        kept = ("from", "size", "instruction", "target")
        return {k: v if k in kept else hostile(v, text) for k, v in value.items()} | {text: text}
    if isinstance(value, list | tuple):
        return type(value)(hostile(each, text) for each in value)
    return text if isinstance(value, str) else value


def controls(text: str) -> set[str]:
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf")} - {"\n"}


MADE = {
    "plan": (PLANNED, lambda found: plan.view([found])),
    "diff": (DIFFERENCE, diff.view),
    "env": (ENVIRONMENT, env.view),
    "test": (REPORT, checks.view),
    "verify": (VERIFICATION, verify.view),
}


@pytest.mark.parametrize("name", MADE)
def test_text_stays_text(name: str) -> None:
    found, view = MADE[name]
    found = hostile(found, HOSTILE)
    for text in (rendered(view(found), 120), found.to_text()):
        assert controls(text) == set()
        assert "\nforged" not in text
        assert "[red]x[/red]" in text
        assert ":smile:" in text
        assert r"\x1b[31m" in text


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", DESCRIBED)
def test_labels_stay_text(name: str, everything: bool) -> None:
    found = hostile(DESCRIBED[name][0], HOSTILE)
    first = about(found, HOSTILE)
    text = rendered(inspect.view(found if everything else first), 120)
    assert controls(text) == set()
    assert "[red]x[/red]" in text
    assert "\nforged" not in text


def test_a_label_can_be_anything() -> None:
    odd = {"a": [1]}
    names = ("function.name", "target", "task", "artifacts", "functions", "schema.input", "python")
    for value in (odd, [odd]):
        found = {**IMAGE, **dict.fromkeys(names, value)}
        assert "iris:1" in rendered(inspect.view(about(found, "iris:1")))


@given(st.text(max_size=40))
def test_no_label_acts_on_a_terminal(text: str) -> None:
    found = {**IMAGE, "task": text, "labels": {"org.opencontainers.image.description": text}}
    shown = rendered(inspect.view(about({**found, "schema.input": text}, text)), 300)
    assert controls(shown) == set()
    assert controls(rendered(inspect.view(found), 300)) == set()
    assert controls(visible(text)) == set()
    assert "\n" not in visible(text)


def test_a_label_with_a_line_break_forges_no_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**IMAGE, "task": "x\nid  sha256:forged\x1b[2J", "size": "1 MB"}
    monkeypatch.setattr("mfimage.inspect.inspect", lambda *_, **__: found)
    for arguments in ([], ["--all"]):
        shown = CliRunner().invoke(main, ["inspect", "iris:1", *arguments]).stdout
        assert [line for line in shown.splitlines() if line.startswith("id ")][:1] != [
            "id  sha256:forged"
        ]
        assert r"x\nid  sha256:forged\x1b[2J" in shown


def test_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values in columns, whatever is shown without it; JSON has all of it anyway."""
    monkeypatch.setattr("mfimage.inspect.inspect", lambda *_, **__: IMAGE)
    width = max(map(len, IMAGE))
    lines = [
        f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in IMAGE.items()
    ]
    assert CliRunner().invoke(main, ["inspect", "x", "--all"]).stdout.splitlines() == lines
    shown = CliRunner().invoke(main, ["inspect", "x", "--json"]).stdout
    assert shown == json.dumps(IMAGE, indent=2, sort_keys=True) + "\n"


def test_json_and_plain_lines_need_no_rich() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from mfimage.cli import main\n"
        "import mfimage.inspect, mfimage.environment\n"
        f"mfimage.inspect.inspect = lambda *_, **__: {IMAGE!r}\n"
        "for more in (['--json'], [], ['--all']):\n"
        "    assert not CliRunner().invoke(main, ['inspect', 'x', *more]).exit_code\n"
        "print('rich' in sys.modules)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        (SCHEMA, {"petals": [0.0], "kind": "wild"}),
        ({"type": "object"}, {}),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": ["integer", "null"]}, 0),
        ({"properties": {"a": {"default": 7}}}, {"a": 7}),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}}}}, ...),
        ("not a schema", {}),
        ({"anyOf": 5}, {}),
        ({"type": []}, {}),
    ],
)
def test_a_record_is_made_of_a_schema(schema: Any, record: Any) -> None:
    assert record in (..., sample(schema))


def test_a_label_does_not_replace_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label named like one of our own fields could claim another size or place."""
    labels = {"io.mfimage.size": "1 B", "io.mfimage.from": "engine", "io.mfimage.python": "3.11"}
    place = SimpleNamespace(name="registry", read_sbom=lambda _: None)
    image = FoundImage(name="x", place=cast(Any, place), info=ImageInfo(id=A, labels=labels))
    monkeypatch.setattr("mfimage.image.find.places.find_image", lambda *_, **__: image)
    found = inspect_it("x")
    assert (found["size"], found["from"], found["python"]) == ("0.0 MB", "registry", "3.11")
