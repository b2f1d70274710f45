from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends import choice
from mfimage.backends.code_cache import code_folder
from mfimage.errors import OptionError, PackageError, StorageError
from mfimage.load import JsonFunction, function_from_json
from mfimage.package.store import PackageStore, blob_name, open_package
from tests.backends.calls import CALLS, PYTHON_CALLS, Call, Caller, check, check_backend
from tests.support.packages import PREDICT, archive_of, make_package
from tests.support.projects import python, write

pytestmark = pytest.mark.slow
Functions = Mapping[str, JsonFunction]


@pytest.fixture(scope="module")
def functions(bound_calls: Mapping[str, str]) -> Iterator[Functions]:
    loaded = {name: function_from_json(reference) for name, reference in bound_calls.items()}
    yield loaded
    for function in loaded.values():
        function.close()


@pytest.mark.parametrize("call", [*CALLS, *PYTHON_CALLS], ids=str)
def test_calls_in_this_process(call: Call, functions: Functions) -> None:
    check_backend(call, functions)


_RUN = """
import json, sys
from pathlib import Path
references = json.loads(sys.argv[1])

def call(name, record):
    return functions[name](record)

def by_bytes(name, record):
    fn = functions[name]
    return json.loads(fn.dump(fn.invoke(fn.parse(json.dumps(record).encode()))))

if sys.argv[2] == "function_from_json":
    from metaflow import function_from_json
    functions = {name: function_from_json(reference) for name, reference in references.items()}
else:
    from mfimage.package.store import open_package
    from mfimage.package.archive import unpack
    from mfimage.runtime.loading.loader import load_folder
    functions = {}
    for name, reference in references.items():
        package = open_package(reference)
        folder = Path(name)
        folder.mkdir()
        unpack(package.spec, package.store, folder)
        functions[name] = load_folder(folder)
    call = by_bytes

for line in sys.stdin:
    name, record = json.loads(line)
    try:
        answer = [call(name, record), "", ""]
    except Exception as error:
        answer = [None, type(error).__name__, str(error)]
    print(json.dumps(answer))
"""


@pytest.fixture(scope="module", params=["function_from_json", "bytes, as a server"])
def elsewhere(
    request: pytest.FixtureRequest,
    bound_calls: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Caller:
    """Another process, in another folder, answers the whole table at once."""
    lines = "".join(json.dumps([call.function, call.record]) + "\n" for call in CALLS)
    folder = tmp_path_factory.mktemp("elsewhere")
    done = python(
        ["-c", _RUN, json.dumps(dict(bound_calls)), request.param],
        folder=folder,
        env={"MFIMAGE_CACHE": str(folder / "cache")},
        stdin=lines,
    )
    answers = dict(zip(map(str, CALLS), map(json.loads, done.stdout.splitlines()), strict=True))

    def caller(name: str, record: Any) -> Any:
        value, error, message = answers[str(Call(name, record))]
        if error:
            raise type(error, (Exception,), {})(message)
        return value

    return caller


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_calls_in_another_process(call: Call, elsewhere: Caller) -> None:
    check(call, elsewhere)


def test_map_is_lazy_ordered_and_can_return_errors(functions: Functions) -> None:
    taken: list[int] = []

    def records() -> Iterator[int]:
        for number in [1, 2, 13, 4]:
            taken.append(number)
            yield number

    results = functions["later"].map(records())
    assert taken == []
    assert next(results) == 2
    assert taken == [1]
    assert next(results) == 3
    with pytest.raises(Exception, match="refused with 13"):
        next(results)
    for name in ("later", "doubled"):
        places = list(functions[name].map([1, "x", 13, 4], on_error="return", batch_size=3))
        assert [type(place).__name__ for place in places] == ["int", "InputError", "Refused", "int"]


def test_a_batch_function_gets_batches(functions: Functions) -> None:
    assert list(functions["doubled"].map(range(1, 12), batch_size=4)) == [*range(2, 24, 2)]
    with pytest.raises(OptionError, match="batch_size: expected at least 1, got 0"):
        functions["doubled"].map([1], batch_size=0)
    with pytest.raises(OptionError, match="on_error: expected 'raise' or 'return', got 'ignore'"):
        functions["doubled"].map([1], on_error="ignore")


def test_acall_leaves_the_loop_free(tmp_path: Path) -> None:
    slow = PREDICT.replace("return {", "import time; time.sleep(.2); return {")
    function = function_from_json(make_package(tmp_path, {"predict.py": slow}))

    async def main() -> tuple[Any, int]:
        ticks = 0
        call = asyncio.ensure_future(function.acall({"x": 2}))
        while not call.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return call.result(), ticks

    result, ticks = asyncio.run(main())
    assert (result, ticks > 5) == ({"y": 6}, True)
    function.close()


def test_closing_ends_threads_and_a_later_call_opens_again(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    function = function_from_json(make_package(tmp_path))
    assert function.submit({"x": 2}).result() == {"y": 6}
    assert len(set(threading.enumerate()) - before) == 1
    function.close()
    function.close()
    assert set(threading.enumerate()) <= before
    with function:
        assert function.submit({"x": 2}).result() == {"y": 6}
    assert set(threading.enumerate()) <= before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads
def test_a_forked_process_has_threads_of_its_own(tmp_path: Path) -> None:
    function = function_from_json(make_package(tmp_path))
    assert function.submit({"x": 1}).result() == {"y": 3}
    child = os.fork()
    if not child:
        os._exit(function.submit({"x": 2}).result()["y"])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    function.close()


def test_two_versions_in_one_process(tmp_path: Path) -> None:
    plus = {"predict.py": PREDICT.replace("*", "+"), "helper.py": ""}
    first = function_from_json(make_package(tmp_path))
    second = function_from_json(make_package(tmp_path, plus))
    third = function_from_json(make_package(tmp_path, artifacts={"factor": 5}))
    for _ in range(2):
        assert [fn({"x": 2}) for fn in (first, second, third)] == [{"y": 6}, {"y": 5}, {"y": 10}]
    kinds = [type(fn._backend).__name__ for fn in (first, second, third)]
    assert kinds == ["LocalBackend", "ProcessBackend", "LocalBackend"]
    for fn in (first, second, third):
        fn.close()
    again = function_from_json(make_package(tmp_path, plus))
    assert type(again._backend).__name__ == "LocalBackend", "its names are free again"


BY_NAME = """
import importlib
from mfimage.function.decorator import json_function
@json_function
def predict(data: dict) -> dict:
    return {"found": importlib.import_module("rules.one").VALUE}
"""


def test_the_package_runs_where_its_source_was_imported_and_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By name, code in this process found the edited source; asked for or not."""
    code = {"predict.py": BY_NAME, "rules/__init__.py": "", "rules/one.py": "VALUE = 1\n"}
    reference = make_package(tmp_path, code, artifacts={})
    source = write(tmp_path / "source", {**code, "rules/one.py": "VALUE = 'edited'\n"})
    monkeypatch.syspath_prepend(str(source))
    for imported in (False, True):
        if imported:
            importlib.import_module("rules.one")
        for backend, level in (("local", "WARNING"), (None, "INFO")):
            choice._logged.clear()
            caplog.clear()
            with (
                caplog.at_level("INFO", "mfimage"),
                function_from_json(reference, backend=backend) as fn,
            ):
                assert fn({}) == {"found": 1}
            (record,) = [each for each in caplog.records if "predict runs" in each.message]
            here = "rules is already imported here" if imported else "rules is another module here"
            assert record.levelname == level
            assert f"in an interpreter of its own (backend 'process'): {here}" in record.message
    assert importlib.import_module("rules.one").VALUE == "edited"
    del sys.modules["rules"], sys.modules["rules.one"]


def test_code_is_unpacked_once_and_checked_every_time(tmp_path: Path, cache: Path) -> None:
    package = open_package(make_package(tmp_path, {"predict.py": PREDICT, "pkg/data.bin": b"\0"}))
    folder = code_folder(package)
    before = folder.stat().st_ino
    assert code_folder(package) == folder
    assert folder.stat().st_ino == before
    assert (cache / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f")

    def damage_by(change: Any) -> None:
        change()
        assert code_folder(package) == folder
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        assert names == {"predict.py", "pkg", "pkg/data.bin"}
        assert (folder / "predict.py").read_text() == PREDICT

    damage_by((folder / "predict.py").unlink)
    damage_by(lambda: (folder / "predict.py").write_text("import os"))
    damage_by(lambda: (folder / "numpy.py").write_text("swapped"))
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "predict.pyc").touch()
    after = folder.stat().st_ino
    assert code_folder(package).stat().st_ino == after, "what Python keeps there is no damage"


def test_16_processes_may_unpack_at_once(tmp_path: Path) -> None:
    package = open_package(make_package(tmp_path, {f"m{i}.py": "x" * 1000 for i in range(50)}))
    barrier = threading.Barrier(16)

    def unpack(_: int) -> int:
        barrier.wait()
        return len(list(code_folder(package).iterdir()))

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(unpack, range(16))) == {50}


def test_a_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError) as caught:
        function_from_json(make_package(tmp_path / "root"))
    assert "MFIMAGE_CACHE" in str(caught.value.hint)


def test_every_flipped_byte_is_noticed_before_anything_runs(tmp_path: Path) -> None:
    """A damaged blob is an error; none is imported, unpacked or unpickled."""
    mark = tmp_path / "mark"
    evil_code = f"open({str(mark)!r}, 'w').close()\n{PREDICT}"
    reference = make_package(tmp_path / "root", {"predict.py": evil_code})
    package = open_package(reference)
    code = tmp_path / "root" / blob_name(package.spec.code)
    artifact = tmp_path / "root" / blob_name(package.spec.artifacts["factor"])
    data = bytearray(code.read_bytes())
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        code.write_bytes(data)
        with pytest.raises(PackageError):
            function_from_json(reference)
        data[position] ^= 1 << position % 8
    assert not mark.exists()
    code.write_bytes(data)
    function = function_from_json(reference)
    assert mark.exists()
    data = bytearray(artifact.read_bytes())
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        artifact.write_bytes(data)
        with pytest.raises(PackageError, match="digest"):
            function({"x": 1})
        data[position] ^= 1 << position % 8
    artifact.write_bytes(data)
    assert function({"x": 1}) == {"y": 3}


def test_code_that_would_land_elsewhere_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("../../escaped.py")
    store = PackageStore(tmp_path / "root")
    reference = make_package(tmp_path / "root", code=store.put_bytes(archive_of([(member, b"")])))
    with pytest.raises(PackageError, match="would land outside the folder"):
        function_from_json(reference)
    assert not list(tmp_path.rglob("escaped.py"))


def test_64_threads_open_one_bound_function_once(tmp_path: Path) -> None:
    """A bound function is loaded when it is first called; by one thread."""
    counting = "import builtins\nbuiltins.mfimage_test_loads = builtins.mfimage_test_loads + 1\n"
    sys.modules["builtins"].mfimage_test_loads = 0  # type: ignore[attr-defined]
    reference = make_package(tmp_path, {"predict.py": counting + PREDICT})
    function = JsonFunction.__new__(JsonFunction)
    function._open(reference)
    barrier = threading.Barrier(64)

    def call(number: int) -> Any:
        barrier.wait()
        return function({"x": number}), id(function._backend)

    start = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(call, range(64)))
    assert [value for value, _ in found] == [{"y": 3 * number} for number in range(64)]
    assert len({backend for _, backend in found}) == 1
    assert sys.modules["builtins"].mfimage_test_loads == 1  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
