"""Make a docker archive of one layer: ``tar_to_image.py ROOT.tar TAG | docker load``.

Its times are fixed, so that the same layer always gives the same image ID.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(root: Path, tag: str, out: BinaryIO) -> None:
    digest = hashlib.sha256()
    with root.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    layer = digest.hexdigest()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    machine = platform.machine()
    config = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "created": stamp,
        "config": {"Env": [PATH, "LANG=C.UTF-8"], "Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        "history": [{"created": stamp, "created_by": "Debian packages"}],
    }
    config_json = json.dumps(config, sort_keys=True).encode()
    config_name = hashlib.sha256(config_json).hexdigest() + ".json"
    entry = {"Config": config_name, "RepoTags": [tag], "Layers": [f"{layer}/layer.tar"]}
    with tarfile.open(fileobj=out, mode="w|") as archive, root.open("rb") as file:
        add(archive, f"{layer}/layer.tar", file, root.stat().st_size)
        add(archive, config_name, io.BytesIO(config_json), len(config_json))
        manifest = json.dumps([entry]).encode()
        add(archive, "manifest.json", io.BytesIO(manifest), len(manifest))


def add(archive: tarfile.TarFile, name: str, file: BinaryIO, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.stdout.buffer)
