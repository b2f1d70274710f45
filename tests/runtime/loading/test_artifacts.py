from __future__ import annotations

import collections
import gzip
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfimage.errors import ParameterError
from mfimage.package.spec import ArtifactRef
from mfimage.runtime.loading.loader import load_artifact
from mfimage.runtime.loading.modules import CodeSpace
from tests.support.projects import python, write

KEYS = (f"artifact{number}" for number in itertools.count())


def ref(encoding: str = "gzip+pickle-v4", kind: str = "object", **info: Any) -> ArtifactRef:
    return ArtifactRef(digest="sha256:" + "0" * 64, size=1, encoding=encoding, type=kind, info=info)


def space(folder: Path, main: str | None = None) -> CodeSpace:
    return CodeSpace(folder, key=next(KEYS), dedicated=False, main=main)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("packed", [True, False])
def test_every_pickle_protocol(protocol: int, packed: bool, tmp_path: Path) -> None:
    """Protocol 2 calls modules by their old names, as ``copy_reg``."""
    value = {
        "a": [1, 2.5, None],
        "d": collections.OrderedDict(x={1}),
        "n": np.arange(3),
        "r": range,
    }
    data = pickle.dumps(value, protocol)
    encoding = f"pickle-v{protocol}"
    if packed:
        data, encoding = gzip.compress(data), f"gzip+{encoding}"
    found = load_artifact("model", ref(encoding), data, space(tmp_path))
    assert found["n"].tolist() == [0, 1, 2]
    assert {**found, "n": None} == {**value, "n": None}


def test_classes_of_the_project_come_from_the_package(tmp_path: Path) -> None:
    """Those of the flow's own file were ``__main__`` when they were pickled."""
    source = (
        "import pickle, sys\n"
        "class Scaler:\n"
        "    class Inner: pass\n"
        "    def __init__(self): self.inner = Scaler.Inner()\n"
        "if __name__ == '__main__':\n"
        "    import train\n"
        "    sys.stdout.buffer.write(pickle.dumps([Scaler(), train.Scaler(), Scaler.Inner], 4))\n"
    )
    write(tmp_path, {"train.py": source})
    code = "import subprocess, sys; print(subprocess.run([sys.executable, 'train.py'], "
    code += "capture_output=True, check=True).stdout.hex())"
    data = bytes.fromhex(python(["-c", code], folder=tmp_path).stdout)
    first = load_artifact("x", ref("pickle-v4"), data, space(tmp_path, main="train"))
    assert type(first[0]) is type(first[1])
    assert type(first[0].inner) is first[2]
    with pytest.raises(
        ParameterError, match=r"cannot be loaded: AttributeError: the script that def"
    ):
        load_artifact("x", ref("pickle-v4"), data, space(tmp_path))


@pytest.mark.parametrize(
    ("data", "encoding", "message", "hint"),
    [
        (b"cnowhere.to\nfind\n.", "pickle-v2",
         "parameter 'model' (object) needs the module 'nowhere', which is not installed here",
         "the image, or a matching virtual environment"),
        (b"cjson\nnothing\n.", "pickle-v2",
         "parameter 'model' (object) cannot be loaded: AttributeError: ", "saved with"),
        (b"cmine\nnothing\n.", "pickle-v2",
         "parameter 'model' (object) cannot be loaded: AttributeError: ", "saved with"),
        (b"cmine.deep\nX\n.", "pickle-v2",
         "parameter 'model' (object) needs the module 'mine.deep', which", "the image"),
        (b"garbage", "pickle-v4", "parameter 'model' (object) cannot be loaded: ", "saved with"),
        (b"garbage", "gzip+pickle-v4", "cannot be loaded: BadGzipFile: ", "saved with"),
        (b"x", "zstd-arrow", "'model' (object): no serializer reads encoding 'zstd-arrow'",
         "install the Metaflow extension that wrote it (acme)"),
    ],
)  # fmt: skip
def test_artifacts_that_cannot_be_loaded_say_why(
    data: bytes, encoding: str, message: str, hint: str, tmp_path: Path
) -> None:
    write(tmp_path, {"mine.py": ""})
    with pytest.raises(ParameterError) as caught:
        load_artifact("model", ref(encoding, source="acme"), data, space(tmp_path))
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
