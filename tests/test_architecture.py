"""The house of DESIGN: floors, who owns which dependency, and how little ships in an image."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.projects import write

ROOT = Path(__file__).parents[1]

# The most specific prefix says the floor; a module imports from floors below its own, and from
# its own room on the same floor. JsonFunction binds and loads: load.py stands above bind.py.
FLOORS = {
    "mfimage": 0,
    "mfimage.errors": 0,
    "mfimage.files": 1,
    "mfimage.masking": 1,
    "mfimage.sizes": 1,
    "mfimage.templating": 1,
    "mfimage.terminal": 1,
    "mfimage.package": 2,
    "mfimage.function": 2,
    "mfimage.capture": 3,
    "mfimage.runtime": 3,
    "mfimage.image": 4,
    "mfimage.backends": 4,
    "mfimage.manifests": 5,
    "mfimage.bind": 5,
    "mfimage.copy": 4,
    "mfimage.compose": 5,
    "mfimage.steps": 5,
    "mfimage.views": 5,
    "mfimage.serve": 5,
    "mfimage.load": 6,
    "mfimage.build": 6,
    "mfimage.push": 6,
    "mfimage.verify": 6,
    "mfimage.inspect": 6,
    "mfimage.run": 6,
    "mfimage.environment": 6,
    "mfimage.cli": 7,
    "mfimage_toplevel": 7,
    "mfextinit_mfimage": 7,
}
# One module, or one room, owns each outside dependency.
OWNERS = {
    "obstore": "mfimage.package.storage",
    # Credentials and endpoints for obstore; clients for Metaflow's own datastore.
    "boto3": ("mfimage.package.storage.", "mfimage.capture.task.datastore."),
    "google": "mfimage.package.storage",
    "azure": "mfimage.package.storage",
    "botocore": ("mfimage.package.storage.", "mfimage.capture.task.datastore."),
    "docker": "mfimage.image",
    "isal": "mfimage.image.oci.compression",
    "zstandard": "mfimage.image.oci.compression",
    "jinja2": "mfimage.templating",
    "markupsafe": "mfimage.templating",
    "click": "mfimage.cli",
    "rich": ("mfimage.terminal", "mfimage.cli.views."),
    "uv": "mfimage.capture.lock.uv",
    "cloudpickle": "mfimage.capture.code.by_value",
    "fastapi": "mfimage.runtime",
    "uvicorn": "mfimage.runtime",
    "starlette": "mfimage.runtime",
    "prometheus_client": "mfimage.runtime",
    "fastavro": "mfimage.function.avro",
    "cyclonedx": "mfimage.image.sbom.document",
    "yaml": "mfimage.manifests.text",
    "ray": ("mfimage.backends.ray", "mfimage.runtime.ray", "mfimage.runtime.batch"),
}
SHIPPED = [
    "mfimage/__init__.py",
    "mfimage/errors.py",
    "mfimage/load.py",
    "mfimage/masking.py",
    "mfimage/sizes.py",
    "mfimage/function/**/*.py",
    "mfimage/package/__init__.py",
    "mfimage/package/spec.py",
    "mfimage/package/storage/__init__.py",
    "mfimage/package/storage/objects.py",
    "mfimage/runtime/**/*.py",
    "mfimage/runtime/serving/page/*.css",
    "mfimage/runtime/serving/page/*.html",
    "mfimage/runtime/serving/page/*.js",
]


@dataclass(frozen=True)
class Import:
    """One import statement, at a module's top or inside a function."""

    module: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def sources() -> dict[str, Path]:
    files = [*(ROOT / "mfimage").rglob("*.py"), *(ROOT / "metaflow_extensions").rglob("*.py")]
    found = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name.rpartition(".")[2] if parts[0] == "metaflow_extensions" else name] = path
    return found


SOURCES = sources()


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(SOURCES[module].read_bytes())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    checked = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in checked:
            for name in _names(node, module):
                yield Import(module, name, node.lineno, id(node) in lazy)


def _names(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert not node.level, f"{module}:{node.lineno}: relative imports hide which floor they reach"
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in SOURCES else str(node.module)


ALL = [found for module in sorted(SOURCES) for found in imports_of(module)]


def room_of(module: str) -> str:
    return max((name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len)


def test_every_module_has_a_floor() -> None:
    assert [m for m in SOURCES if m != "mfimage" and room_of(m) == "mfimage"] == []


def test_imports_run_down() -> None:
    """Lazy ones as well: they are there for speed, not to look upstairs."""
    wrong = []
    for found in ALL:
        if found.imported in SOURCES and found.imported != "mfimage":
            here, there = room_of(found.module), room_of(found.imported)
            if FLOORS[there] > FLOORS[here] or (FLOORS[there] == FLOORS[here] and here != there):
                wrong.append(str(found))
    assert wrong == []


def test_a_public_class_name_means_one_thing() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in SOURCES.items():
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


def test_there_are_no_circles() -> None:
    below = {
        module: {i.imported for i in imports_of(module)} & SOURCES.keys() for module in SOURCES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in sorted(below[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in sorted(SOURCES):
        visit(module, ())


@pytest.mark.parametrize("dependency", OWNERS)
def test_one_owner_for_each_dependency(dependency: str) -> None:
    owner = OWNERS[dependency]
    # One module or room; or some, by what their names start with.
    owners = (f"{owner}.",) if isinstance(owner, str) else owner
    strangers = [
        str(found)
        for found in ALL
        if found.imported.partition(".")[0] == dependency
        and not f"{found.module}.".startswith(owners)
    ]
    assert strangers == []


def clean(code: str, folder: Path, *flags: str) -> set[str]:
    """Run code where only ``folder`` is our own; return the first names of what is loaded."""
    program = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}\n"
    program += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return set(done.stdout.split())


def shipped(folder: Path) -> list[str]:
    """Lay out what ships in an image; return its modules."""
    names = []
    for pattern in SHIPPED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT)
            write(folder, {name.as_posix(): path.read_text()})
            if path.suffix == ".py":
                names.append(".".join(name.with_suffix("").parts).removesuffix(".__init__"))
    return names


NEVER = {"docker", "jinja2", "click", "rich", "uv", "metaflow", "packaging", "yaml"}


def test_what_ships_in_an_image_is_small(tmp_path: Path) -> None:
    """Each shipped module, imported where nothing else of mfimage is."""
    modules = [name for name in shipped(tmp_path) if not name.endswith("ray_worker")]
    code = "import importlib\n" + "".join(f"importlib.import_module({n!r})\n" for n in modules)
    loaded = clean(code, tmp_path)
    assert "pydantic" in loaded
    assert loaded & NEVER <= {"click"}, "uvicorn brings it for its own command line"
    assert clean("import mfimage.runtime.__main__", tmp_path) & NEVER == set()


def test_loading_a_function_needs_no_server(tmp_path: Path) -> None:
    shipped(tmp_path)
    loaded = clean("import mfimage.runtime.loading.loader", tmp_path)
    assert loaded & {*NEVER, "fastapi", "starlette", "uvicorn", "prometheus_client"} == set()


def test_metaflow_with_our_names_brings_nothing_heavy() -> None:
    heavy = {*NEVER, "pydantic", "orjson", "numpy", "cloudpickle", "fastapi", "fastavro"}
    heavy -= {"metaflow"}
    names = "json_function, avro_function, register_serializer, JsonFunction, Task"
    loaded = clean(f"from metaflow import {names}", ROOT)
    plain = clean(
        "import importlib.metadata as m\n"
        "m.distributions = lambda *a, **k: iter(())\n"
        "import metaflow",
        ROOT,
    )
    assert "mfimage" in loaded
    assert (loaded - plain) & heavy == set()
