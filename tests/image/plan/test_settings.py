from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import OptionError
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.settings import make_options, read_settings
from mfimage.image.registry.reference import parse_reference
from mfimage.image.secrets.build import Secret


def project(folder: Path, text: str) -> dict[str, Any]:
    (folder / "pyproject.toml").write_text(text)
    return read_settings(folder)


def test_settings_of_a_project(tmp_path):
    settings = project(
        tmp_path,
        """
        [tool.mfimage]
        target = "fastapi"
        tags = ["iris:1"]
        base-image = "python:3.11-slim"
        apt = ["libgomp1"]
        platform = "linux/arm64"
        no-cache = true
        secrets = ["id=netrc,src=secrets/netrc"]
        index-url = "https://packages.example.com/simple"
        extra-index-urls = ["https://more.example.com/simple"]
        [tool.mfimage.env]
        GREETING = "hello"
        [tool.mfimage.labels]
        "com.example.team" = "data"
        """,
    )
    assert make_options({}, settings) == BuildOptions(
        tags=(parse_reference("iris:1"),),
        base_image=parse_reference("python:3.11-slim"),
        apt=("libgomp1",),
        env={"GREETING": "hello"},
        labels={"com.example.team": "data"},
        platform="linux/arm64",
        no_cache=True,
        secrets=(Secret(id="netrc", source=tmp_path / "secrets/netrc"),),
        index_url="https://packages.example.com/simple",
        extra_index_urls=("https://more.example.com/simple",),
    )


def test_the_command_line_comes_first(tmp_path):
    settings = project(
        tmp_path,
        """
        [tool.mfimage]
        tags = ["old:1"]
        base-image = "old"
        apt = ["a1", "b1"]
        env = { A = "old", B = "kept" }
        compile = true
        secrets = ["id=ca,src=old", "id=netrc,src=kept"]
        index-url = "https://old.example.com/simple"
        """,
    )
    given = {
        "tags": ("new:1", "new"),
        "base_image": "new",
        "apt": ("b1", "c1"),
        "env": ("A=new=1",),
        "labels": ("a=",),
        "compile": False,
        "secrets": ("id=ca,src=/new",),
        "index_url": "https://new.example.com/simple",
        "platform": None,
        "extra_index_urls": (),
    }
    options = make_options(given, settings)
    assert [str(tag) for tag in options.tags] == ["new:1", "new:latest"]
    assert str(options.base_image) == "new"
    assert options.apt == ("a1", "b1", "c1")
    assert options.env == {"A": "new=1", "B": "kept"}
    assert options.labels == {"a": ""}
    assert {secret.id: secret.source for secret in options.secrets} == {
        "netrc": tmp_path / "kept",
        "ca": Path("/new"),
    }
    assert options.index_url == "https://new.example.com/simple"
    assert options.compile is False
    assert make_options({}, settings).compile is True


def test_the_same_secret_twice_on_the_command_line():
    with pytest.raises(OptionError, match="given twice"):
        make_options({"secrets": ("id=ca,src=/a", "id=ca,src=/b")})


@pytest.mark.parametrize("field", ["env", "labels"])
def test_an_assignment_without_a_value(field):
    with pytest.raises(OptionError, match="'A' has no value"):
        make_options({field: ("A",)})


def test_the_nearest_table_counts(tmp_path):
    project(tmp_path, '[tool.mfimage]\nplatform = "linux/arm64"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    assert read_settings(inner) == {"platform": "linux/arm64"}


def test_no_settings(tmp_path):
    assert project(tmp_path, "[project]\nname = 'x'\n") == {}


def test_an_empty_table(tmp_path):
    (tmp_path / "inner").mkdir()
    project(tmp_path, '[tool.mfimage]\nplatform = "linux/arm64"\n')
    assert project(tmp_path / "inner", "[tool.mfimage]\n") == {}, "it counts, though empty"


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ('base_image = "x"', "tool.mfimage.base_image: unknown option", "'base-image'"),
        ('tag = ["x"]', "tool.mfimage.tag: unknown option", "'tags'"),
        ("zzzz = 1", "tool.mfimage.zzzz: unknown option", "base-image"),
        ("apt = 'git'", "tool.mfimage.apt: expected a list of strings, got 'git'", None),
        ("apt = [1]", "expected a list of strings", None),
        ("no-cache = 'yes'", "expected true or false", None),
        ("env = {PORT = 8000}", "expected a table of strings", None),
        ("target = 1", "expected a string, got 1", None),
    ],
)
def test_settings_that_are_wrong(tmp_path, text, says, hint):
    with pytest.raises(OptionError) as caught:
        project(tmp_path, f"[tool.mfimage]\n{text}\n")
    assert str(tmp_path / "pyproject.toml") in caught.value.message
    assert says in caught.value.message
    assert hint is None or hint in caught.value.hint


def test_a_file_that_is_no_toml(tmp_path):
    with pytest.raises(OptionError, match=r"pyproject\.toml: cannot be read"):
        project(tmp_path, "[tool.mfimage\n")


def test_no_table(tmp_path):
    with pytest.raises(OptionError, match="is not a table"):
        project(tmp_path, "[tool]\nmfimage = 1\n")


def test_settings_of_an_image_for_ray(tmp_path):
    settings = project(
        tmp_path, '[tool.mfimage]\ntarget = "ray"\nray-version = "2.60.0"\nwith = ["serve,data"]\n'
    )
    options = make_options({}, settings)
    assert (options.ray_version, options.parts) == ("2.60.0", ("data", "serve"))
    assert make_options({"parts": ("serve",)}, settings).parts == ("serve",)
