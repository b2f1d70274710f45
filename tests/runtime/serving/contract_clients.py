"""Calls a server by the clients of KServe, Triton and MLflow; runs where they are installed."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

COLUMNS = {
    "length": (np.array([[1.5], [2.0]]), "FP64"),
    "names": (np.array([["a", "b"], ["c", "é"]], dtype=object), "BYTES"),
    "petals": (np.array([3, 4], dtype=np.int32), "INT32"),
}


def by_triton(address: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(address)
    found: dict[str, Any] = {
        "ready": [
            client.is_server_live(), client.is_server_ready(), client.is_model_ready("predict"),
        ],
        "extensions": client.get_server_metadata()["extensions"],
        "inputs": [each["name"] for each in client.get_model_metadata("predict")["inputs"]],
    }  # fmt: skip

    def inputs(*, binary: bool) -> list[triton.InferInput]:
        made = []
        for name, (values, datatype) in COLUMNS.items():
            made.append(triton.InferInput(name, list(values.shape), datatype))
            made[-1].set_data_from_numpy(values, binary_data=binary)
        return made

    for label, binary in (("binary", True), ("json", False)):
        for outputs in (None, [triton.InferRequestedOutput("count", binary_data=not binary)]):
            result = client.infer("predict", inputs(binary=binary), outputs=outputs)
            found[f"{label} {'all' if outputs is None else 'one'}"] = {
                each["name"]: _plain(result.as_numpy(each["name"]))
                for each in result.get_response()["outputs"]
            }
    found["errors"] = []
    for call in (
        lambda: client.infer("other", inputs(binary=True)),
        lambda: client.infer("predict", inputs(binary=True)[:2]),
        lambda: client.get_model_metadata("other"),
        lambda: client.infer("predict", inputs(binary=True), request_compression_algorithm="gzip"),
    ):
        try:
            call()
        except triton.InferenceServerException as error:
            found["errors"].append(str(error))
    return found


def _plain(values: Any) -> list[Any]:
    return [each.decode() if isinstance(each, bytes) else each for each in values.tolist()]


async def by_kserve(url: str) -> dict[str, Any]:
    two = InferenceRESTClient(RESTConfig(protocol="v2"))
    one = InferenceRESTClient(RESTConfig(protocol="v1"))
    record = {"length": 1, "names": [], "petals": None}
    found: dict[str, Any] = {
        "ready": [
            await two.is_server_live(url), await two.is_server_ready(url),
            await two.is_model_ready(url, "predict"), await one.is_server_live(url),
            await one.is_model_ready(url, "predict"),
        ],
        "v1": await one.infer(url, {"instances": [record]}, model_name="predict"),
    }  # fmt: skip
    for label, binary in (("binary", True), ("json", False)):
        inputs = []
        for name, (values, datatype) in COLUMNS.items():
            inputs.append(InferInput(name, list(values.shape), datatype))
            inputs[-1].set_data_from_numpy(values, binary_data=binary)
        parameters = {"binary_data_output": binary}
        request = InferRequest("predict", inputs, request_id="7", parameters=parameters)
        response = await two.infer(url, request, model_name="predict")
        assert response.id == "7"
        found[label] = {each.name: _plain(each.as_numpy()) for each in response.outputs}
    found["errors"] = []
    for call in (
        two.infer(url, InferRequest("predict", inputs[:2]), model_name="predict"),
        two.infer(url, InferRequest("other", inputs), model_name="other"),
        one.infer(url, {"instances": [{**record, "length": "x"}]}, model_name="predict"),
    ):
        try:
            await call
        except Exception as error:  # noqa: BLE001  (the client's own)
            found["errors"].append(str(error))
    return found


def by_mlflow(host: str, port: int) -> dict[str, Any]:
    client = ScoringServerClient(host, port)
    client.wait_server_ready()
    frame = pd.DataFrame({"length": [1.5, 2], "names": [["a"], []], "petals": [1, 2]})
    found: dict[str, Any] = {
        "frame": client.invoke(frame).get_predictions().to_dict(orient="records"),
        "list": client.invoke([{"length": 1, "names": [], "petals": None}])["predictions"],
        "params": client.invoke(frame, params={"a": 1})["predictions"][1],
    }
    try:
        client.invoke(frame[["length"]])
    except Exception as error:  # noqa: BLE001  (the client's own)
        found["error"] = str(error)
    return found


if __name__ == "__main__":
    host, port = sys.argv[1].split(":")
    seen = {
        "triton": by_triton(sys.argv[1]),
        "kserve": asyncio.run(by_kserve(f"http://{sys.argv[1]}")),
        "mlflow": by_mlflow(host, int(port)),
    }
    print(json.dumps(seen))
