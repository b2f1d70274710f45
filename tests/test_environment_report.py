"""What ``mfimage env`` tells: each distribution, where it came from and why it is there."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.environment import report_environment
from mfimage.errors import ReferenceNotFound
from mfimage.package.spec import EnvironmentSpec
from mfimage.package.store import PackageStore
from tests.support.packages import make_package

HERE = importlib.metadata.version("orjson")
MINOR = ".".join(platform.python_version().split(".")[:2])


def locked(
    name: str, version: str, *, index: str | None = None, local: bool = False
) -> LockedPackage:
    file = f"{name}-{version}-py3-none-any.whl"
    url = None if local else f"https://files.company.example/{file}"
    wheel = WheelFile(name=file, sha256="0" * 64, url=url)
    return LockedPackage(name=name, version=version, files=(wheel,), index=index)


@pytest.fixture
def packages() -> list[LockedPackage]:
    team = "https://company.example/team/simple"
    return [
        locked("orjson", HERE, index="https://company.example/simple"),
        locked("pytest", "0.1", index=team),
        locked("torch", "2.5.1+cpu", index=team),
        locked("mine", "1.0", local=True),
        locked("plain", "1.0"),
    ]


def package(
    root: Path,
    packages: list[LockedPackage],
    *,
    minor: str = MINOR,
    reasons: Mapping[str, str] = {},
) -> str:
    wanted = Platform(python=minor, name="linux/amd64")
    lock = PackageStore(root).put_bytes(write_pylock(packages, wanted))
    fields = {field.name for field in dataclasses.fields(EnvironmentSpec)}
    told = {"reasons": reasons} if "reasons" in fields else {"unknown": {"reasons": dict(reasons)}}
    environment = EnvironmentSpec(
        python=f"{minor}.1",
        platform=wanted.name,
        source="requirements",
        lock=lock,
        system_packages=("libgomp1",),
        **told,  # type: ignore[arg-type]
    )
    return make_package(root, environment=environment)


def test_each_distribution_with_its_origin_and_its_reason(
    tmp_path: Path, packages: list[LockedPackage]
) -> None:
    reasons = {"torch": "imported by predict.py:3", "mine": "required by torch"}
    found = report_environment(package(tmp_path, packages, reasons=reasons))
    assert (found.function, found.python, found.source) == ("predict", f"{MINOR}.1", "requirements")
    assert [(each.name, each.origin, each.why) for each in found.distributions] == [
        ("mine", "wheel in the package", "required by torch"),
        ("orjson", "index simple", "not recorded"),
        ("plain", "index", "not recorded"),
        ("pytest", "index team/simple", "not recorded"),
        ("torch", "index team/simple", "imported by predict.py:3"),
    ]
    assert found.distributions[4].files == ("torch-2.5.1+cpu-py3-none-any.whl",)
    assert found.differences is None
    text = found.to_text()
    assert f"python           {MINOR}.1\n" in text
    assert "system packages  libgomp1\n\nmine    1.0 " in text
    assert "\ntorch   2.5.1+cpu  index team/simple     imported by predict.py:3" in text
    assert "company" not in json.dumps(found.to_dict()) + text


def test_how_the_running_interpreter_differs(tmp_path: Path, packages: list[LockedPackage]) -> None:
    found = report_environment(package(tmp_path, packages), diff=True)
    here = {each.name: each.here for each in found.distributions}
    assert here["orjson"] == HERE
    assert here["mine"] is None
    pytest_here = importlib.metadata.version("pytest")
    assert found.differences is not None
    named = [each for each in found.differences if " locked for" not in each]
    assert named == [
        "mine 1.0 is locked; it is not installed here",
        "plain 1.0 is locked; it is not installed here",
        f"pytest 0.1 is locked; {pytest_here} is installed here",
        "torch 2.5.1+cpu is locked; it is not installed here",
    ]
    assert found.to_text() == "\n".join(found.differences)


def test_another_python_and_platform_differ(
    tmp_path: Path, packages: list[LockedPackage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    reference = package(tmp_path, packages[:1], minor="3.99")
    found = report_environment(reference, diff=True)
    assert found.differences == (
        f"Python 3.99 is locked; this is {platform.python_version()}",
        "it is locked for linux/amd64; this is darwin/arm64",
    )


def test_an_interpreter_that_has_all_of_it(
    tmp_path: Path, packages: list[LockedPackage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    found = report_environment(package(tmp_path, packages[:1]), diff=True)
    assert found.differences == ()
    assert found.to_text() == "the running interpreter has exactly this environment"


def test_a_reference_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ReferenceNotFound):
        report_environment(str(tmp_path / "function.json"))
