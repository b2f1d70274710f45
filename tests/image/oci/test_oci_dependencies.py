"""The dependency layer: the same environment as the docker builder's, for any platform."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mfimage.capture.lock.uv import UvFailure
from mfimage.errors import BuildError, LockError
from mfimage.image.oci import _compile, dependencies
from mfimage.image.oci.dependencies import find_python
from mfimage.image.registry.location import Location
from tests.image.oci.bases import layout
from tests.image.oci.building import Written, build, oci_builder, plan_on
from tests.image.sample import Sample, make_sample
from tests.support.private_index import PASSWORD, private_index

SITE = "opt/venv/lib/python3.11/site-packages"
OWN = {
    "mfown/__init__.py": "VALUE = {'a', 'b'}\n\ndef main():\n    print(VALUE)\n",
    "mfown/tests/test_own.py": "assert True\n",
    "mfown/broken.py": "print 'two'\n",
    "mfown-1.0.data/scripts/mfown-sh": "#!/bin/sh\necho plain\n",
    "mfown-1.0.data/scripts/mfown-py": "#!python\nprint('script')\n",
    "mfown-1.0.data/data/share/mfown.txt": "data\n",
    "mfown-1.0.dist-info/entry_points.txt": "[console_scripts]\nmfown = mfown:main\n",
}


def wheel(files: Mapping[str, str | bytes] = OWN, name: str = "mfown") -> bytes:
    """Make a wheel whose RECORD is right."""
    folder = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(
        f"{n},{entry(c if isinstance(c, bytes) else c.encode())}\n" for n, c in files.items()
    )
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, content in {**files, f"{folder}/RECORD": record}.items():
            info = zipfile.ZipInfo(path)
            info.external_attr = (0o755 if "scripts" in path else 0o644) << 16
            archive.writestr(info, content)
    return data.getvalue()


def entry(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"sha256={digest},{len(content)}"


def locked(source: str, data: bytes, name: str = "mfown") -> bytes:
    file = f"{name}-1.0-py3-none-any.whl"
    return (
        f'lock-version = "1.0"\ncreated-by = "test"\n[[packages]]\nname = "{name}"\n'
        f'version = "1.0"\nwheels = [{{ name = "{file}", {source}, '
        f'hashes = {{ sha256 = "{hashlib.sha256(data).hexdigest()}" }} }}]\n'
    ).encode()


@pytest.fixture
def base(tmp_path) -> Location:
    return layout(tmp_path / "base", platforms=("linux/amd64", "linux/arm64"))


@pytest.fixture
def sample(tmp_path) -> Sample:
    """One whose environment is a wheel that travels: no index is asked."""
    sample, data = make_sample(tmp_path / "blobs"), wheel()
    file = "mfown-1.0-py3-none-any.whl"
    sample.wheels = {file: data}
    sample.lock = locked(f'path = "wheels/{file}"', data)
    return sample


def environment(sample: Sample, base: Location, tmp_path: Path, **options) -> dict[str, bytes]:
    out = Location(kind="oci", path=tmp_path / f"out{len(list(tmp_path.iterdir()))}")
    with oci_builder(**options) as builder:
        image = builder.build(plan_on(builder, sample, base), sample.blobs.path)
        builder.write([image], out, [])
    return installed(out)


def installed(out: Location) -> dict[str, bytes]:
    files = Written(out.path).files(1)
    return {path: data for path, data in files.items() if not path.endswith("/.wh..wh..opq")}


def test_scripts_run_the_environment_and_records_are_right(sample, base, tmp_path):
    files = environment(sample, base, tmp_path)
    assert files["opt/venv/bin/mfown"].startswith(b"#!/opt/venv/bin/python\n")
    assert files["opt/venv/bin/mfown-py"].startswith(b"#!/opt/venv/bin/python\n")
    assert files["opt/venv/bin/mfown-sh"] == b"#!/bin/sh\necho plain\n"
    assert files["opt/venv/share/mfown.txt"] == b"data\n"
    rows = list(csv.reader(io.StringIO(files[f"{SITE}/mfown-1.0.dist-info/RECORD"].decode())))
    for name, digest, size in rows:
        content = files[os.path.normpath(f"{SITE}/{name}")]
        if digest:
            assert entry(content) == f"{digest},{size}"
    installed = {os.path.normpath(f"{SITE}/{row[0]}") for row in rows}
    assert installed == set(files) - {"opt/venv/pyvenv.cfg"}


def test_nothing_of_this_machine_is_in_it(sample, base, tmp_path):
    files = environment(sample, base, tmp_path, compiled=True)
    here = {str(tmp_path), sys.prefix, os.path.realpath(sys.executable), str(Path.home())}
    for content in files.values():
        for text in here - {"/", "/root"}:
            assert text.encode() not in content
    names = {name.rpartition("/")[2] for name in files}
    assert not {"INSTALLER", "direct_url.json", "uv_cache.json", "REQUESTED", ".lock"} & names


def test_python_files_are_compiled_when_asked_for(sample, base, tmp_path):
    cached = f"{SITE}/mfown/__pycache__/__init__.cpython-311.pyc"
    plain = environment(sample, base, tmp_path)
    assert not [name for name in plain if name.endswith(".pyc")]
    compiled = environment(sample, base, tmp_path, compiled=True)
    assert compiled.keys() - plain.keys() == {cached}, "neither tests nor what is broken"
    if sys.version_info[:2] == (3, 11):
        module = tmp_path / "site" / "mfown.pyc"
        module.parent.mkdir()
        module.write_bytes(compiled[cached])
        code = "import mfown; mfown.main(); print(mfown.main.__code__.co_filename)"
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(module.parent)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[1] == f"/{SITE}/mfown/__init__.py"


def test_no_python_to_compile_with_is_told():
    with pytest.raises(BuildError, match=r"no Python 3\.2 on this machine.*uv cannot") as raised:
        find_python("3.2")
    assert "--no-compile" in raised.value.hint


def test_a_missing_python_is_installed_by_uv(monkeypatch):
    installed = []

    def run_uv(arguments, folder, environment):
        if arguments[:2] == ["python", "install"]:
            installed.append(arguments[-1])
        elif not installed:
            assert environment["UV_PYTHON_DOWNLOADS"] == "never"
            raise UvFailure("python find", "no interpreter found")
        return "/uv/python3.2\n"

    monkeypatch.setattr(dependencies, "run_uv", run_uv)
    assert find_python("3.2") == "/uv/python3.2"
    assert installed == ["3.2"]


def test_compiled_files_do_not_depend_on_the_process():
    import argparse

    source = Path(argparse.__file__).read_bytes()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); MORE\n"
        "from pathlib import Path; import _compile\n"
        "sys.stdout.buffer.write(_compile.compiled(Path(sys.argv[2]).read_bytes(), '/x.py'))"
    )
    found = {_compile.compiled(source, "/x.py")}
    for more in ("1", "import json, decimal, asyncio, unittest", "names = dir() * 9"):
        for seed in ("0", "7"):
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code.replace("MORE", more),
                 str(Path(_compile.__file__).parent), argparse.__file__],
                env={"PYTHONHASHSEED": seed}, capture_output=True, check=True,
            )  # fmt: skip
            found.add(done.stdout)
    assert len(found) == 1


def test_this_machines_python_does_not_matter(sample, base, tmp_path, monkeypatch):
    before = environment(sample, base, tmp_path)
    # As uv would lay it out where another minor runs it.
    install = sys.modules["mfimage.image.oci.dependencies"].install

    def elsewhere(plan, wheels, tree, work, *, secrets):
        install(plan, wheels, tree, work, secrets=secrets)
        (tree / "lib/python3.11").rename(tree / "lib/python3.9")

    monkeypatch.setattr("mfimage.image.oci.dependencies.install", elsewhere)
    monkeypatch.setattr(dependencies, "_HOST", "python3.9")
    with oci_builder(fresh=True) as builder:
        image = builder.build(plan_on(builder, sample, base), sample.blobs.path)
        out = Location(kind="oci", path=tmp_path / "elsewhere")
        builder.write([image], out, [])
    assert installed(out) == before


def test_what_has_no_wheel_is_refused_with_what_to_do(sample, base, tmp_path):
    sample.lock = re.sub(
        rb"wheels = .*", b'sdist = { url = "https://example.com/x.tgz" }', sample.lock
    )
    with pytest.raises(LockError, match=r"mfown 1\.0 has no wheel") as raised:
        build(sample, base)
    assert "bind the function again" in raised.value.hint


def test_a_full_disk_is_not_a_matter_of_passwords(sample, base, monkeypatch):
    def run_uv(*_, **__):
        raise UvFailure("pip install", "failed to copy file: No space left on device (os error 28)")

    monkeypatch.setattr(dependencies, "run_uv", run_uv)
    with pytest.raises(BuildError, match="No space left") as raised:
        build(sample, base)
    assert "MFIMAGE_CACHE" in raised.value.hint


def test_another_wheel_than_the_locked_one_is_refused(sample, base):
    sample.lock = re.sub(rb'sha256 = "[0-9a-f]{64}"', b'sha256 = "%s"' % (b"0" * 64), sample.lock)
    with pytest.raises(BuildError, match="Hash mismatch"):
        build(sample, base)


@pytest.mark.parametrize("later", [True, False])
def test_a_file_that_changed_in_uvs_cache_is_refused(sample, base, monkeypatch, later):
    """A wheel whose RECORD was wrong from the start is not."""

    def run_uv(arguments, *rest, **named):
        done = dependencies_run_uv(arguments, *rest, **named)
        if "install" in arguments:
            (path,) = Path(arguments[arguments.index("--prefix") + 1]).glob(
                "lib/*/*/mfown/broken.py"
            )
            unpacked = path.stat().st_mtime
            content = path.read_bytes() + b"# more"
            path.unlink()  # the cache has the same file
            path.write_bytes(content)
            os.utime(path, (unpacked, unpacked + 3600 * later))
        return done

    dependencies_run_uv = dependencies.run_uv
    monkeypatch.setattr(dependencies, "run_uv", run_uv)
    if not later:
        build(sample, base)
        return
    with pytest.raises(BuildError, match=r"mfown/broken\.py of mfown has changed") as raised:
        build(sample, base)
    assert raised.value.hint == "uv cache clean mfown"


@pytest.fixture
def index(tmp_path) -> Iterator[str]:
    folder = tmp_path / "index"
    folder.mkdir()
    # A name that no cache of uv's has.
    (folder / "mfown-1.0-py3-none-any.whl").write_bytes(wheel({**OWN, "mfown/x.py": str(folder)}))
    with private_index(folder) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def private(sample, index, tmp_path, monkeypatch) -> Sample:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("NETRC", os.devnull)
    data = (tmp_path / "index" / "mfown-1.0-py3-none-any.whl").read_bytes()
    sample.wheels = {}
    sample.lock = locked(f'url = "http://{index}/mfown-1.0-py3-none-any.whl"', data)
    return sample


def test_credentials_reach_uv_and_nothing_else(private, base, index, tmp_path, cache):
    with pytest.raises(BuildError, match="401"):
        build(private, base)
    netrc = f"machine 127.0.0.1\nlogin builder\npassword {PASSWORD}\n".encode()
    files = environment(private, base, tmp_path, secrets={"netrc": netrc})
    assert f"{SITE}/mfown/x.py" in files
    for folder in (cache, *tmp_path.glob("out*")):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert PASSWORD.encode() not in path.read_bytes()
    for content in files.values():
        assert PASSWORD.encode() not in content


def test_the_indexes_of_a_pip_conf_count(private, base, index, tmp_path):
    url = f"http://builder:{PASSWORD}@{index}/simple"
    conf = f"[global]\nextra-index-url =\n    {url}\n    http://{index}/other\n".encode()
    assert environment(private, base, tmp_path, secrets={"pip.conf": conf})


def test_an_error_of_uv_names_no_password(private, base, index):
    netrc = f"machine 127.0.0.1\nlogin {PASSWORD}\npassword wrong-{PASSWORD}\n".encode()
    with pytest.raises(BuildError) as raised, oci_builder(secrets={"netrc": netrc}) as builder:
        builder.build(plan_on(builder, private, base), private.blobs.path)
    assert PASSWORD not in str(raised.value)
