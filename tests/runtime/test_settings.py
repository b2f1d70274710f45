from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from mfimage.errors import OptionError
from mfimage.runtime import settings
from mfimage.runtime.settings import VARIABLES, Settings

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


def test_each_field_has_a_variable_whose_default_is_the_field_s() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    by_field = {variable.field: variable for variable in VARIABLES if variable.field}
    assert by_field.keys() == fields.keys()
    for name, variable in by_field.items():
        if name != "threads":
            assert variable.read(variable.default) == fields[name]


def test_the_documented_table_is_this_table() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| (.+?) \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(variable.name, variable.default, variable.meaning) for variable in VARIABLES]


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("PORT", "0", "port", 0),
        ("MFIMAGE_MAX_BODY", "1024", "max_body", 1024),
        ("MFIMAGE_MAX_BODY", "2 KiB", "max_body", 2048),
        ("MFIMAGE_MAX_BODY", "1gib", "max_body", 1024**3),
        ("MFIMAGE_TIMEOUT", "2.5s", "timeout", 2.5),
        ("MFIMAGE_ACCESS_LOG", "off", "access_log", False),
        ("MFIMAGE_PAGE", "frame", "page", "frame"),
        ("MFIMAGE_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("MFIMAGE_THREADS", "1", "threads", 1),
        ("MFIMAGE_WORKERS", "", "workers", 1),
        ("MFIMAGE_ROOT_PATH", "/models/iris/", "root_path", "/models/iris"),
        ("MFIMAGE_ROOT_PATH", "/", "root_path", ""),
        (
            "MFIMAGE_CORS_ORIGINS",
            "https://a.b, http://c:3000/",
            "cors_origins",
            ("https://a.b", "http://c:3000"),
        ),
        ("MFIMAGE_CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("WEB_CONCURRENCY", "3", "workers", 3),
        ("AIP_PREDICT_ROUTE", "/predict", "predict_route", "/predict"),
    ],
)
def test_values(name: str, text: str, field: str, value: object) -> None:
    assert getattr(Settings.from_environ({name: text}), field) == value


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"MFIMAGE_WORKERS": "2", "WEB_CONCURRENCY": "3"}, "workers", 2),
        ({"MFIMAGE_WORKERS": "", "WEB_CONCURRENCY": "3"}, "workers", 3),
        ({"AIP_HTTP_PORT": "81", "PORT": "80"}, "port", 81),
        ({"SAGEMAKER_BIND_TO_PORT": "82", "PORT": "80"}, "port", 82),
        ({"SAGEMAKER_REGION": "eu-west-1"}, "port", 8080),
        ({"SAGEMAKER_REGION": "eu-west-1", "PORT": "80"}, "port", 80),
        ({"AWS_REGION": "eu-west-1"}, "port", 8000),
    ],
)
def test_platforms_have_their_own_names(environ: dict[str, str], field: str, value: object) -> None:
    assert getattr(Settings.from_environ(environ), field) == value


def test_sagemaker_is_recognised_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*os.environ]:
        if name in ("PORT", "AIP_HTTP_PORT") or name.startswith("SAGEMAKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "_SAGEMAKER_FOLDER", tmp_path / "model")
    assert Settings.from_environ().port == 8000
    (tmp_path / "model").mkdir()
    assert Settings.from_environ().port == 8080


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("PORT", "http", "a port from 0 to 65535"),
        ("PORT", "70000", "a port"),
        ("WEB_CONCURRENCY", "0", "a whole number from 1 to 512"),
        ("AIP_HEALTH_ROUTE", "health", "a path, as /health"),
        ("MFIMAGE_WORKERS", "0", "a whole number"),
        ("MFIMAGE_TIMEOUT", "nan", "seconds"),
        ("MFIMAGE_TIMEOUT", "-1", "seconds"),
        ("MFIMAGE_GRACE", "inf", "seconds"),
        ("MFIMAGE_ACCESS_LOG", "maybe", "1 or 0"),
        ("MFIMAGE_PAGE", "maybe", "one of 1, 0, frame"),
        ("MFIMAGE_ROOT_PATH", "models/iris", "a path"),
        ("MFIMAGE_ROOT_PATH", "/a b", "a path"),
        ("MFIMAGE_CORS_ORIGINS", "a.example", "origins"),
        ("MFIMAGE_CORS_ORIGINS", "https://a.example/page", "origins"),
        ("MFIMAGE_LOG_LEVEL", "loud", "one of debug"),
    ],
)
def test_a_bad_value_is_named(name: str, text: str, wanted: str) -> None:
    with pytest.raises(OptionError) as caught:
        Settings.from_environ({name: text})
    assert caught.value.message.startswith(f"{name}: expected {wanted}")
    assert caught.value.message.endswith(f"got {text!r}")
