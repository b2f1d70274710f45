"""Small wheels, an index that serves them on loopback, and an interpreter that has them."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import threading
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# A build backend that needs nothing, and leaves times, order and modes to chance, as some do.
BACKEND = """
import os, time, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, version = "NAME", "VERSION"
    info = f"{name}-{version}.dist-info"
    files = {f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: TAG\\n",
             f"{info}/RECORD": ""}
    for entry in os.scandir():
        if entry.name.endswith(".py") and entry.name != "backend.py":
            files[entry.name] = open(entry.name).read()
    wheel = f"{name}-{version}-TAG.whl"
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as write:
        for file in sorted(files, key=lambda each: hash((each, time.time()))):
            info = zipfile.ZipInfo(file, time.localtime()[:6])
            info.external_attr = (0o644 if time.time_ns() % 2 else 0o664) << 16
            write.writestr(info, files[file])
    return wheel
"""


def write_source(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    tag: str = "py3-none-any",
    code: str = "X = 1\n",
) -> Path:
    """Write a project that builds without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = BACKEND.replace("NAME", name).replace("VERSION", version).replace("TAG", tag)
    (folder / "backend.py").write_text(backend)
    (folder / f"{name}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return folder


def wheel(
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
    tag: str = "py3-none-any",
) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel; without ``files`` it is one module."""
    base = name.replace("-", "_")
    info = f"{base}-{version}.dist-info"
    head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    head += [f"Requires-Dist: {text}" for text in requires]
    head += [f"Provides-Extra: {text}" for text in extras]
    content = dict(files if files is not None else {f"{base}.py": f"__version__ = {version!r}\n"})
    content[f"{info}/METADATA"] = "\n".join(head) + "\n"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    content[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*content, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as write:
        for file, text in content.items():
            write.writestr(zipfile.ZipInfo(file), text)
    return f"{base}-{version}-{tag}.whl", buffer.getvalue()


def sdist(source: Path, name: str, version: str = "1.0") -> tuple[str, bytes]:
    """Return the file name and the bytes of a source distribution."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(source, arcname=f"{name}-{version}")
        about = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n".encode()
        member = tarfile.TarInfo(f"{name}-{version}/PKG-INFO")
        member.size = len(about)
        tar.addfile(member, io.BytesIO(about))
    return f"{name}-{version}.tar.gz", buffer.getvalue()


@dataclass
class Index:
    """A package index: what it serves can be changed at any time."""

    files: dict[str, bytes] = field(default_factory=dict)
    login: tuple[str, str] | None = None
    ranges: bool = True
    url: str = ""
    requests: list[str] = field(default_factory=list)

    def add(self, *files: tuple[str, bytes]) -> None:
        self.files.update(files)

    def page(self, path: str) -> bytes | None:
        parts = [part for part in path.partition("#")[0].split("/") if part]
        if parts[:1] == ["files"]:
            return self.files.get(parts[-1])
        named = [file for file in self.files if _project(file) == parts[-1]]
        links = (
            f'<a href="/files/{file}#sha256={hashlib.sha256(self.files[file]).hexdigest()}">'
            f"{file}</a>"
            for file in named
        )
        return f"<!DOCTYPE html><body>{''.join(links)}</body>".encode() if named else None


def _project(file: str) -> str:
    base = file.removesuffix(".tar.gz").rpartition("-")[0] if file.endswith("gz") else file
    return base.partition("-")[0].replace("_", "-").lower()


def _part(body: bytes, header: str | None) -> tuple[int, bytes, tuple[str, str]]:
    kind = ("Content-Type", "application/octet-stream")
    if not header:
        return 200, body, kind
    first, _, last = header.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, len(body) - int(last))
    end = min(int(last), len(body) - 1) if first and last else len(body) - 1
    return 206, body[start : end + 1], ("Content-Range", f"bytes {start}-{end}/{len(body)}")


@contextmanager
def serve_index(*, login: tuple[str, str] | None = None) -> Iterator[Index]:
    """Serve an index on loopback."""
    index = Index(login=login)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = index.page(self.path)
            expected = "Basic " + base64.b64encode(":".join(index.login or ()).encode()).decode()
            if index.login and self.headers.get("Authorization") != expected:
                self.answer(401, b"", ("WWW-Authenticate", "Basic"))
            elif body is None:
                self.answer(404, b"")
            elif body.startswith(b"<!DOCTYPE"):
                self.answer(200, body, ("Content-Type", "text/html"))
            else:
                self.answer(*_part(body, self.headers.get("Range") if index.ranges else None))

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            index.requests.append(f"{status} {self.path}")
            self.send_response(status)
            for name, value in (*headers, ("Cache-Control", "no-store")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    host = f"127.0.0.1:{server.server_port}"
    index.url = f"http://{':'.join(login)}@{host}/simple" if login else f"http://{host}/simple"
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Interpreter:
    """A virtual environment with nothing but what a test puts there."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def install(self, *wheels: tuple[str, bytes]) -> None:
        for _, data in wheels:
            with zipfile.ZipFile(io.BytesIO(data)) as read:
                read.extractall(self.site)

    def install_editable(self, source: Path, name: str, version: str = "1.0") -> None:
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"_{name}.pth,,\n")
        (info / "direct_url.json").write_text(
            f'{{"url": "{source.as_uri()}", "dir_info": {{"editable": true}}}}'
        )
        (self.site / f"_{name}.pth").write_text(f"{source}\n")


def make_interpreter(folder: Path) -> Interpreter:
    """Make a virtual environment without pip."""
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    return Interpreter(folder)
