"""The text of Dockerfiles. ``MFIMAGE_WRITE_GOLDEN=1`` writes the expected ones anew."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage import templating
from mfimage.errors import OptionError
from mfimage.files import MARKER
from mfimage.image.docker.render import comment, exec_form, line, quote, render, word
from mfimage.image.plan.options import BuildOptions
from mfimage.image.secrets.build import parse_secret
from tests.image.builds import builder
from tests.image.sample import RAY_LOCK, make_sample

GOLDEN = Path(__file__).parents[2] / "golden"
DIGEST = "sha256:" + "0a" * 32

HOSTILE = [
    "",
    " ",
    "  leading and trailing  ",
    "'single' \"double\" `back`",
    "$HOME ${HOME} $$ ${HOME:-x} $(id) \\$HOME",
    "\\",
    "\\\\",
    "ends with \\",
    'ends with "',
    '\\n is no newline, \\" neither',
    "a\tb",
    "#!/not/a/comment # nor this",
    "a=b c=d",
    "; rm -rf / && echo | cat > x",
    "{{ jinja }} {% raw %} {#",
    '{"json": ["of", {"schemas": "\\u00e9 \\" \\\\"}]}',
    "größe 日本語 🐍",
    "\u00a0\u3000\ufeff\u200b",
    "FROM scratch",
    "!%^*()[]<>?~",
    "x" * 30_000,
    '"' * 30_000,
]


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


def everything(sample):
    sample.system_packages = ("libgomp1",)
    secrets = ("id=ca,src=/x", "id=netrc,src=/x", "id=pip,src=/x", "id=UV_INDEX_COMPANY_PASSWORD")
    return sample.plan(
        base="registry.example.com:5000/team/python:3.11",
        digest=DIGEST,
        apt=("git=1:2.39.5-0+deb12u2",),
        env={"GREETING": 'say "hello" to $USER \\ all', "EMPTY": ""},
        labels={"com.example.team": "data"},
        secrets=tuple(parse_secret(text) for text in secrets),
        index_url="company=https://packages.example.com/simple",
        extra_index_urls=("https://more.example.com/simple", "https://most.example.com/a~b/simple"),
    )


@pytest.mark.parametrize("name", ["fastapi", "fastapi-everything", "ray"])
def test_golden(sample, name, monkeypatch):
    monkeypatch.setattr("mfimage.image.plan.plan.__version__", "1.2.3")
    monkeypatch.setattr("mfimage.image.plan.labels.__version__", "1.2.3")
    if name == "ray":
        sample.lock = RAY_LOCK
    plan = everything(sample) if name == "fastapi-everything" else sample.plan(target=name)
    hexes = plan.digest.removeprefix("sha256:")
    text = render(plan).replace(hexes, "<function>").replace(f'"{hexes[:12]}"', '"<function>"')
    path = GOLDEN / f"{name}.Dockerfile"
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_it_builds_with_old_engines(sample):
    text = render(everything(sample))
    for too_new in ("<<", "--link", "syntax=", "--exclude", ",env="):
        assert too_new not in text


def test_the_first_line_is_no_directive(sample):
    first = render(sample.plan()).splitlines()[0]
    assert first.startswith(MARKER)
    assert "=" not in first


def test_nothing_is_installed_in_the_final_stage(sample):
    final = render(everything(sample)).split("\nFROM ")[-1]
    runs = [step for step in final.split("\n") if step.startswith("RUN")]
    assert len(runs) == 1
    assert "apt-get" in final
    for tool in ("/opt/uv", "pip", "compileall", "secret,id=netrc", "UV_INDEX"):
        assert tool not in final
    sample.system_packages = ()
    assert "\nRUN " not in render(sample.plan()).split("\nFROM ")[-1]


def test_credentials_reach_the_dependency_steps_only(sample):
    plan = everything(sample)
    text = render(plan)
    build, _, final = text.split("\nFROM ")[1:]
    assert build.count("type=secret,id=UV_INDEX_COMPANY_PASSWORD") == 2
    assert re.findall("type=secret,id=([^, ]*)", final) == ["ca"]
    assert "type=secret" not in render(sample.plan(apt=("git",)))


def test_what_changes_least_comes_first(sample):
    text = render(everything(sample))
    order = ["apt-get", "COPY --from=build", "COPY layers/artifact", "COPY --from=runtime"]
    order += ["COPY layers/code", "ENV PATH", "LABEL", "USER 1000:0", "ENTRYPOINT"]
    final = text.index("# The image.")
    places = [text.index(step, final) for step in order]
    assert places == sorted(places)


def test_a_code_edit_changes_one_label_and_nothing_else(sample):
    before = render(sample.plan()).splitlines()
    sample.code["predict.py"] += b"# edited\n"
    after = render(sample.plan()).splitlines()
    changed = [b for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2
    assert "io.mfimage.function.digest" in changed[0]
    assert "org.opencontainers.image.version" in changed[1]


def test_a_password_in_the_text_is_refused(sample, monkeypatch):
    plan = sample.plan()
    object.__setattr__(plan, "env", {"URL": "https://me:secret@example.com"})
    with pytest.raises(OptionError, match="the Dockerfile: a https:// URL has a password"):
        render(plan)


def test_a_template_cannot_forget_to_quote(sample, monkeypatch):
    monkeypatch.setattr(templating, "template_text", lambda name: "FROM {{ plan.base.pinned }}\n")
    with pytest.raises(TypeError, match="is not quoted"):
        render(sample.plan())


def test_a_template_cannot_name_what_is_not_there(sample, monkeypatch):
    monkeypatch.setattr(templating, "template_text", lambda name: "FROM {{ plan.bse | word }}\n")
    with pytest.raises(Exception, match="bse"):
        render(sample.plan())


def test_templates_of_an_installed_package_come_first(sample, monkeypatch, tmp_path):
    text = render(sample.plan())
    for path in (Path(__file__).parents[3] / "templates").glob("*.j2"):
        (tmp_path / path.name).write_text(path.read_text().replace("# The image.", "# Moved."))
    monkeypatch.setattr("importlib.resources.files", {"mfimage.templates": tmp_path}.__getitem__)
    assert render(sample.plan()) == text.replace("# The image.", "# Moved.")


# Quoting


def unquote(text: str) -> str:
    """Read a quoted value as BuildKit does (frontend/dockerfile/shell/lex.go)."""
    assert text[0] == text[-1] == '"'
    assert len(text) > 1
    parts = re.findall(r"\\.|.", text[1:-1], re.DOTALL)
    assert not {'"', "$", "\\", "\n", "\r"} & set(parts)
    assert all(part[1] in '"$\\' for part in parts if len(part) == 2)
    return "".join(part[-1] for part in parts)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])))
def test_what_options_let_through_comes_out_as_it_went_in(value):
    BuildOptions(env={"A": value}) if "://" not in value else None
    assert unquote(quote(value)) == value


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "x" * 70_000])
def test_quote_refuses(value):
    with pytest.raises(OptionError):
        quote(value)


@given(st.text(max_size=20))
def test_a_word_is_one_to_dockerfile_and_shell(value):
    try:
        found = word(value)
    except OptionError:
        return
    assert shlex.split(found) == [value]
    assert shlex.quote(value).strip("'") == value
    assert "$" not in value


@given(st.lists(st.text()))
def test_exec_form_is_json(words):
    text = exec_form(words)
    assert json.loads(text) == words
    assert "\n" not in text


@given(st.text())
def test_a_comment_stays_on_its_line(value):
    text = comment(value)
    assert text.isascii()
    assert text.isprintable() or not text


@pytest.mark.parametrize("value", ["a\nRUN evil", "ends with \\"])
def test_a_part_of_a_command_stays_on_its_line(value):
    with pytest.raises(OptionError):
        line(value)


def test_artifact_names_are_comments(sample):
    sample.artifacts = {"größe\nRUN evil": b"1"}
    assert "\n# gr\\u00f6\\u00dfe\\nRUN evil\n" in render(sample.plan())


@pytest.mark.docker
def test_hostile_values_come_out_of_an_image_as_they_went_in(tmp_path):
    BuildOptions(env={f"A{n}": value for n, value in enumerate(HOSTILE)})
    steps = ["FROM python:3.11-slim"]
    for instruction, name in (("ENV", "A"), ("LABEL", "a.b/c-")):
        pairs = [f"{word(f'{name}{n}')}={quote(value)}" for n, value in enumerate(HOSTILE)]
        steps.append(f"{instruction} " + " \\\n    ".join(pairs))
        steps += [f"{instruction} {pair}" for pair in pairs[:3]]
    with builder() as build:
        info = build.lines(tmp_path, *steps)
    assert {n: info.env[f"A{n}"] for n in range(len(HOSTILE))} == dict(enumerate(HOSTILE))
    assert {n: info.labels[f"a.b/c-{n}"] for n in range(len(HOSTILE))} == dict(enumerate(HOSTILE))
