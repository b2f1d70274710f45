from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import fastavro
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mfimage.function.decorator import avro_function, json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.content import MediaCodec, codecs_of
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.openapi import Schemas, document
from mfimage.runtime.serving.served import Served
from tests.runtime.packages import make_spec

AVRO = "application/avro"
GOLDEN = Path(__file__).with_name("openapi.json")


class Point(TypedDict):
    """Where it is."""

    x: float
    y: float


@dataclasses.dataclass
class Place:
    name: str
    at: Point


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    friend: Cat | None = None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Node(BaseModel):
    children: list[Node] = []


@json_function
def locate(data: Place, params: FunctionParameters) -> Point:
    """Find a place.

    The answer is where it is.
    """
    return data.at


EXAMPLE = ({"name": "here", "at": {"x": 1.0, "y": 2.0}}, {"x": 1.0, "y": 2.0})


def references(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        for value in document.values():
            if isinstance(value, str) and value.startswith("#/"):
                yield value
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


def resolve(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def document_of(spec: FunctionSpec, codecs: Mapping[str, MediaCodec] | None = None) -> Any:
    served = Served.alone(spec)
    return document(served, {spec.name: codecs or {}}, routes(served))


def test_the_document_is_the_recorded_one() -> None:
    spec = make_spec(locate, examples=[EXAMPLE])
    found = document_of(spec)
    assert all(resolve(found, reference) for reference in references(found))
    # The digest covers the version of pydantic's schemas; the found's shape is what counts.
    found["info"]["version"] = "0"
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if os.environ.get("MFIMAGE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_definitions_of_the_same_name_stay_apart() -> None:
    schemas = Schemas()
    one = {"$defs": {"A": {"type": "string"}}, "$ref": "#/$defs/A"}
    two = {"$defs": {"A": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/A"}}}
    refs = [schemas.add("Record", one), schemas.add("Result", two)]
    document = {"components": {"schemas": schemas.components}}
    record, result = (resolve(document, ref["$ref"]) for ref in refs)
    assert resolve(document, record["$ref"]) == {"type": "string"}
    assert resolve(document, result["properties"]["a"]["$ref"]) == {"type": "integer"}
    assert one["$ref"] == "#/$defs/A"  # what was given is left alone


def test_a_definition_named_as_one_of_ours_stays_apart() -> None:
    schemas = Schemas()
    own = {"$defs": {"Result": {"type": "string"}}, "$ref": "#/$defs/Result"}
    schemas.add("Record", {**own, "properties": {"a": {"const": "#/$defs/Result"}}})
    schemas.add("Result", {"type": "integer"})
    assert schemas.components["Result"] == {"type": "integer"}
    assert resolve({"components": {"schemas": schemas.components}},
                   schemas.components["Record"]["$ref"]) == {"type": "string"}  # fmt: skip


@pytest.mark.parametrize("name", ["About", "Status", "Problem", "RecordStatus"])
def test_a_class_may_be_called_as_one_of_the_server_s(name: str) -> None:
    given = TypedDict(name, {"mine": int})  # type: ignore[operator]  # noqa: UP013

    def take(data: int) -> int:
        return data

    take.__annotations__ = {"data": list[given], "return": given}
    found = document_of(make_spec(json_function(take)))
    components = found["components"]["schemas"]
    assert components["About"]["required"] == ["name", "digest", "pathspec", "version", "status"]
    assert "status" in components["Status"]["properties"]
    assert "detail" in components["Problem"]["properties"]
    item = resolve(found, components["Record"]["items"]["$ref"])
    assert item["properties"].keys() == {"mine"}


def test_every_reference_leads_somewhere() -> None:
    """Discriminators' mappings and recursive types, too; but not what only looks like one."""

    def pets(data: list[Pet]) -> dict[str, Node]:
        return {}

    spec = make_spec(json_function(pets), examples=[([], {"$ref": "#/$defs/Nothing"})])
    found = document_of(spec)
    leading = [reference for reference in references(found) if "Nothing" not in reference]
    assert all(resolve(found, reference) for reference in leading)
    mapping = found["components"]["schemas"]["Record"]["items"]["discriminator"]["mapping"]
    assert mapping == {"cat": "#/components/schemas/Cat", "dog": "#/components/schemas/Dog"}


def test_what_is_null_stays_null() -> None:
    def find(data: dict[str, int | None]) -> Node | None:
        return None

    spec = make_spec(json_function(find), examples=[({"a": None}, None)])
    found = document_of(spec)
    post = found["paths"]["/find"]["post"]
    shown = [
        side["content"]["application/json"]["examples"]["example 1"]
        for side in (post["requestBody"], post["responses"]["200"])
    ]
    assert shown == [{"value": {"a": None}}, {"value": None}]


def test_other_media_types_have_the_form_s_own_schema() -> None:
    spec = make_spec(avro_function(locate.__wrapped__), examples=[EXAMPLE])
    # Another test may have registered a serializer in this process.
    codecs = {AVRO: codecs_of(spec, data="data")[AVRO]}
    found = document_of(spec, codecs)
    for path, codec in (("/locate", codecs[AVRO]), ("/locate/batch", codecs[AVRO].many)):
        assert codec is not None
        post = found["paths"][path]["post"]
        for content, schema in (
            (post["requestBody"]["content"], codec.input),
            (post["responses"]["200"]["content"], codec.output),
        ):
            assert list(content) == ["application/json", AVRO]
            assert content[AVRO] == {"schema": {"contentMediaType": AVRO}, "x-avro-schema": schema}
            fastavro.parse_schema(schema)
