"""Runs in a fresh interpreter: imports a module, and reports what its project's files import.

Standard library only, and run as a script: the interpreter may not have mfimage.
:mod:`mfimage.capture.code.interpreter` starts it with the folder that holds mfimage, and modules
to import ahead of the request. That comes by stdin, as JSON. What the files' source says goes to
stdout; then the module is imported, if the request says so, and the rest goes to a file.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # a script's own folder would hide the standard library's modules
    _HERE = __file__.rpartition("/")[0]
    sys.path[:] = [entry for entry in sys.path if entry != _HERE]

import builtins
import importlib
import importlib.metadata
import importlib.util
import json
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

# Installed packages, and what ships apart from the function's code.
_NOT_LOCAL = {"site-packages", "dist-packages", "mfimage", "metaflow_extensions"}
_SUFFIXES = (".py", ".so", ".pyd")


class Tracer:
    """Notes which modules a project's files, not the libraries, import while they run."""

    def __init__(self, root: Path) -> None:
        self.seen: dict[tuple[str, str, int], None] = {}
        self.root = root
        self._local: dict[str, bool] = {}
        self._import = builtins.__import__
        self._import_module = importlib.import_module

    def __enter__(self) -> Tracer:
        builtins.__import__ = self._traced_import
        importlib.import_module = self._traced_import_module
        return self

    def __exit__(self, *exc: object) -> None:
        builtins.__import__ = self._import
        importlib.import_module = self._import_module

    def is_local(self, file: str | None) -> bool:
        """Return whether a file is the project's; an environment inside its folder is not."""
        if not file:
            return False
        if file not in self._local:
            path = Path(os.path.realpath(file))
            inside = self.root in path.parents
            parts = path.relative_to(self.root).parts if inside else ()
            self._local[file] = inside and _NOT_LOCAL.isdisjoint(parts)
        return self._local[file]

    def _traced_import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        module = self._import(name, globals, locals, fromlist or (), level)
        caller = sys._getframe(1)
        space = caller.f_globals
        if self.is_local(space.get("__file__")):
            if level:
                package = space.get("__package__") or space["__name__"].rpartition(".")[0]
                name = importlib.util.resolve_name("." * level + name, package)
            submodules = [f"{name}.{item}" for item in fromlist or ()]
            found = [submodule for submodule in submodules if submodule in sys.modules]
            for each in found or [name]:
                self._note(each, caller.f_lineno, space["__file__"])
        return module

    def _traced_import_module(self, name: str, package: str | None = None) -> ModuleType:
        module = self._import_module(name, package)
        caller = sys._getframe(1)
        if self.is_local(caller.f_globals.get("__file__")):
            self._note(module.__name__, caller.f_lineno, caller.f_globals["__file__"])
        return module

    def _note(self, module: str, line: int, file: str) -> None:
        self.seen[module, os.path.realpath(file), line] = None


def import_function(tracer: Tracer, module: str) -> dict[str, Any] | None:
    """Import a module under the tracer; return the error, if any."""
    try:
        with tracer:
            importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001  (a script may exit, or raise anything)
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno))
        local = [place for place in places if tracer.is_local(place[0])]
        return {
            "type": type(error).__name__,
            "text": str(error),
            "missing": error.name if isinstance(error, ModuleNotFoundError) else None,
            "import": isinstance(error, ImportError),
            "exit": isinstance(error, SystemExit),
            "place": local[-1] if local else None,
        }
    return None


def loaded_modules(tracer: Tracer) -> dict[str, Path]:
    """Return the project's modules that are imported, and their files."""
    modules = list(sys.modules.items())
    files = {name: getattr(module, "__file__", None) for name, module in modules}
    return {name: Path(file) for name, file in files.items() if file and tracer.is_local(file)}


_STANDARD = sys.stdlib_module_names | {"__main__"}


def _top(name: str) -> str:
    return name.partition(".")[0]


def _origin(name: str) -> list[str]:
    """Return where a module is; one that is not loaded is looked up by its first name."""
    for each in (name, _top(name)):
        module = sys.modules.get(each)
        if module is not None:
            file = getattr(module, "__file__", None)
            return [file] if file else [str(path) for path in getattr(module, "__path__", ())]
    try:
        spec = importlib.util.find_spec(_top(name))
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    places = [str(path) for path in spec.submodule_search_locations or ()]
    return [spec.origin] if spec.origin and spec.has_location else places


def describe_distributions(places: list[str] | None = None) -> list[dict[str, Any]]:
    """Describe the distributions on a path, by default on ``sys.path``."""
    path = sys.path if places is None else places
    found = map(_describe_distribution, importlib.metadata.distributions(path=path))
    return [each for each in found if each["name"]]


def _describe_distribution(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    modern = distribution.read_text("METADATA")
    header = _header(modern or distribution.read_text("PKG-INFO") or "")
    listed = header.get("requires-dist", [])
    return {
        "name": (header.get("name") or [""])[0],
        "version": (header.get("version") or [""])[0],
        "requires": listed if modern else list(distribution.requires or ()),
        "location": str(distribution.locate_file("")),
        "direct_url": distribution.read_text("direct_url.json"),
        "installer": (distribution.read_text("INSTALLER") or "").strip(),
        "legacy": modern is None,
        "modules": _modules(distribution.read_text),
    }


def join_distributions(*groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return distributions in the order of their path: of those with one name, the first."""
    # Files of modules that only one distribution has are dropped: they are never compared.
    found: dict[str, dict[str, Any]] = {}
    for each in (*_packaged_metaflow(), *(each for group in groups for each in group)):
        found.setdefault(each["name"].lower(), each)
    owners = Counter(module for each in found.values() for module in each["modules"])
    for each in found.values():
        modules = each["modules"]
        each["modules"] = {name: modules[name] if owners[name] > 1 else [] for name in modules}
    return list(found.values())


def _packaged_metaflow() -> Iterator[dict[str, Any]]:
    """Yield the Metaflow of a code package, which Python does not see as a distribution."""
    for entry in map(Path, sys.path):
        info = entry.parent / ".mf_meta" / "INFO"
        if entry.name == ".mf_code" and info.is_file():
            version = json.loads(info.read_text())["metaflow_version"]
            yield {
                "name": "metaflow",
                "version": version.partition("+")[0].partition("-")[0],
                "requires": ["requests", "boto3"],
                "location": str(entry),
                "direct_url": None,
                "installer": "",
                "legacy": False,
                "modules": {"metaflow": []},
            }


def _header(text: str) -> dict[str, list[str]]:
    # The e-mail parser takes a millisecond for each distribution.
    found: dict[str, list[str]] = {}
    last: list[str] = []
    for line in text.splitlines():
        if not line:
            break
        if line[0] in " \t" and last:
            last[-1] += " " + line.strip()
            continue
        key, _, value = line.partition(":")
        last = found.setdefault(key.lower(), [])
        last.append(value.strip())
    return found


def _modules(read_text: Callable[[str], str | None]) -> dict[str, list[str]]:
    """Return top-level module -> the files below it."""
    names = (read_text("top_level.txt") or "").split()
    found: dict[str, list[str]] = {name: [] for name in names}
    for line in (read_text("RECORD") or "").splitlines():
        path = line.split(",", 1)[0].strip('"')
        if path.endswith(_SUFFIXES) and not path.startswith(("..", "/")):
            found.setdefault(_top(path.partition("/")[0]), []).append(path)
    return found


def main() -> None:
    """Answer one request."""
    channel = os.dup(1)
    os.dup2(2, 1)  # whatever is imported may print
    home, *ahead = sys.argv[1:]
    sites = describe_distributions()
    before = set(sys.modules)
    sys.path.append(home)
    for name in ahead:
        importlib.import_module(name)
    imported = set(sys.modules) - before
    request_text = sys.stdin.buffer.read()
    request = json.loads(request_text)
    reading = _sibling("_reading")
    root = Path(os.path.realpath(request["root"]))
    if imported and _hides(reading, root, imported):
        _start_again(request_text, request["answer"], channel)
    sys.path.insert(0, str(root))
    own, ours = describe_distributions([str(root)]), describe_distributions([home])
    found = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "standard": sorted(_STANDARD),
        "distributions": join_distributions(own, sites, ours),
    }
    try:
        found |= _read(reading, request, Tracer(root), {})
    except SyntaxError:
        if not request["run"]:
            raise
    with os.fdopen(channel, "w") as stdout:
        stdout.write(json.dumps(found))
    if request["run"]:
        tracer = Tracer(root)
        if failure := import_function(tracer, request["module"]):
            ran: dict[str, Any] = {"error": failure}
        else:
            ran = _read(reading, request, tracer, loaded_modules(tracer))
        Path(request["answer"]).write_text(json.dumps(ran))


def _hides(reading: Any, root: Path, imported: Iterable[str]) -> bool:
    """Return whether the project has modules that would have been imported instead."""
    names = {_top(name) for name in imported}
    own = {_top(path.name) for path in root.iterdir()} & (names | {"metaflow_extensions"})
    return any(name == "metaflow_extensions" or reading.find_local(root, name) for name in own)


def _start_again(request: bytes, answer: str, channel: int) -> None:
    """Become a new interpreter, which imports nothing ahead, for the same request."""
    file = Path(answer).with_suffix(".request")
    file.write_bytes(request)
    os.dup2(os.open(file, os.O_RDONLY), 0)
    os.dup2(channel, 1)
    os.execv(sys.executable, [sys.executable, __file__, sys.argv[1]])  # noqa: S606  (no shell)


def _read(
    reading: Any, request: Mapping[str, Any], tracer: Tracer, loaded: Mapping[str, Path]
) -> dict[str, Any]:
    """Return what the project's files import, by their source and by what the tracer saw."""
    module = request["module"]
    start = [module, *loaded] if module else []
    project = reading.walk_project(tracer.root, start, loaded, request["steps"])
    foreign = [each for each in project.imports if not each.means]
    parts = reading.prefixes(request["module"])
    own = [file for file in (reading.find_local(tracer.root, name) for name in parts) if file]
    called = set(reading.reached_imports(project, own, request["functions"]))
    names = {each.module for each in foreign} | {name for name, _, _ in tracer.seen}
    wanted = sorted(names | {*request["names"], *start})
    return {
        "read": [
            [each.module, str(each.file), each.line, each.optional, each in called]
            for each in foreign
        ],
        "traced": list(tracer.seen),
        "files": [str(file) for file in project.files],
        "origins": {name: _origin(name) for name in wanted if _top(name) not in _STANDARD},
    }


def _sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what a NamedTuple is pickled and printed by
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # no finalizers or threads to wait for: the answer is written
