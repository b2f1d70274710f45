"""Two layers, file by file."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import Any

import pytest

from mfimage.errors import PackageError
from mfimage.image.checks.compare import compare_layers
from mfimage.image.oci.images import StoredLayer
from mfimage.image.registry.descriptors import Descriptor

FILES: dict[str, dict[str, Any]] = {
    "opt": {"type": tarfile.DIRTYPE, "mode": 0o755},
    "opt/a.py": {"content": b"a = 1\n"},
    "opt/link": {"type": tarfile.SYMTYPE, "linkname": "a.py"},
}


def layer(files: dict[str, dict[str, Any]], *, packed: bool = False) -> StoredLayer:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, about in files.items():
            member = tarfile.TarInfo(name)
            content = about.get("content", b"")
            member.size = len(content)
            for key, value in about.items():
                if key != "content":
                    setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    data = gzip.compress(raw.getvalue()) if packed else raw.getvalue()
    return stored(data)


def stored(data: bytes) -> StoredLayer:
    descriptor = Descriptor(media_type="x", digest="sha256:0", size=len(data))
    return StoredLayer(descriptor=descriptor, diff_id="sha256:0", open=lambda: io.BytesIO(data))


def changed(path: str, **about: Any) -> dict[str, dict[str, Any]]:
    return {**FILES, path: {**FILES.get(path, {}), **about}}


def test_order_names_and_compression_are_nothing():
    turned = {f"./{name}": FILES[name] for name in reversed(FILES)}
    assert compare_layers(layer(FILES), layer(turned, packed=True)) == ()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (changed("opt/a.py", content=b"a = 2\n"), "/opt/a.py: content"),
        (changed("opt/a.py", mode=0o600), "/opt/a.py: mode"),
        (changed("opt/a.py", uid=1000), "/opt/a.py: owner"),
        (changed("opt/a.py", mtime=5), "/opt/a.py: time"),
        (changed("opt/a.py", content=b"", mtime=5), "/opt/a.py: content, time"),
        (changed("opt/link", linkname="b.py"), "/opt/link: content"),
        (changed("opt/link", type=tarfile.LNKTYPE), "/opt/link: kind"),
        (changed("opt/b.py", content=b""), "/opt/b.py: added"),
        ({"opt": FILES["opt"], "opt/a.py": FILES["opt/a.py"]}, "/opt/link: removed"),
    ],
)
def test_each_difference_is_named(files, said):
    (change,) = compare_layers(layer(FILES), layer(files))
    assert str(change) == said
    assert change.only_time == (said == "/opt/a.py: time")


def test_a_layer_that_breaks_off_is_an_error():
    data = layer(FILES).open().read()
    with pytest.raises(PackageError, match="cannot be read"):
        compare_layers(layer(FILES), stored(data[:1500]))
