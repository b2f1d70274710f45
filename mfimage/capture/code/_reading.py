"""Reads import statements from source, without running it, and which of them a call runs.

Standard library only: the probe loads this file from beside itself, in an interpreter that may
not have mfimage, so that code is parsed by the Python that will run it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Statement(NamedTuple):
    """One import statement's import."""

    module: str  # ``a.b`` of ``from a import b``
    line: int
    optional: bool  # it may fail
    within: str = ""  # the top-level function or class that holds it; "" when it runs on import


class SourceFile(NamedTuple):
    """A file: what it imports, and which names each of its top-level definitions mentions."""

    imports: list[Statement]
    mentions: dict[str, set[str]]


class FileImport(NamedTuple):
    """A statement, the file that holds it, and the project's files that it imports."""

    module: str
    file: Path
    line: int
    optional: bool
    within: str
    means: tuple[Path, ...]


class Project(NamedTuple):
    """The files that a walk reached, and all their imports, including the project's own files."""

    imports: list[FileImport]
    files: dict[Path, SourceFile]


def find_local(root: Path, module: str) -> Path | None:
    """Return the project file that ``module`` is when ``root`` is on ``sys.path``."""
    base = root.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_name(base.name + ".py")):
        if path.is_file():
            return path
    if not base.parent.is_dir():
        return None
    found = base.parent.glob(base.name + ".*")
    return next((path for path in found if path.suffix in (".so", ".pyd")), None)


def prefixes(module: str) -> list[str]:
    """Return ``a``, ``a.b``, ``a.b.c`` of ``a.b.c``: what importing it imports."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def walk_project(
    root: Path, start: Iterable[str], loaded: Mapping[str, Path], steps: Collection[str] = ()
) -> Project:
    """Read every project file that ``start`` reaches, following imports between them."""
    # `loaded` are those that importing the function's module loads: what they import is not
    # optional because of how they were reached.
    imports: list[FileImport] = []
    seen: dict[Path, SourceFile] = {}
    # Required imports first: a file that is reached both ways is required.
    queue = [(name, False) for module in start for name in prefixes(module)]
    later: list[tuple[str, bool]] = []
    while queue or later:
        module, optional = (queue or later).pop(0)
        path = find_local(root, module) or loaded.get(module)
        if path is None or path in seen:
            continue
        seen[path] = SourceFile([], {})
        if path.suffix == ".py":
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            seen[path] = read_source(
                path.read_bytes(), package=package, label=str(path), steps=steps
            )
        for name, line, soft, within in seen[path].imports:
            is_optional = soft or (optional and module not in loaded)
            names = prefixes(name)
            (later if is_optional else queue).extend((each, is_optional) for each in names)
            local = tuple(filter(None, (find_local(root, each) for each in names)))
            imports.append(FileImport(name, path, line, is_optional, within, local))
    return Project(imports, seen)


def reached_imports(
    project: Project, start: Iterable[Path], functions: Sequence[str]
) -> list[FileImport]:
    """Return the imports that run when files are imported, or when functions are called."""
    # A definition counts as called when code that runs mentions its bare name: that finds too many
    # rather than too few, but not a helper that only a flow's steps or a script's main part call.
    files, names = set(start), set(functions)
    while True:
        found = [
            each
            for each in project.imports
            if each.file in files and (not each.within or each.within in names)
        ]
        sizes = len(files), len(names)
        files.update(file for each in found for file in each.means)
        for file in files & project.files.keys():
            for within, mentioned in project.files[file].mentions.items():
                if not within or within in names:
                    names |= mentioned
        if sizes == (len(files), len(names)):
            return found


def read_source(
    source: bytes, *, package: str = "", label: str = "<source>", steps: Collection[str] = ()
) -> SourceFile:
    """Return the imports of a module, at its top and inside its functions."""
    # Not those for type checkers, below `if __name__ == "__main__":`, and of a flow's steps except
    # ``steps``: none of them runs when the function does.
    reader = _Reader(package, steps)
    reader.visit(ast.parse(source, label))
    return SourceFile(reader.found, reader.mentions)


def defined_names(source: bytes) -> set[str]:
    """Return the names that importing a module defines at its top; ``*`` if not all are known."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(source).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.If) and (runs := _runs(node.test)) is not None:
            pending += node.body if runs else node.orelse
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return found


class _Reader(ast.NodeVisitor):
    def __init__(self, package: str, steps: Collection[str]) -> None:
        self._steps = steps
        self.found: list[Statement] = []
        self.mentions: dict[str, set[str]] = {}
        self._package = package
        self._optional = False
        self._within = ""

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute(node.module or "", node.level)
        for alias in node.names if base is not None else ():
            item = "" if alias.name == "*" else alias.name
            self._add(".".join(filter(None, (base, item))), node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        literal = node.args[0] if node.args else None
        text = literal.value if isinstance(literal, ast.Constant) else None
        if name in ("import_module", "__import__") and isinstance(text, str):
            bare = text.lstrip(".")
            if module := self._absolute(bare, len(text) - len(bare)):
                self._add(module, node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        runs = _runs(node.test)
        self.visit(node.test)
        if runs is None:
            self._visit(node.body, optional=True)
            self._visit(node.orelse, optional=True)
        else:
            self._visit(node.body if runs else node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        guarded = any(_catches_import_error(handler.type) for handler in node.handlers)
        self._visit(node.body, optional=guarded)
        for handler in node.handlers:
            self._visit(handler.body, optional=True)
        self._visit([*node.orelse, *node.finalbody])

    # mypy types each visitor by its node; these nodes have the same fields.
    visit_TryStar = visit_Try  # type: ignore[assignment]  # Python 3.11

    def visit_With(self, node: ast.With) -> None:
        calls = [item.context_expr for item in node.items]
        names = [name for call in calls if isinstance(call, ast.Call) for name in call.args]
        self._visit(node.items)
        self._visit(node.body, optional=any(_catches_import_error(name) for name in names))

    visit_AsyncWith = visit_With  # type: ignore[assignment]  # as above

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit(node.decorator_list)
        self._define(node.name, [node.args, *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit([*node.decorator_list, *node.bases])
        self._define(node.name, [item for item in node.body if self._is_read(item)])

    def _is_read(self, item: ast.stmt) -> bool:
        return not _is_step(item) or getattr(item, "name", "") in self._steps

    def visit_Name(self, node: ast.Name) -> None:
        self._mention(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._mention(node.attr)
        self.generic_visit(node)

    def _define(self, name: str, body: Iterable[ast.AST]) -> None:
        before, self._within = self._within, self._within or name
        self._visit(body)
        self._within = before

    def _mention(self, name: str) -> None:
        self.mentions.setdefault(self._within, set()).add(name)

    def _visit(self, nodes: Iterable[ast.AST], *, optional: bool = False) -> None:
        before, self._optional = self._optional, self._optional or optional
        for node in nodes:
            self.visit(node)
        self._optional = before

    def _add(self, module: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(Statement(module, node.lineno, self._optional, self._within))

    def _absolute(self, name: str, level: int) -> str | None:
        if not level:
            return name
        parts = self._package.split(".") if self._package else []
        if level - 1 >= len(parts):
            return None
        return ".".join(filter(None, [*parts[: len(parts) - level + 1], name]))


def _runs(test: ast.expr) -> bool | None:
    """Return whether a condition holds in an imported module; None when that depends."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        runs = _runs(test.operand)
        return None if runs is None else not runs
    names = set(_names(test))
    if isinstance(test, ast.Name | ast.Attribute) and "TYPE_CHECKING" in names:
        return False
    if "__name__" in names and isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq):
        return False
    return None


def _names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


_SOFT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


def _catches_import_error(kind: ast.expr | None) -> bool:
    return kind is None or not _SOFT.isdisjoint(_names(kind))


def _is_step(node: ast.AST) -> bool:
    # Only a flow has steps, and its steps run elsewhere, with their own @pypi and @conda.
    if not isinstance(node, ast.FunctionDef):
        return False
    return any("step" in _names(decorator) for decorator in node.decorator_list)
