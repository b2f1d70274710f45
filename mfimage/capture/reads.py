"""Which parameters a function reads, told from its source."""

from __future__ import annotations

import ast
import inspect
import textwrap

from mfimage.function.decorator import DecoratedFunction


def parameters_read(function: DecoratedFunction) -> set[str] | None:
    """Return the names of the parameters that a function can read.

    Returns
    -------
    set of str or None
        The attributes that the code reads; None when the parameters go somewhere that cannot be
        followed, so that any may be read.
    """
    if not function.signature.takes_params:
        return set()
    name = list(inspect.signature(function.__wrapped__).parameters)[1]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__wrapped__)))
    except (OSError, SyntaxError, TypeError):
        return None
    return _reads(tree.body[0], name)


def _reads(function: ast.AST, name: str) -> set[str] | None:
    found: set[str] = set()
    followed: set[ast.AST] = set()
    for node in ast.walk(function):
        value = getattr(node, "value", None)
        if isinstance(value, ast.Name) and value.id == name:
            member = _member(node)
            if member is None:
                return None
            found.add(member)
            followed.add(value)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name and node not in followed:
            return None
        if isinstance(node, ast.arg) and node.arg == name and not _is_own(function, node):
            return None
    return found


def _member(node: ast.AST) -> str | None:
    """Return ``model`` of ``params.model`` and ``params["model"]``."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return None if node.attr.startswith("_") else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _is_own(function: ast.AST, argument: ast.arg) -> bool:
    arguments = getattr(function, "args", None)
    return arguments is not None and argument in [*arguments.posonlyargs, *arguments.args]
