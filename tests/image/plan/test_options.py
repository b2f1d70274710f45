from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mfimage.cli import main
from mfimage.errors import OptionError
from mfimage.image.plan.options import OPTIONS, BuildOptions, refuse_credentials
from mfimage.image.secrets.build import parse_secret


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


def test_a_secret_given_twice():
    secret = parse_secret("id=ca,src=/x")
    assert "given twice" in refusal(secrets=(secret, secret)).message


def test_what_is_locked_for_ray():
    options = BuildOptions(target="ray", ray_version="2.60.0", parts=("serve", "data"))
    assert "ray[default,data,serve]==2.60.0" in options.image_target.requirements
    assert "ray[default]>=2.53" in BuildOptions(target="ray").image_target.requirements


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"ray_version": "2.60.0"}, "ray-version: an image for fastapi", "--target ray"),
        ({"parts": ("serve",)}, "with: an image for fastapi", "--target ray"),
        ({"target": "ray", "parts": ("tune",)}, "with: 'tune' is not a part of Ray", "data, serve"),
        ({"target": "ray", "ray_version": "2.9.0"}, "'2.9.0' is not a version of Ray", "2.53.0"),
        ({"target": "ray", "ray_version": "newest"}, "'newest' is not a version of Ray", "2.53.0"),
    ],
)
def test_what_no_image_can_have_of_ray(options, message, hint):
    with pytest.raises(OptionError) as caught:
        BuildOptions(**options)
    assert message in caught.value.message
    assert hint in caught.value.hint


DOCS = Path(__file__).parents[3] / "docs" / "image.md"
START, END = "<!-- options: made from mfimage/image/plan/options.py -->\n", "<!-- /options -->"


def table() -> str:
    rows = ["| flag | `[tool.mfimage]` | |", "|---|---|---|"]
    for option in OPTIONS:
        takes = option.metavar or "|".join(option.choices)
        flags = [*option.flags[:-1], f"{option.flags[-1]} {takes}".strip()]
        flags = flags if option.commands else []  # a setting only
        cells = (
            ", ".join(f"`{flag}`" for flag in flags).replace("|", "\\|"),
            f"`{option.key}`" if option.key else "",
            option.help.replace("python:<minor>-slim", "`python:<minor>-slim`"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_table_in_the_docs_is_made_from_the_list():
    """Write it anew with MFIMAGE_WRITE_GOLDEN=1."""
    before, _, rest = DOCS.read_text().partition(START)
    found, _, after = rest.partition(END)
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        DOCS.write_text(f"{before}{START}{table()}{END}{after}")
        return
    assert found == table()


@pytest.mark.parametrize("command", ["build", "plan", "render", "verify"])
def test_each_command_has_its_options(command):
    flags = {name: param for param in main.commands[command].params for name in param.opts}
    for option in OPTIONS:
        taken = option.flags[-1].partition("/")[0] in flags
        if option.name != "output":  # render's is another
            assert taken == (command in option.commands), option.name


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_help_is_a_sentence(option):
    """What an option does, not a fragment."""
    assert re.match(r"[A-Z].*\.( \[default: \w+\])?$", option.help), option.help
    assert option.help.split()[0] not in ("Of", "For", "By", "The")
