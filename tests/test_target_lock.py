"""The target's lock is solved once, and kept where everybody finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mfimage.errors import PackageError
from mfimage.image.plan import lock as module
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.subject import function_source
from mfimage.package.store import open_package
from tests.support.packages import make_package

LOCKS = [b'lock-version = "1.0"\n# %d\n' % number for number in range(9)]


@pytest.fixture
def reference(tmp_path) -> str:
    return make_package(tmp_path / "root")


@pytest.fixture
def solved(monkeypatch) -> list[str]:
    """What was solved for; each solution is another one."""
    calls: list[str] = []

    def solve(package, options, platform) -> bytes:
        calls.append(platform)
        return LOCKS[len(calls)]

    monkeypatch.setattr(module, "_solve", solve)
    return calls


def lock(reference: str, platform: str = "linux/amd64", said: list[str] | None = None, **options):
    say = (said if said is not None else []).append
    return module.target_lock(
        function_source(open_package(reference)), BuildOptions(**options), platform, say
    )


def kept(reference: str) -> list[Path]:
    return sorted((Path(reference).parent / "locks").iterdir())


def test_another_machine_gets_the_same(reference, solved, tmp_path, monkeypatch):
    first = lock(reference)
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("UV_INDEX_URL", "https://mirror.example.com/simple")
    assert lock(reference) == first
    assert lock(reference, no_cache=True) == first
    assert solved == ["linux/amd64"]


def test_each_platform_and_target_has_its_own(reference, solved):
    locks = {
        lock(reference),
        lock(reference, "linux/arm64"),
        lock(reference, target="ray"),
        lock(reference, index_url="https://packages.example.com/simple"),
    }
    assert len(locks) == len(solved) == len(kept(reference)) == 4


def test_a_root_that_cannot_be_written_is_told_of(reference, solved, monkeypatch):
    from mfimage.errors import StorageError
    from mfimage.package.storage.local import LocalStorage

    def write(self, path, source):
        raise StorageError("cannot write: read-only")

    monkeypatch.setattr(LocalStorage, "write", write)
    said: list[str] = []
    first = lock(reference, said=said)
    assert said == ["the image's lock stays on this machine: cannot write: read-only"]
    assert lock(reference, said=said) == first
    assert len(solved) == 1, "this machine remembers"


@pytest.mark.parametrize("damage", ["text", "lock", "function"])
def test_a_changed_lock_is_refused(reference, solved, damage):
    lock(reference)
    (path,) = kept(reference)
    plain = json.loads(path.read_text())
    if damage == "lock":
        plain["lock"] += "[[packages]]\n"
    elif damage == "function":
        plain["function_lock"] = "sha256:" + "0" * 64
    path.write_text("{" if damage == "text" else json.dumps(plain))
    with pytest.raises(PackageError, match="damaged") as raised:
        lock(reference)
    assert "locks again" in raised.value.hint


def test_it_is_no_part_of_the_package(reference, solved):
    before = open_package(reference).spec.digest
    lock(reference)
    assert open_package(reference).spec.digest == before
