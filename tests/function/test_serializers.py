"""Which serializers there are, how one's own comes to them, and JSON, the first of them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import InputError, OutputError, SerializerError
from mfimage.function import serializers as registry
from mfimage.function.serializers import (
    FileFormat,
    Serializer,
    find_format,
    find_serializer,
    register_serializer,
    serializers,
)
from tests.support.projects import write


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered, nothing looked up."""
    monkeypatch.setattr(registry, "_registered", {})
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


class Shout:
    """Texts in capitals."""

    name = "shout"
    media_type = "text/x-shout"

    def schema(self, json_schema: Any, *, name: str) -> Any:
        return name

    def dumps(self, value: Any, schema: Any) -> bytes:
        return str(value).upper().encode()

    def loads(self, data: bytes, schema: Any) -> Any:
        return data.decode().lower()


def test_json_and_avro_are_built_in() -> None:
    assert list(serializers()) == ["json", "avro"]
    assert all(isinstance(each, Serializer) for each in serializers().values())
    media_types = [each.media_type for each in serializers().values()]
    assert media_types == ["application/json", "application/avro"]
    suffixes = (".jsonl", ".ndjson", ".JSONL", ".avro", ".parquet")
    found = [find_format(suffix) for suffix in suffixes]
    json, avro = find_serializer("json"), find_serializer("avro")
    assert found == [json, json, json, avro, None]
    assert isinstance(json, FileFormat)
    assert isinstance(avro, FileFormat)


def test_none_is_pickle() -> None:
    """Nothing that reads values for us can run what somebody else wrote."""
    folder = Path(registry.__file__).parent
    used = [path.name for path in folder.glob("*.py") if "import pickle" in path.read_text()]
    assert used == ["decorator.py"], "it says how functions themselves pickle"
    assert not any("pickle" in f"{each.name} {each.media_type}" for each in serializers().values())


def test_one_that_is_registered_is_there() -> None:
    register_serializer(Shout())
    assert find_serializer("shout").dumps("a", None) == b"A"
    register_serializer(Shout)  # its module was loaded again
    assert list(serializers()) == ["json", "avro", "shout"]
    assert not isinstance(find_serializer("shout"), FileFormat)


class Named(Shout):
    name = "named"


class Suffixed(Shout):
    name, media_type, suffixes = "suffixed", "text/x-suffixed", (".avro",)

    def read(self, file: Any, schema: Any) -> Any: ...

    def write(self, file: Any, schema: Any) -> Any: ...


class Other(Shout):
    pass


class Json(Shout):
    name = "json"


class Upper(Shout):
    name = "SHOUT"


class Parameters(Shout):
    media_type = "text/x-shout; charset=utf-8"


HERE = "tests.function.test_serializers"
SERIALIZERS = [
    (Other, rf"{HERE}\.Other: the name 'shout' is taken by {HERE}\.Shout"),
    (Named, rf"{HERE}\.Named: the media type 'text/x-shout' is taken by {HERE}\.Shout"),
    (Suffixed, rf"{HERE}\.Suffixed: the suffix '\.avro' is taken by mfimage\..*\.AvroSerializer"),
    (Json, "the name 'json' is taken by mfimage"),
    (Upper, r"register_serializer: name: 'SHOUT' cannot be used \(lower case\)"),
    (Parameters, "media_type: 'text/x-shout; charset=utf-8' cannot be used"),
    (object(), "register_serializer: <object object at .*> is not a serializer"),
]


@pytest.mark.parametrize(("serializer", "message"), SERIALIZERS)
def test_what_cannot_be_registered(serializer: Any, message: str) -> None:
    register_serializer(Shout())
    with pytest.raises(SerializerError, match=message):
        register_serializer(serializer)
    assert list(serializers()) == ["json", "avro", "shout"]


def test_two_packages_of_one_process_may_both_register_theirs() -> None:
    """A script's is of ``__main__`` first."""
    for module in ("__main__", "predict", "predict"):
        register_serializer(type("Shout", (Shout,), {"__module__": module, "__qualname__": "S"}))
    with pytest.raises(SerializerError, match=r"other\.S: the name 'shout' is taken by predict\.S"):
        register_serializer(type("S", (Shout,), {"__module__": "other", "__qualname__": "S"}))


def test_one_that_is_not_there() -> None:
    with pytest.raises(SerializerError) as caught:
        find_serializer("parquet")
    assert str(caught.value) == "there is no serializer 'parquet'; there are avro, json"
    assert "register_serializer" in str(caught.value.hint)


def run(folder: Path, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{program}"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout + done.stderr


def distribution(folder: Path, name: str, points: str, code: str) -> None:
    info = f"{name}-1.0.dist-info"
    points = f"[mfimage.serializers]\n{points}\n"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files = {f"{name}.py": code, f"{info}/METADATA": metadata, f"{info}/entry_points.txt": points}
    write(folder, files)


SHOUTED = """
class Shout:
    name, media_type = "NAME", "text/x-NAME"
    def schema(self, json_schema, *, name): return name
    def dumps(self, value, schema): return b"A"
    def loads(self, data, schema): return "a"
shout = Shout()
"""
TRY = """
from mfimage.function.serializers import *
import mfimage.function.serializers as s
print(*s.serializers())
for name in NAMES:
    try:
        print(s.find_serializer(name).media_type)
    except s.SerializerError as error:
        print(error)
"""


def test_entry_points(tmp_path: Path) -> None:
    """An instance or a class; what is broken breaks only itself, and says whose it is."""
    distribution(tmp_path, "good", "one=good:Shout", SHOUTED.replace("NAME", "one"))
    distribution(tmp_path, "also", "two=also:shout", SHOUTED.replace("NAME", "two"))
    distribution(tmp_path, "broken", "bad=broken:Shout", "import nowhere")
    distribution(tmp_path, "called", "named=called:shout", SHOUTED.replace("NAME", "other"))
    distribution(tmp_path, "late", "one=late:shout", SHOUTED.replace("NAME", "one"))
    distribution(tmp_path, "empty", "nothing=empty:x", "x = 1")
    names = ["one", "two", "bad", "named", "nothing"]
    found = run(tmp_path, TRY.replace("NAMES", repr(names))).splitlines()
    assert found[0] == "json avro two one"
    assert found[1:3] == ["text/x-one", "text/x-two"]
    point = "entry point '{}' of mfimage.serializers"
    assert found[3:6] == [
        f"broken 1.0: {point.format('bad')}: broken:Shout cannot be loaded: "
        "ModuleNotFoundError: No module named 'nowhere'",
        f"called 1.0: {point.format('named')}: the serializer calls itself 'other'",
        f"empty 1.0: {point.format('nothing')}: 1 is not a serializer",
    ]
    warnings = "\n".join(found[6:])
    assert "late.Shout: the name 'one' is taken by good.Shout" in warnings


def test_one_that_is_registered_and_installed(tmp_path: Path) -> None:
    """The same class is one; another of its name is told."""
    distribution(tmp_path, "good", "one=good:Shout", SHOUTED.replace("NAME", "one"))
    program = """
import good
from mfimage.function.serializers import *
register_serializer(good.Shout)
print(*serializers())
class Mine(good.Shout): pass
import mfimage.function.serializers as s
s._registered.clear()
register_serializer(Mine)
try: serializers()
except s.SerializerError as error: print(error)
"""
    assert run(tmp_path, program).splitlines() == [
        "json avro one",
        "good.Shout: the name 'one' is taken by __main__.Mine",
    ]


def test_without_fastavro_the_rest_is_there(tmp_path: Path) -> None:
    """In the image of a JSON function it need not be."""
    program = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *a: None if name == "fastavro" else find(name, *a)
sys.modules["fastavro"] = None
import mfimage.function.serializers as s
print(*s.serializers())
from mfimage.function.decorator import avro_function
schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": "long"}]}
@avro_function(schema=schema)
def predict(data: dict) -> int: return data["x"]
print(predict({"x": 1}))
try: predict.signature.schema
except s.SerializerError as error: print(error, "|", error.hint)
try: s.find_serializer("avro")
except s.SerializerError as error: print(error, "|", error.hint)
"""
    assert run(tmp_path, program).splitlines() == [
        "json",
        "1",
        "avro: fastavro is not installed here | pip install 'mfimage[avro]'",
        "avro: fastavro is not installed here | pip install 'mfimage[avro]'",
    ]


def test_looking_one_up_is_light(tmp_path: Path) -> None:
    program = """
before = set(sys.modules)
from mfimage.function.serializers import register_serializer
print({"pydantic", "orjson", "fastavro", "importlib.metadata"} & (set(sys.modules) - before))
"""
    assert run(tmp_path, program) == "set()\n"


json: Any = find_serializer("json")


def test_json_lines() -> None:
    file = io.BytesIO()
    with json.write(file, None) as append:
        append({"x": [1, None]})
        append("é\n")
        with pytest.raises(OutputError, match=r"^result: nan has no JSON form"):
            append(float("nan"))
    assert file.getvalue() == b'{"x":[1,null]}\n"\xc3\xa9\\n"\n'
    assert list(json.read(io.BytesIO(file.getvalue() + b" \n1"), None)) == [
        {"x": [1, None]}, "é\n", 1]  # fmt: skip
    lines = json.read(io.BytesIO(b"1\n\n{\n"), None)
    assert next(lines) == 1
    with pytest.raises(InputError, match=r"^line 3: not JSON: EOF while parsing"):
        next(lines)


@pytest.mark.parametrize("data", [b"", b"NaN", b"[1e999]", b"1 2", b"\xff", b"[" * 5000])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^data"):
        json.loads(data, None)
