"""An environment that lacks something which the function imports is refused at bind time."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from mfimage.capture.lock.pylock import LockedPackage, WheelFile
from mfimage.capture.lock.wheel_contents import holds_module, wheel_files
from mfimage.capture.task.pickles import StoredBytes
from mfimage.errors import LockError
from tests.capture.environment.test_environment_locks import make_uv_project
from tests.capture.projects import describe, versions, write
from tests.capture.wheelhouse import Index, Interpreter, serve_index, wheel

pytestmark = pytest.mark.slow


def declare(project: Path, code: str, *requirements: str) -> None:
    write(project, {"predict.py": code})
    (project / "requirements.txt").write_text("\n".join(requirements))


def test_what_is_missing_is_named_with_who_imports_it_and_what_to_add(
    few: Interpreter, project: Path
) -> None:
    code = """
        import json
        import learn

        def predict(data):
            import numeric.linalg
            import nowhere
    """
    declare(project, code, "orjson")
    artifact = StoredBytes(encoding="pickle-v2", open=lambda: io.BytesIO(b"cforest.tree\nT\n."))
    with pytest.raises(LockError) as caught:
        describe(few, project, "requirements.txt", artifacts={"model": artifact})
    assert caught.value.message == (
        "requirements.txt lacks what the function imports: learn (imported by predict.py:3), "
        "numeric.linalg (imported by predict.py:6), nowhere (imported by predict.py:7), "
        "forest.tree (named by the pickle of artifact 'model')"
    )
    assert caught.value.hint == (
        "add learn-kit, numeric, what provides nowhere, what provides forest to it"
    )


@pytest.mark.parametrize(
    "code",
    [
        "try:\n  import learn\nexcept ImportError:\n  learn = None",
        "import sys\nif sys.platform == 'win32':\n  import learn",
        "if __name__ == '__main__':\n  import learn",
        "def train(): import learn\ndef predict(x): return x",
        "class Flow(FlowSpec):\n  @step\n  def start(self):\n    train()\n"
        "def train():\n  import learn",
        "def predict(x): return x\nif __name__ == '__main__':\n  train()\n"
        "def train(): import learn",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING: import learn",
        "import json, mfimage\nfrom helpers import clean\ndef predict(x): return clean(x)",
        "import sys\nsys.path.append(f'{__file__}/../lib')\nimport own_part, own_package.deep",
    ],
)
def test_what_is_not_surely_imported_is_not_missing(
    few: Interpreter, project: Path, code: str
) -> None:
    declare(project, code, "numeric")
    helpers = "import numeric\ndef clean(x): return x\ndef fit(x):\n  import learn\n"
    write(project, {"helpers.py": helpers, "unrelated.py": "import learn"})
    write(project, {"lib/own_part.py": "", "lib/own_package/deep.py": ""})
    assert "numeric" in versions(describe(few, project, "requirements.txt"))


@pytest.mark.parametrize(
    "code",
    [
        "def predict(x): return clean(x)\ndef clean(x):\n  import learn",
        "def predict(x): return Own().run(x)\nclass Own:\n  def run(s, x):\n    import learn",
        "import helpers\ndef predict(x): return helpers.fit(x)",
        "def made():\n  import learn\nmodel = made()\ndef predict(x): return x",
        "def cached(f):\n  import learn\n  return f\n@cached\ndef predict(x): return x",
        "def predict(x):\n  with ctx():\n    import helpers_too",
        "import importlib\ndef predict(x): return importlib.import_module('learn')",
    ],
)
def test_what_the_function_calls_counts(few: Interpreter, project: Path, code: str) -> None:
    declare(project, code, "numeric")
    write(project, {"helpers.py": "def fit(x):\n  import learn", "helpers_too.py": "import learn"})
    with pytest.raises(LockError, match=r"lacks what the function imports: learn \(imported by"):
        describe(few, project, "requirements.txt")


def test_other_distributions_may_have_the_module(
    few: Interpreter, project: Path, index: Index
) -> None:
    few.install(wheel("vision", files={"cv2/__init__.py": ""}))
    headless = wheel("vision-headless", files={"cv2/__init__.py": "", "cv2/gpu.py": ""})
    index.add(headless, wheel("named-alike", "2.0", files={}), wheel("Soup4", files={"bs4.py": ""}))
    code = "import cv2.gpu, named.alike, bs4\n"
    declare(project, code, "vision-headless", "named-alike", "soup4", "numeric")
    assert "vision-headless" in versions(describe(few, project, "requirements.txt"))
    declare(project, code, "named-alike", "soup4", "numeric")
    with pytest.raises(
        LockError, match=r"(?m)imports: cv2\.gpu \(imported by predict\.py:1\)$"
    ) as e:
        describe(few, project, "requirements.txt")
    assert e.value.hint == "add vision to it"


def test_an_interpreter_with_nothing_installed_still_tells(
    bare: Interpreter, project: Path, index: Index
) -> None:
    index.add(wheel("soup4", files={"bs4/__init__.py": ""}))
    declare(project, "import bs4\n", "soup4")
    assert "soup4" in versions(describe(bare, project, "requirements.txt"))
    declare(project, "import bs4, yaml\n", "soup4")
    with pytest.raises(LockError, match=r"(?m)imports: yaml \(imported by predict\.py:1\)$"):
        describe(bare, project, "requirements.txt")


def test_when_it_cannot_be_told_nothing_is_refused(
    bare: Interpreter, project: Path, index: Index
) -> None:
    index.add(wheel("big", files={"big.py": "", "data.bin": os.urandom(1 << 22).hex()}))
    declare(project, "import yaml\n", "big")
    index.ranges = False
    assert "big" in versions(describe(bare, project, "requirements.txt"))
    index.ranges = True
    with pytest.raises(LockError, match="yaml"):
        describe(bare, project, "requirements.txt")


def test_a_pickle_that_cannot_be_read_asks_for_nothing(few: Interpreter, project: Path) -> None:
    declare(project, "import learn\n", "learn-kit")
    artifact = StoredBytes(encoding="pickle-v2", open=lambda: io.BytesIO(b"no pickle"))
    assert describe(few, project, "requirements.txt", artifacts={"odd": artifact})


def test_a_wheel_that_travels_has_its_modules(
    bare: Interpreter, project: Path, tmp_path: Path
) -> None:
    name, data = wheel("mine", files={"own/__init__.py": ""})
    (tmp_path / name).write_bytes(data)
    declare(project, "import own.part\n", f"mine @ {(tmp_path / name).as_uri()}")
    assert "mine" in versions(describe(bare, project, "requirements.txt"))


def test_a_uv_lock_without_it(few: Interpreter, project: Path, index: Index) -> None:
    index.add(wheel("pytest"))
    make_uv_project(project, "numeric<2", packaged=False)
    write(project, {"predict.py": "import numeric, pytest\n"})
    with pytest.raises(LockError, match=r"^uv\.lock lacks .*: pytest \(imported") as caught:
        describe(few, project)
    assert caught.value.hint == "add pytest to the dependencies in pyproject.toml"


@pytest.mark.parametrize(
    ("module", "held"),
    [
        ("yaml", True),
        ("yaml.loader.Loader", True),
        ("fast", True),
        ("single.Thing", True),
        ("google.cloud.storage.Client", True),
        ("google", True),
        ("platlib_only", True),
        ("yam", False),
        ("google.ads", False),
    ],
)
def test_modules_of_a_list_of_files(module: str, held: bool) -> None:
    files = ["yaml/__init__.py", "fast.cpython-311-x86_64-linux-gnu.so", "single.py"]
    files += ["google/cloud/storage/__init__.py", "platlib_only/x.py", "yaml-1.dist-info/METADATA"]
    assert holds_module(files, module) is held


def test_a_wheel_is_listed_by_its_end_alone_and_with_credentials(tmp_path: Path) -> None:
    files = {"a.py": "", "kit-1.0.data/purelib/b.py": "", "big.bin": os.urandom(1 << 18).hex()}
    name, data = wheel("kit", files=files)
    with serve_index(login=("robot", "s3cretW0rd")) as index:
        index.add((name, data))
        place = index.url.partition("@")[2].removesuffix("/simple")
        file = WheelFile(name=name, sha256="", url=f"http://{place}/files/{name}")
        package = LockedPackage(name="kit", version="1.0", files=(file,))
        assert wheel_files(package, {}, {}) is None
        listed = wheel_files(package, {}, {"UV_INDEX": f"http://x:y@elsewhere/s {index.url}"})
        named = {
            "UV_INDEX": f"my-corp=http://{place}/simple",
            "UV_INDEX_MY_CORP_USERNAME": "robot",
            "UV_INDEX_MY_CORP_PASSWORD": "s3cretW0rd",
        }
        assert wheel_files(package, {}, named) == listed
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login robot password s3cretW0rd\n")
        assert wheel_files(package, {}, {"NETRC": str(tmp_path / "netrc")}) == listed
    assert listed is not None
    assert {"a.py", "b.py"} <= set(listed)
    assert wheel_files(package, {}, {}) is None  # the index is gone
