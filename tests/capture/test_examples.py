from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfimage.capture.examples import record_examples
from mfimage.errors import CaptureError, InputError
from mfimage.package.spec import Example
from mfimage.package.store import PackageStore
from tests.support.packages import LOCK, PREDICT, archive, make_spec, put_artifact

NOISY = PREDICT.replace("    return {", "    print('noise', data, params)\n    return {")


def record(root: Path, inputs: list[Any], source: str = NOISY) -> tuple[Example, ...]:
    store = PackageStore(root)
    code = store.put_bytes(archive({"predict.py": source}))
    artifacts = {"factor": put_artifact(store, 3)}
    spec = make_spec(code, store.put_bytes(LOCK), artifacts=artifacts)
    return record_examples(spec, inputs, store).examples


def test_examples_run_in_a_fresh_interpreter_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "predict.py").write_text("raise SystemExit('the source, not the package')")
    monkeypatch.chdir(tmp_path)
    found = record(tmp_path / "root", [{"x": 2}, {"x": "é\n"}, {"x": np.float64(0.5)}])
    assert found == (
        Example(input={"x": 2}, output={"y": 6}),
        Example(input={"x": "é\n"}, output={"y": "é\né\né\n"}),
        Example(input={"x": 0.5}, output={"y": 1.5}),
    )
    assert not list((tmp_path / "root").rglob("function.json"))


def test_without_examples_nothing_runs(tmp_path: Path) -> None:
    assert record(tmp_path, [], "1 / 0") == ()


@pytest.mark.parametrize(
    ("inputs", "source", "message"),
    [
        ([{"x": 1}, {}, {"x": 2}], PREDICT, "predict failed on the example {}: "),
        ([{"x": 1}], PREDICT.replace('data["x"]', "float('nan')"), 'on the example {"x":1}: '),
        ([{"x": 1}], "import nowhere\n", "needs the module 'nowhere'"),
        ([{"x": 1}], f"{PREDICT}import os\nos._exit(3)\n", "no output"),
    ],
)
def test_an_example_that_fails_is_named(
    inputs: list[Any], source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CaptureError) as caught:
        record(tmp_path, inputs, source)
    assert message in caught.value.message


def test_an_example_without_a_json_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"examples\[0\]\.x: set has no JSON form"):
        record(tmp_path, [{"x": {1}}])
