"""An Avro function's image, asked in Avro by who knows nothing of mfimage."""

from __future__ import annotations

import io
import json

import fastavro
import httpx
import pytest

from tests.e2e.conftest import SETOSA, serving

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.index]
NAME = "mfimage-test-avro:1"
AVRO = "application/avro"
SOURCE = """
from metaflow import avro_function

SIDES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
FLOWER = {"type": "record", "name": "Flower", "fields": [
    {"name": name, "type": "double"} for name in SIDES]}
IRIS = {"type": "record", "name": "Iris", "fields": [
    {"name": "prediction", "type": "int"}, {"name": "name", "type": "string"}]}

@avro_function(schema=FLOWER, output_schema=IRIS)
def classify(data: dict[str, float]) -> dict:
    prediction = int(data["petal_length"] > 2.5)
    return {"prediction": prediction, "name": ("setosa", "another")[prediction]}
"""
FLOWER = {name.removesuffix(" (cm)").replace(" ", "_"): cm for name, cm in SETOSA.items()}
ANSWER = {"prediction": 0, "name": "setosa"}


def test_avro_in_avro_out(iris, base_image, images):
    (iris.folder / "classify.py").write_text(SOURCE)
    iris.mfimage("build", "classify.py:classify", "--task", iris.task, "-t", NAME)
    images.append(NAME)
    with serving(NAME) as server:
        url = f"http://{server.address}/classify"
        post = server.ask("GET", "/openapi.json")[1]["paths"]["/classify"]["post"]
        takes, gives = (
            side["content"][AVRO]["x-avro-schema"]
            for side in (post["requestBody"], post["responses"]["200"])
        )
        body = io.BytesIO()
        fastavro.schemaless_writer(body, takes, FLOWER)
        answer = httpx.post(url, content=body.getvalue(), headers={"Content-Type": AVRO})
        assert (answer.status_code, answer.headers["content-type"]) == (200, AVRO)
        assert fastavro.schemaless_reader(io.BytesIO(answer.content), gives, None) == ANSWER
        assert server.post("/classify", FLOWER) == (200, ANSWER)
        assert server.post("/classify/batch", [FLOWER]) == (200, [{"result": ANSWER}])
        for headers, status in (
            ({"Content-Type": "text/csv"}, 415),
            ({"Content-Type": AVRO, "Accept": "text/csv"}, 406),
            ({}, 415),
        ):
            answer = httpx.post(url, content=body.getvalue(), headers=headers)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"


def test_the_environment_says_why_fastavro_is_in_it(iris):
    (iris.folder / "classify.py").write_text(SOURCE)
    reference = iris.bind("classify.py:classify")
    shown = json.loads(iris.mfimage("env", reference, "--json").stdout)
    (reason,) = [each for each in shown["distributions"] if each["name"] == "fastavro"]
    assert "Avro" in json.dumps(reason)
