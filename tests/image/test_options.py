from __future__ import annotations

from pathlib import Path

import pytest

from mfimage.errors import OptionError
from mfimage.image.build_secrets import Secret, parse_secret, read_secrets
from mfimage.image.options import BuildOptions, refuse_credentials
from mfimage.image.reference import parse_reference
from mfimage.image.settings import Settings, make_options, read_settings


def refusal(**options) -> OptionError:
    with pytest.raises(OptionError) as caught:
        BuildOptions(**options)
    assert caught.value.hint
    return caught.value


def test_defaults():
    options = BuildOptions()
    assert options.target == "fastapi"
    assert options.platform is None


def test_unknown_target_suggests():
    assert refusal(target="fastpi").hint == "did you mean 'fastapi'?"
    assert "fastapi" in refusal(target="lambda").hint


@pytest.mark.parametrize(
    "name",
    ["libgomp1", "g++", "libstdc++6", "git=1:2.39.5-0+deb12u2", "libc6:arm64", "0ad", "ab.c"],
)
def test_package_names(name):
    assert BuildOptions(apt=(name,)).apt == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "Git",
        "-y",
        "git-",
        "git;ls",
        "git ls",
        "$(ls)",
        "git=",
        "git=1;2",
        "git\n",
        "../x.deb",
    ],
)
def test_no_package_names(name):
    assert repr(name) in refusal(apt=(name,)).message


@pytest.mark.parametrize("name", ["", "1A", "A B", "A-B", "A=B", "Ä", "A\n"])
def test_no_variable_names(name):
    assert repr(name) in refusal(env={name: "x"}).message


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "PYTHONHOME"])
def test_variables_the_image_needs(name):
    assert name in refusal(env={name: "x"}).message


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\x1b[0m", "\x85", "\u2028", "\ud800"])
def test_values_that_a_dockerfile_cannot_hold(value):
    assert refusal(env={"A": value}).message.startswith("env A: ")
    assert refusal(labels={"a": value}).message.startswith("label a: ")


def test_a_value_may_be_long_but_not_too_long():
    BuildOptions(env={"A": "x" * 30_000})
    assert "30001 bytes" in refusal(env={"A": "x" * 30_001}).message


@pytest.mark.parametrize("name", ["", "a b", "a=b", '"', "-a", "a.", "ä"])
def test_no_label_names(name):
    assert repr(name) in refusal(labels={name: "x"}).message


def test_labels_of_our_own():
    assert "io.mfimage.task" in refusal(labels={"io.mfimage.task": "x"}).message
    BuildOptions(labels={"org.opencontainers.image.title": "mine"})


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@example.com/simple",
        "see postgres://me:secret@db/x, please",
        'pip="http://:secret@example.com"',
        "s3+https://a:secret%40@h",
    ],
)
def test_urls_with_a_password(text):
    with pytest.raises(OptionError) as caught:
        refuse_credentials("env URL", text)
    assert "secret" not in caught.value.message
    assert caught.value.message.startswith("env URL: ")
    assert "--secret" in caught.value.hint
    assert "secret@" not in refusal(env={"URL": text}).message
    refusal(labels={"url": text})


@pytest.mark.parametrize(
    "text",
    ["postgres://me@db/x", "https://example.com:8080/a@b", "a:b@c", "http://h/x:y@z"],
)
def test_urls_without_a_password(text):
    refuse_credentials("env URL", text)


@pytest.mark.parametrize(
    "url",
    [
        "https://packages.example.com/simple",
        "http://localhost:8080/simple/",
        "company=https://packages.example.com/simple",
    ],
)
def test_index_urls(url):
    options = BuildOptions(index_url=url, extra_index_urls=(url,))
    assert options.index_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "packages.example.com",
        "ftp://x/y",
        "https://",
        "https://a b/",
        "https://a/'",
        "=https://a",
    ],
)
def test_no_index_urls(url):
    assert refusal(index_url=url).message.startswith("index-url: ")
    assert refusal(extra_index_urls=(url,)).message.startswith("extra-index-url: ")


@pytest.mark.parametrize("login", ["user:secret", "secret"])
def test_index_url_with_credentials(login):
    error = refusal(index_url=f"company=https://{login}@packages.example.com/simple")
    assert "secret" not in error.message + error.hint.replace("--secret", "")
    assert "https://packages.example.com/simple" in error.hint


@pytest.mark.parametrize(
    ("given", "platform"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
    ],
)
def test_platforms(given, platform):
    assert BuildOptions(platform=given).platform == platform


@pytest.mark.parametrize("platform", ["", "amd64", "windows/amd64", "linux/arm/v7"])
def test_no_platforms(platform):
    assert refusal(platform=platform).hint == "linux/amd64 or linux/arm64"


# Secrets


def test_a_secret_from_a_file(tmp_path):
    path = tmp_path / "netrc"
    path.write_text("machine a login b password c")
    secret = parse_secret(f"id=netrc,src={path}")
    assert read_secrets([secret]) == {"netrc": b"machine a login b password c"}


def test_a_secret_from_a_variable(monkeypatch):
    monkeypatch.setenv("UV_INDEX_X_PASSWORD", "p")
    monkeypatch.setenv("OTHER", "q")
    secrets = [
        parse_secret("id=UV_INDEX_X_PASSWORD"),
        parse_secret("id=UV_INDEX_X_USERNAME,env=OTHER"),
    ]
    assert read_secrets(secrets) == {"UV_INDEX_X_PASSWORD": b"p", "UV_INDEX_X_USERNAME": b"q"}
    assert secrets[0].is_variable


def test_a_secret_by_its_other_name():
    assert parse_secret("id=pip,source=/x,type=file") == Secret(id="pip.conf", source=Path("/x"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("netrc", "'netrc'"),
        ("id=netrc", "either a file or a variable"),
        ("id=netrc,src=/a,env=B", "either a file or a variable"),
        ("src=/x", "no id"),
        ("id=netrc,src=", "'src='"),
        ("id=netrc,path=/x", "'path=/x'"),
        ("id=aws,src=/x", "'aws'"),
        ("id=UV_index,env=A", "'UV_index'"),
    ],
)
def test_no_secrets(text, says):
    with pytest.raises(OptionError) as caught:
        parse_secret(text)
    assert says in caught.value.message
    assert caught.value.hint


def test_an_unknown_secret_suggests():
    with pytest.raises(OptionError) as caught:
        parse_secret("id=pipconf,src=/x")
    assert "did you mean 'pip.conf'?" in caught.value.hint


def test_a_secret_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_X", raising=False)
    with pytest.raises(OptionError, match="secret ca: cannot read"):
        parse_secret(f"id=ca,src={tmp_path}/none").read()
    with pytest.raises(OptionError, match="UV_X is not set"):
        parse_secret("id=UV_X").read()


def test_a_secret_larger_than_engines_take(tmp_path):
    path = tmp_path / "ca"
    path.write_bytes(b"x" * (500 * 1024 + 1))
    with pytest.raises(OptionError, match="512001 bytes"):
        parse_secret(f"id=ca,src={path}").read()


def test_a_secret_given_twice():
    secret = parse_secret("id=ca,src=/x")
    assert "given twice" in refusal(secrets=(secret, secret)).message


# Settings


def project(folder: Path, text: str) -> Settings:
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
    assert make_options(settings=settings) == BuildOptions(
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
    settings = Settings(
        folder=tmp_path,
        tags=("old:1",),
        base_image="old",
        apt=("a1", "b1"),
        env={"A": "old", "B": "kept"},
        secrets=("id=ca,src=old", "id=netrc,src=kept"),
        index_url="https://old.example.com/simple",
    )
    options = make_options(
        settings=settings,
        tags=["new:1", "new"],
        base_image="new",
        apt=["b1", "c1"],
        env=["A=new=1"],
        labels=["a="],
        secrets=["id=ca,src=/new"],
        index_url="https://new.example.com/simple",
    )
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


def test_the_same_secret_twice_on_the_command_line():
    with pytest.raises(OptionError, match="given twice"):
        make_options(secrets=["id=ca,src=/a", "id=ca,src=/b"])


@pytest.mark.parametrize("field", ["env", "labels"])
def test_an_assignment_without_a_value(field):
    with pytest.raises(OptionError, match="'A' has no value"):
        make_options(**{field: ["A"]})


def test_the_nearest_table_counts(tmp_path):
    project(tmp_path, '[tool.mfimage]\nplatform = "linux/arm64"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    assert read_settings(inner).platform == "linux/arm64"


def test_no_settings(tmp_path):
    assert project(tmp_path, "[project]\nname = 'x'\n").folder in (None, tmp_path)


def test_an_empty_table(tmp_path):
    assert project(tmp_path, "[tool.mfimage]\n") == Settings(folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ('base_image = "x"', "tool.mfimage.base_image: there is no such", "'base-image'"),
        ('tag = ["x"]', "tool.mfimage.tag: there is no such", "'tags'"),
        ("zzzz = 1", "tool.mfimage.zzzz: there is no such", "base-image"),
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
    with pytest.raises(OptionError, match="is no table"):
        project(tmp_path, "[tool]\nmfimage = 1\n")
