"""Locks, solved by the real uv on an index of our own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.lock import uv
from mfimage.capture.lock.indexes import IndexOptions, without_credentials
from mfimage.capture.lock.notes import Note, solve_notes
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.solve import Lock, lock_requirements
from mfimage.capture.lock.uv import UvFailure, run_uv
from mfimage.errors import LockError
from tests.capture.wheelhouse import Index, sdist, serve_index, wheel, write_source

X86 = "cp311-cp311-manylinux_2_28_x86_64"
ARM = "cp311-cp311-manylinux2014_aarch64"
WINDOWS = "cp311-cp311-win_amd64"


AMD64 = Platform(python="3.11", name="linux/amd64")


def lock(*requirements: str, platform: str = "linux/amd64", **options: Any) -> Lock:
    wanted = Platform(python="3.11.7", name=platform)
    return lock_requirements(requirements, platform=wanted, **options)


def versions(data: bytes) -> dict[str, str]:
    return {package.name: package.version for package in Lock(data=data).packages}


def test_a_lock_has_what_fits_the_target_with_hashes_and_nothing_of_this_machine(
    index: Index, tmp_path: Path
) -> None:
    fast = [wheel("fast", tag=tag) for tag in (X86, ARM, WINDOWS)]
    index.add(*fast, wheel("app", requires=["fast", "nt; sys_platform == 'win32'"]))
    data = lock("app").data
    base = index.url.removesuffix("/simple")
    digest = hashlib.sha256(fast[0][1]).hexdigest()
    app = hashlib.sha256(index.files["app-1.0-py3-none-any.whl"]).hexdigest()
    assert data.decode() == (
        'lock-version = "1.0"\n'
        "environments = [\"platform_machine == 'x86_64' and sys_platform == 'linux'\"]\n"
        'requires-python = "==3.11.*"\n'
        'created-by = "mfimage"\n'
        f'\n[[packages]]\nname = "app"\nversion = "1.0"\nindex = "{index.url}"\nwheels = [\n'
        f'    {{ url = "{base}/files/app-1.0-py3-none-any.whl", '
        f'hashes = {{ sha256 = "{app}" }} }},\n]\n'
        f'\n[[packages]]\nname = "fast"\nversion = "1.0"\nindex = "{index.url}"\nwheels = [\n'
        f'    {{ url = "{base}/files/fast-1.0-{X86}.whl", '
        f'hashes = {{ sha256 = "{digest}" }} }},\n]\n'
    )
    os.chdir(tmp_path)  # another folder, the same bytes
    assert lock("app").data == data
    assert ARM in lock("app", platform="linux/arm64").data.decode()


def test_uv_installs_what_is_locked(index: Index, tmp_path: Path) -> None:
    index.add(wheel("app"))
    source = write_source(tmp_path / "mine", "mine")
    locked = lock("app", f"mine @ {source.as_uri()}")
    folder = tmp_path / "package"
    (folder / "wheels").mkdir(parents=True)
    (folder / "pylock.toml").write_bytes(locked.data)
    for name, path in locked.wheels.items():
        shutil.copy(path, folder / "wheels" / name)
    command = [uv.find_uv(), "pip", "install", "-q", "--target", str(tmp_path / "to"), "--no-deps"]
    command += ["--python-platform", Platform(python="3.11", name="linux/amd64").uv_platform]
    command += ["--python-version", "3.11", "-r", str(folder / "pylock.toml")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "to" / "app.py").exists()
    assert (tmp_path / "to" / "mine.py").exists()


def test_a_source_folder_gives_the_same_wheel_twice_and_stays_clean(
    index: Index, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "mine", "mine")
    (source / ".venv").mkdir()
    (source / ".venv" / "pyvenv.cfg").touch()
    (source / "build" / "lib").mkdir(parents=True)
    before = sorted(source.rglob("*"))
    first = lock(f"-e {source}")
    time.sleep(1.1)
    os.utime(source / "mine.py")
    (source / "mine.py").chmod(0o664)
    moved = source.rename(tmp_path / "moved")
    second = lock(f"mine @ {moved.as_uri()}")
    assert first.data == second.data
    assert list(first.wheels) == ["mine-1.0-py3-none-any.whl"]
    built = first.wheels["mine-1.0-py3-none-any.whl"]
    assert built.read_bytes() == second.wheels["mine-1.0-py3-none-any.whl"].read_bytes()
    assert hashlib.sha256(built.read_bytes()).hexdigest() in first.data.decode()
    assert b'path = "wheels/mine-1.0-py3-none-any.whl"' in first.data
    assert str(tmp_path) not in first.data.decode()
    assert sorted(path.relative_to(moved) for path in moved.rglob("*")) == [
        path.relative_to(source) for path in before
    ]
    (moved / "mine.py").write_text("X = 2\n")
    assert lock(str(moved)).data != first.data
    folder = built.parent
    del first
    assert not folder.exists()


def test_a_source_whose_metadata_takes_a_build(index: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "mine", "mine", version="1.7")
    text = (source / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(text[text.index("[build-system]") :])
    assert versions(lock(str(source)).data) == {"mine": "1.7"}


def test_a_git_requirement_is_built_at_its_commit(index: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "mine", "mine")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(source)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    first = lock(f"mine @ git+{source.as_uri()}")
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    (source / "mine.py").write_text("X = 2\n")
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    pinned = lock(f"mine @ git+{source.as_uri()}@{head.stdout.strip()}")
    assert first.data == pinned.data
    assert lock(f"mine @ git+{source.as_uri()}").data != first.data


def test_what_has_no_wheel_is_built_from_its_source(index: Index, tmp_path: Path) -> None:
    index.add(sdist(write_source(tmp_path / "old", "old"), "old"), wheel("app", requires=["old"]))
    locked = lock("app")
    assert list(locked.wheels) == ["old-1.0-py3-none-any.whl"]
    assert lock("app").data == locked.data


def test_a_built_wheel_has_to_fit(index: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "mine", "mine", tag="cp311-cp311-linux_x86_64")
    assert lock(str(source)).wheels
    with pytest.raises(
        LockError, match=r"built as mine-1.0-cp311-cp311-linux_x86_64.whl, which"
    ) as e:
        lock(str(source), platform="linux/arm64")
    assert "linux/arm64 and Python 3.11" in e.value.message


def test_a_source_that_does_not_build_says_why(index: Index, tmp_path: Path) -> None:
    source = write_source(tmp_path / "mine", "mine")
    (source / "backend.py").write_text("raise RuntimeError('no compiler here')\n")
    with pytest.raises(LockError, match="no compiler here"):
        lock(str(source))


def test_wheels_of_the_caller_are_included(index: Index, tmp_path: Path) -> None:
    name, data = wheel("mine", requires=["app>=1"])
    (tmp_path / name).write_bytes(data)
    index.add(wheel("app"), wheel("mine", "2.0"))
    locked = lock("mine", wheels={name: tmp_path / name})
    assert versions(locked.data) == {"app": "1.0", "mine": "1.0"}
    assert locked.wheels == {name: tmp_path / name}


def test_a_conflict_names_both(index: Index) -> None:
    index.add(wheel("app", requires=["base>=2"]), wheel("base"), wheel("base", "2.0"))
    with pytest.raises(LockError) as caught:
        lock("app==1.0", "base==1.0")
    message = " ".join(caught.value.message.split())
    # Which versions of app uv names depends on its own version.
    assert re.search(r"(app==1\.0 depends|all versions of app depend) on base>=2", message)
    assert "you require base==1.0" in message
    assert caught.value.hint


@pytest.mark.parametrize("requirement", ["nowhere", "app==9"])
def test_what_is_on_no_index(index: Index, requirement: str) -> None:
    index.add(wheel("app"))
    with pytest.raises(LockError, match=rf"(?s)No solution found.*{requirement}"):
        lock(requirement)


def test_no_wheel_and_no_source_for_the_target(index: Index) -> None:
    index.add(wheel("app", tag=WINDOWS))
    with pytest.raises(LockError, match=r"(?s)app==1\.0 has no wheels with a matching"):
        lock("app")


def test_mfimage_is_never_locked(index: Index) -> None:
    index.add(wheel("mfimage", requires=["docker"]), wheel("app", requires=["mfimage"]))
    assert versions(lock("app", "mfimage==1.0").data) == {"app": "1.0"}


def test_an_unknown_platform(index: Index) -> None:
    with pytest.raises(LockError, match="platform: 'windows/amd64'"):
        lock("app", platform="windows/amd64")


def test_a_dead_index_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(LockError, match=r"(?s)127\.0\.0\.1:9/simple/app.*refused") as caught:
        lock("app", index=IndexOptions(index_url="http://me:hunter2hunter@127.0.0.1:9/simple"))
    assert "hunter2hunter" not in str(caught.value)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(LockError) as caught:
        lock("app", index=IndexOptions(index_url="http://127.0.0.1:9/simple"))
    assert "SSL_CERT_FILE names /nowhere/ca.pem" in (caught.value.hint or "")


def test_credentials_reach_the_index_and_nothing_else(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = "s3cretW0rd"
    with serve_index(login=("robot", planted)) as private:
        private.add(wheel("app"), sdist(write_source(tmp_path / "old", "old"), "old"))
        options = IndexOptions(extra_index_urls=(private.url,))
        locked = lock("app", "old", index=options)
        assert set(versions(locked.data)) == {"app", "old"}
        shown = [locked.data.decode(), repr(locked), repr(locked.packages)]
        shown += [built.read_bytes().decode(errors="replace") for built in locked.wheels.values()]
        with pytest.raises(LockError) as caught:
            lock("app", "gone", index=options)
        shown += [str(caught.value), str(caught.value.hint)]
        private.login = ("robot", "changed")
        with pytest.raises(LockError, match=r"Unauthorized|valid authentication") as caught:
            lock("app", "old==2", index=options)
        shown += [str(caught.value), str(caught.value.hint)]
        with pytest.raises(LockError) as caught:
            lock(f"x @ git+http://robot:{planted}@127.0.0.1:{private.url.rsplit(':')[-1]}")
        shown += [str(caught.value), str(caught.value.hint)]
    assert not [text for text in shown if planted in text]


def test_secrets_are_masked_in_what_uv_says(tmp_path: Path) -> None:
    environment = {"UV_INDEX_MINE_PASSWORD": "p4ssword", "UV_INDEX": "https://u:q%40ueer@h/"}
    text = "p4ssword q@ueer q%40ueer https://a:b@host/x git+ssh://git@host/y"
    script = f"import sys; sys.exit({text!r})"
    with pytest.raises(UvFailure) as caught:
        run_uv(["pip", "install"], tmp_path, environment, prefix=[sys.executable, "-c", script])
    assert "*** *** *** https://***@host/x git+ssh://***@host/y" in caught.value.message
    assert without_credentials("https://u:p@h:1/a?b#c") == "https://h:1/a?b#c"


def test_a_wheel_is_repacked_with_its_content(index: Index, tmp_path: Path) -> None:
    locked = lock(str(write_source(tmp_path / "mine", "mine", code="Y = 3\n")))
    with zipfile.ZipFile(next(iter(locked.wheels.values()))) as read:
        assert read.read("mine.py") == b"Y = 3\n"
        assert {member.date_time for member in read.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert read.namelist()[-1].endswith("RECORD")


def test_one_solve_says_who_requires_what_and_where_it_is(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(wheel("app", requires=["base>=1", "speed[fast]", "nt; sys_platform == 'win32'"]))
    index.add(wheel("base"), wheel("base", "2.0"), wheel("crt"), wheel("also", requires=["base"]))
    index.add(wheel("speed", requires=["base", "crt; extra == 'fast'"], extras=["fast"]))
    expected = solved_again(lock("app", "also"))
    assert expected["base"].requirers == ("also", "app", "speed")
    assert expected["crt"].index == index.url
    monkeypatch.setattr(uv, "compile_notes", None)
    assert lock("app", "also").notes == expected


def test_a_log_that_says_too_little_takes_a_second_solve(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(wheel("app", requires=["base"]), wheel("base"))
    whole = lock("app").notes
    monkeypatch.setattr(uv, "_LOGGED", "off")
    assert lock("app").notes == whole
    # With several indexes, the log does not say which one the package is from.
    with serve_index() as other:
        other.add(wheel("app"))
        found = lock("app", index=IndexOptions(extra_index_urls=(other.url,)))
        assert found.notes["app"].index == other.url


def solved_again(locked: Lock) -> Mapping[str, Note]:
    return solve_notes(locked.packages, AMD64, index=IndexOptions(), directory=Path.cwd())
