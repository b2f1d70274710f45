"""Credentials for private indexes: used, and written nowhere.

A secret is planted where users keep theirs; then everything that binding and rendering leave
behind or say is searched for it.
"""

from __future__ import annotations

import base64
import gzip
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from mfimage.bind import BindOptions, bind
from mfimage.build import render
from mfimage.capture.code.locate import load_decorated
from mfimage.errors import MfimageError
from mfimage.image.plan.options import BuildOptions
from mfimage.image.targets.fastapi import SERVE_REQUIREMENTS
from tests.capture.wheelhouse import Index, sdist, serve_index, wheel, write_source

pytestmark = pytest.mark.slow

SECRET = "s3cret+W0rd"
PREDICT = """
from mfimage.function.decorator import json_function
from mfimage.function.parameters import FunctionParameters

@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    import alpha, beta, old
    return data
"""
# What a build may well do: show everything that it was started with.
LOUD = "import os, sys\nprint(dict(os.environ), sys.argv, file=sys.stderr)\nraise SystemExit(1)\n"


class Private(NamedTuple):
    """Two private indexes, which want a login, and a project that needs both."""

    indexes: tuple[Index, Index]
    project: Path
    home: Path

    @property
    def bare(self) -> list[str]:
        return [index.url.replace(index.url.partition("//")[2].partition("@")[0] + "@", "")
                for index in self.indexes]  # fmt: skip

    @property
    def login(self) -> list[str]:
        return [url.replace("//", f"//robot:{quote(SECRET)}@") for url in self.bare]


@pytest.fixture
def private(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Private]:
    index.add(wheel("pydantic", "2.99"), wheel("orjson", "3.99"))
    for text in SERVE_REQUIREMENTS:
        name, _, versions = text.partition(">=")
        # A capped one exists in its lowest version.
        index.add(wheel(name, versions.partition(",")[0] if "<" in versions else "99.0"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "home" / "bin"), prepend=os.pathsep)
    (tmp_path / "home" / "bin").mkdir(parents=True)
    project = tmp_path / "project"
    project.mkdir()
    (project / "requirements.txt").write_text("alpha\nbeta\nold\n")
    name = f"secret_{abs(hash(request.node.name))}"
    (project / f"{name}.py").write_text(PREDICT)
    monkeypatch.chdir(project)
    with serve_index(login=("robot", SECRET)) as first, serve_index(login=("robot", SECRET)) as two:
        first.add(wheel("alpha"), sdist(write_source(tmp_path / "old", "old"), "old"))
        two.add(wheel("beta", requires=["alpha"]))
        yield Private((first, two), project, tmp_path / "home")


def plant_named(private: Private, patch: pytest.MonkeyPatch) -> None:
    one, two = private.bare
    patch.setenv("UV_INDEX", f"first={one} second={two}")
    for name in ("FIRST", "SECOND"):
        patch.setenv(f"UV_INDEX_{name}_USERNAME", "robot")
        patch.setenv(f"UV_INDEX_{name}_PASSWORD", SECRET)


def plant_in_urls(private: Private, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("UV_EXTRA_INDEX_URL", " ".join(private.login))


def plant_in_project(private: Private, patch: pytest.MonkeyPatch) -> None:
    plant_named(private, patch)
    patch.delenv("UV_INDEX")
    one, two = private.bare
    (private.project / "pyproject.toml").write_text(
        f"[[tool.uv.index]]\nname = 'first'\nurl = '{one}'\n"
        f"[[tool.uv.index]]\nname = 'second'\nurl = '{two}'\n"
    )


def plant_in_pip_conf(private: Private, patch: pytest.MonkeyPatch) -> None:
    public = os.environ["UV_DEFAULT_INDEX"]
    patch.delenv("UV_DEFAULT_INDEX")
    conf = private.home / ".config" / "pip" / "pip.conf"
    conf.parent.mkdir(parents=True)
    extra = "\n    ".join(private.login)
    conf.write_text(f"[global]\nindex-url = {public}\nextra-index-url =\n    {extra}\n")


def plant_in_pip_variables(private: Private, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PIP_INDEX_URL", os.environ["UV_DEFAULT_INDEX"])
    patch.delenv("UV_DEFAULT_INDEX")
    patch.setenv("PIP_EXTRA_INDEX_URL", " ".join(private.login))


def plant_in_netrc(private: Private, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("UV_INDEX", " ".join(private.bare))
    file = private.home / ".netrc"
    file.write_text(f"machine 127.0.0.1\nlogin robot\npassword {SECRET}\n")
    file.chmod(0o600)


def plant_in_keyring(private: Private, patch: pytest.MonkeyPatch) -> None:
    script = private.home / "bin" / "keyring"
    script.write_text(f'#!/bin/sh\n[ "$1 $3" = "get robot" ] && echo "{SECRET}"\n')
    script.chmod(0o755)
    patch.setenv("UV_KEYRING_PROVIDER", "subprocess")
    patch.setenv("UV_INDEX", " ".join(url.replace("//", "//robot@") for url in private.bare))


PLACES = {
    "uv's variables": plant_named,
    "URLs": plant_in_urls,
    "uv's configuration": plant_in_project,
    "pip.conf": plant_in_pip_conf,
    "pip's variables": plant_in_pip_variables,
    "netrc": plant_in_netrc,
    "keyring": plant_in_keyring,
}
planted = pytest.mark.parametrize("place", PLACES)


def forms() -> list[bytes]:
    encoded = base64.b64encode(f"robot:{SECRET}".encode())
    return [SECRET.encode(), quote(SECRET).encode(), encoded]


def search(text: str | bytes, where: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    assert not [form for form in forms() if form in data], f"the secret is in {where}"


def search_folder(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        search(data, str(path))
        if data.startswith(b"\x1f\x8b"):
            search(gzip.decompress(data), str(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as read:
                for name in read.namelist():
                    search(read.read(name), f"{path}:{name}")
    return len(files)


def bound(private: Private, task: Any, **options: Any) -> str:
    (module,) = private.project.glob("secret_*.py")
    sys.modules.pop(module.stem, None)
    environment = private.project / "requirements.txt"
    root = private.home.parent / "packages"
    given = BindOptions(environment=environment, root=root, artifacts=[], **options)
    return bind(load_decorated(f"{module}:predict"), task, given)


@planted
def test_nothing_that_is_written_or_said_has_the_secret(
    *,
    place: str,
    private: Private,
    task: Any,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    PLACES[place](private, monkeypatch)
    reference = bound(private, task)
    image = private.home.parent / "image"
    render(reference, BuildOptions(), image)
    assert search_folder(private.home.parent / "packages") >= 4
    assert search_folder(image) > 10
    search_folder(cache)
    said = capfd.readouterr()
    search(said.out + said.err + caplog.text, "what was said")
    lock = next(image.rglob("pylock.toml")).read_text()
    for url in private.bare:
        assert f'index = "{url}"' in lock


@planted
@pytest.mark.parametrize("fault", ["gone", "refused", "loud"])
def test_no_error_has_the_secret(
    *,
    place: str,
    fault: str,
    private: Private,
    task: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    PLACES[place](private, monkeypatch)
    if fault == "gone":
        (private.project / "requirements.txt").write_text("alpha==9\n")
    elif fault == "refused":
        private.indexes[0].login = private.indexes[1].login = ("robot", "changed")
    else:
        source = write_source(private.home.parent / "loud", "loud")
        (source / "backend.py").write_text(LOUD)
        private.indexes[0].add(sdist(source, "loud"))
        (private.project / "requirements.txt").write_text("alpha\nloud\n")
    with pytest.raises(MfimageError) as caught:
        bound(private, task)
    error: BaseException | None = caught.value
    while error is not None:
        search(f"{error!r} {error} {getattr(error, 'hint', '')} {error.__dict__}", "an error")
        error = error.__cause__
    said = capfd.readouterr()
    search(said.out + said.err, "what was said")
    assert not (private.home.parent / "packages" / "functions").exists()
