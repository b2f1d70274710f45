"""Import statements, read from source."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfimage.capture.code._reading import find_local, read_source, walk_project


def names(source: str, package: str = "") -> list[str]:
    """Return what is imported; ``?`` marks what may be missing."""
    found = read_source(source.encode(), package=package).imports
    return [f"{each.module}{'?' if each.optional else ''}" for each in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a, b.c as d", ["a", "b.c"]),
        ("from a.b import c, d", ["a.b.c", "a.b.d"]),
        ("from a import *", ["a"]),
        ("def f():\n  async def g():\n    import a", ["a"]),
        ("class C:\n  def m(self):\n    import a", ["a"]),
        ("import importlib\nimportlib.import_module('a.b')", ["importlib", "a.b"]),
        ("x = [__import__('a')]", ["a"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING: import a", ["typing.TYPE_CHECKING"]),
        ("if typing.TYPE_CHECKING:\n  import a\nelse:\n  import b", ["b"]),
        ("if not TYPE_CHECKING: import a", ["a"]),
        ("if __name__ == '__main__': import a", []),
        ("if sys.platform == 'linux': import a", ["a?"]),
        ("try: import a\nexcept ImportError: import b\nelse: import c", ["a?", "b?", "c"]),
        ("try: import a\nexcept (OSError, ModuleNotFoundError): pass", ["a?"]),
        ("try: import a\nexcept: pass", ["a?"]),
        ("try: import a\nexcept OSError: pass\nfinally: import b", ["a", "b"]),
        ("with contextlib.suppress(ImportError): import a", ["a?"]),
        ("with open('x') as f: import a", ["a"]),
        (
            "def f():\n  try:\n    import a\n  except ImportError:\n    pass\n  import b",
            ["a?", "b"],
        ),
        ("class F(FlowSpec):\n  @step\n  def s(self): import a\n  def t(self): import b", ["b"]),
        ("class F(FlowSpec):\n  @metaflow.step\n  @pypi(x=1)\n  def s(self): import a", []),
        ("import\\\n a", ["a"]),
    ],
)
def test_statements(source: str, expected: list[str]) -> None:
    assert names(source) == expected


def test_relative_imports_are_made_absolute() -> None:
    source = "from . import a\nfrom .b import c\nfrom ..d import e\nfrom ...f import g"
    assert names(source, package="p.q") == ["p.q.a", "p.q.b.c", "p.d.e"]  # the last leads outside
    assert names("importlib.import_module('.x', __package__)", package="p") == ["p.x"]


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_walk_reaches_what_the_function_reaches_and_no_more(tmp_path: Path) -> None:
    write(
        tmp_path,
        predict="from pkg import clean\ndef f():\n  import lazy\n  import one",
        pkg__init="import two",
        pkg__clean="from .deep import x\ndef g(): import three",
        pkg__deep="try:\n  from . import gpu\nexcept ImportError: pass",
        pkg__gpu="import four",
        lazy="import five",
        unrelated="import six",
    )
    (tmp_path / "pkg" / "init.py").rename(tmp_path / "pkg" / "__init__.py")
    imports, files = walk_project(tmp_path, ["predict"], {})
    assert {(each.module, each.optional) for each in imports if not each.means} == {
        ("one", False),
        ("two", False),
        ("three", False),
        ("four", True),  # reached by an optional import alone
        ("five", False),
    }
    assert sorted(str(file.relative_to(tmp_path)) for file in files) == [
        *("lazy.py", "pkg/__init__.py", "pkg/clean.py", "pkg/deep.py", "pkg/gpu.py", "predict.py"),
    ]


def test_local_files(tmp_path: Path) -> None:
    write(tmp_path, a="", b__c="")
    (tmp_path / "fast.cpython-311-x86_64-linux-gnu.so").touch()
    (tmp_path / "data.json").touch()
    assert find_local(tmp_path, "a") == tmp_path / "a.py"
    assert find_local(tmp_path, "b") is None  # a name space has no file
    assert find_local(tmp_path, "b.c") == tmp_path / "b" / "c.py"
    assert find_local(tmp_path, "fast") == tmp_path / "fast.cpython-311-x86_64-linux-gnu.so"
    assert find_local(tmp_path, "data") is None
    assert find_local(tmp_path, "no.such.thing") is None
