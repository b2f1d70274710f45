"""Which indexes are asked: what the caller names, uv's configuration, else pip's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mfimage.capture.lock.indexes import IndexOptions, authorization
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.solve import Lock, lock_requirements
from mfimage.errors import LockError
from tests.capture.wheelhouse import Index, serve_index, wheel

PIP_CONF = """
[global]
timeout = 60
index-url = https://u:p@mirror/simple
extra_index_url =
    https://one/simple
    file:///opt/simple
    https://two/simple
[install]
index-url = https://mirror/for-install
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a ``pip.conf``, and nothing else that says where packages come from."""
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "no-venv"))
    conf = tmp_path / "home" / ".config" / "pip" / "pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(PIP_CONF)
    return tmp_path / "home"


def ask(folder: Path, options: IndexOptions | None = None) -> list[dict[str, str]]:
    """Return the variables of uv of every environment to try."""
    found = (options or IndexOptions()).environments(os.environ, folder)
    return [{k: v for k, v in each.items() if k.startswith("UV_")} for each in found]


FROM_PIP = {
    "UV_DEFAULT_INDEX": "https://mirror/for-install",
    "UV_INDEX": "https://one/simple https://two/simple",
}


def test_pips_indexes_are_asked_where_uv_knows_none(home: Path) -> None:
    # As pip does: if need be, in all of them.
    best = {**FROM_PIP, "UV_INDEX_STRATEGY": "unsafe-best-match"}
    assert ask(home) == [FROM_PIP, best]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("work/uv.toml", "index-url = 'https://mine/simple'"),
        ("uv.toml", "[[index]]\nurl = 'https://mine/simple'"),
        ("work/pyproject.toml", "[tool.uv.pip]\nextra-index-url = ['https://mine/simple']"),
        ("home/.config/uv/uv.toml", "[[index]]\nurl = 'https://mine/simple'"),
    ],
)
def test_uvs_own_files_come_before_pips(home: Path, tmp_path: Path, file: str, text: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for other in ("work/pyproject.toml", "uv.toml"):
        (tmp_path / other).write_text("[project]\nname = 'x'\n")
    assert ask(work)[0] == FROM_PIP
    place = tmp_path / file
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    assert ask(work) == [{}]


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX"])
def test_uvs_own_variables_come_before_pips(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "https://mine/simple")
    assert ask(home) == [{name: "https://mine/simple"}]


def test_pips_own_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "venv" / "pip.conf"
    site.parent.mkdir()
    site.write_text("[global]\nextra-index-url = https://site/simple\n")
    monkeypatch.setenv("VIRTUAL_ENV", str(site.parent))
    assert ask(home)[0]["UV_INDEX"] == "https://site/simple"
    (tmp_path / "chosen").write_text("[global]\nextra-index-url = https://chosen/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "chosen"))
    assert ask(home)[0]["UV_INDEX"] == "https://chosen/simple"
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a/simple https://b/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "https://c/simple")
    expected = {"UV_DEFAULT_INDEX": "https://c/simple"}
    assert ask(home)[0] == {**expected, "UV_INDEX": "https://a/simple https://b/simple"}
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_INDEX_URL")
    assert ask(home)[0] == {"UV_INDEX": "https://a/simple https://b/simple"}


def test_a_pip_conf_that_is_none_is_passed_over(home: Path) -> None:
    (home / ".config" / "pip" / "pip.conf").write_text("index-url = https://x\n")
    assert ask(home) == [{}]


def test_what_the_caller_names_comes_first(home: Path) -> None:
    options = IndexOptions(index_url="https://x/simple", extra_index_urls=("a=https://y/simple",))
    first, second = ask(home, options)
    assert first == {
        "UV_DEFAULT_INDEX": "https://x/simple",
        "UV_INDEX": "a=https://y/simple https://one/simple https://two/simple",
    }
    assert second == {**first, "UV_INDEX_STRATEGY": "unsafe-first-match"}


def test_a_strategy_of_the_users_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_STRATEGY", "first-index")
    assert ask(home) == [{**FROM_PIP, "UV_INDEX_STRATEGY": "first-index"}]


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        ({}, None),
        ({"UV_INDEX": "https://host:8443/simple"}, None),
        ({"UV_INDEX": "https://x:y@other/simple https://me:p%40ss@host:8443/simple"}, "me:p@ss"),
        ({"UV_DEFAULT_INDEX": "https://me:pass@host:8443/simple"}, "me:pass"),
        (
            {
                "UV_INDEX": "my-corp.x=https://host:8443/simple",
                "UV_INDEX_MY_CORP_X_USERNAME": "me",
                "UV_INDEX_MY_CORP_X_PASSWORD": "pass",
            },
            "me:pass",
        ),
        ({"UV_INDEX": "b=https://host:8443/s", "UV_INDEX_B_PASSWORD": "token"}, ":token"),
    ],
)
def test_credentials_of_an_index_serve_for_its_files(
    home: Path, variables: dict[str, str], login: str | None
) -> None:
    import base64

    expected = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
    assert authorization("https://host:8443/files/a.whl", variables) == expected


def lock(*requirements: str, **options: object) -> Lock:
    return lock_requirements(
        requirements,
        platform=Platform(python="3.11", name="linux/amd64"),
        index=IndexOptions(**options),
    )


def test_an_extra_index_with_old_versions_of_what_the_default_one_has(index: Index) -> None:
    """As PyTorch's index of builds for CPUs has."""
    index.add(wheel("numeric", "2.0"), wheel("torch", "3.0", requires=["cuda"]), wheel("cuda"))
    with serve_index() as cpu:
        cpu.add(wheel("torch", "3.0+cpu", requires=["numeric>=1"]), wheel("numeric", "1.0"))
        pinned = lock("torch==3.0+cpu", "numeric==2.0", extra_index_urls=[cpu.url])
        files = {package.name: package.files[0] for package in pinned.packages}
        assert str(files["torch"].url).startswith(cpu.url.removesuffix("/simple"))
        assert str(files["numeric"].url).startswith(index.url.removesuffix("/simple"))
        # The first index that has a version that fits decides, so nobody can push in from behind.
        loose = lock("torch", "numeric", extra_index_urls=[cpu.url])
        assert {each.name: each.version for each in loose.packages} == {
            "numeric": "1.0",
            "torch": "3.0+cpu",
        }


def test_an_index_that_refuses_is_not_passed_over(index: Index) -> None:
    index.add(wheel("mine", "9.0"))
    with serve_index(login=("robot", "s3cretW0rd")) as private:
        private.add(wheel("mine"))
        private.login = ("robot", "changed")
        with pytest.raises(LockError, match="lack of valid authentication") as caught:
            lock("mine==1.0", extra_index_urls=[private.url])
    assert "UV_INDEX_<NAME>_USERNAME" in (caught.value.hint or "")
