"""serve: a function -> a server in the background, which ends with this process."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mfimage
from mfimage.errors import BackendError, OptionError
from mfimage.runtime.settings import VARIABLES
from mfimage.runtime.worker import lifeline
from mfimage.templating import html_environment

# Not from the folder of the notebook, which may hold a module of any name.
_RUN = (
    "import sys; sys.path[:] = [each for each in sys.path if each]; "
    "sys.path.append(sys.argv.pop(1)); "
    "from mfimage.cli import main; main(prog_name='mfimage')"
)
# There is no load balancer to wait for, and a notebook embeds the page.
_DEFAULTS = {"MFIMAGE_DRAIN": "0", "MFIMAGE_PAGE": "frame"}
_LOG_LINES = 1000
_SHOWN = 20
_PIPE_SIZE = 1 << 20
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0

# Held while a server starts and while this process forks: else a child could keep a pipe's end,
# and the server, which lives as long as any process has that.
_STARTING = threading.RLock()
_LIFELINES: set[int] = set()


def _after_fork() -> None:
    while _LIFELINES:
        os.close(_LIFELINES.pop())
    _STARTING.release()


os.register_at_fork(
    before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_after_fork
)


class FunctionServer:
    """A server of one function, in the background; ``JsonFunction.serve`` starts it.

    It ends with ``stop()``, at the end of a ``with`` block, when this object is no longer used, or
    when this process ends, however that ends. In a notebook it shows the function's page.
    """

    def __init__(
        self,
        name: str,
        reference: str,
        *,
        settings: Mapping[str, Any],
        start_timeout: float,
    ) -> None:
        environment = _environment(settings)
        host = environment["MFIMAGE_HOST"]
        self._name = name
        self._port = _free_port(host, int(environment["PORT"]))
        environment["PORT"] = str(self._port)
        self._address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        with _STARTING:
            self._process, held = _start(reference, environment)
            _LIFELINES.add(held)
        # At the end of the interpreter, too.
        self._end = weakref.finalize(self, _end, self._process, held, os.getpid())
        self._reader = threading.Thread(
            target=_read, args=(self._process, self._lines), name="mfimage-logs", daemon=True
        )
        self._reader.start()
        try:
            self._wait(start_timeout)
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Where it is, as ``http://127.0.0.1:8000``."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"http://{host}:{self._port}"

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._end.alive and self._process.poll() is None

    def logs(self) -> str:
        """Return the last lines that the server wrote."""
        return "\n".join(self._lines)

    def stop(self) -> None:
        """End the server; requests in flight have 5 seconds. Again, or in a fork: do nothing."""
        self._end()

    def __enter__(self) -> FunctionServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server of {self._name}{f' at {self.url}' if self.running else ', stopped'}>"

    def _repr_html_(self) -> str | None:
        if not self.running:
            return None
        template = html_environment().get_template("html/server.html.j2")
        return template.render(name=self._name, url=self.url, page=self._page())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        html = self._repr_html_()
        return {"text/plain": repr(self)} | ({"text/html": html} if html else {})

    def _page(self) -> str:
        """Return the page's URL as the notebook's browser reaches it."""
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        return f"{prefix.rstrip('/')}/proxy/{self._port}/" if prefix else f"{self.url}/"

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._is_ready():
            if self._process.poll() is not None:
                self._reader.join(_GRACE_SECONDS)
                raise self._failure(f"ended with exit code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(self._address, self._port, timeout=2)
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            finally:
                connection.close()
        return False

    def _failure(self, how: str) -> BackendError:
        """Return an error with the server's own, else with the last lines of its log."""
        message, hint = "", None
        for line in self._lines:
            label, _, text = line.partition(": ")
            if label == "error":
                message, hint = text, None
            elif label == "hint":
                hint = text
        if not message:
            last = list(self._lines)[-_SHOWN:]
            message = "\n".join(["its last lines:", *map(_readable, last)]) if last else "no log"
        return BackendError(f"the server of {self._name} {how}: {message}", hint=hint)


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a server; ``OptionError`` for a setting that it would refuse."""
    variables = {each.field: each for each in VARIABLES if each.field}
    environment = {**_DEFAULTS, **os.environ}
    for field, value in settings.items():
        if field not in variables:
            known = ", ".join(sorted(variables))
            raise OptionError(f"serve: unknown setting {field!r}", hint=f"known are {known}")
        variable = variables[field]
        text = str(int(value) if isinstance(value, bool) else value)
        variable.read(text, field)
        variable.put(text, environment)  # the notebook may run on a platform that sets its own
    return environment


def _free_port(host: str, port: int) -> int:
    """Return a port if it is free, or for 0 one that is."""
    # Another server at the port would be taken for this one.
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            return int(sock.getsockname()[1])
    except OSError as error:
        raise OptionError(
            f"serve: cannot listen on {host}:{port}: {error.strerror}",
            hint="stop what listens there, or give no port: a free one is chosen",
        ) from None


def _start(reference: str, environment: dict[str, str]) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return its process, and the end of a pipe: it ends when that is closed."""
    theirs, held = os.pipe()
    command = [
        *(sys.executable, "-I", lifeline.__file__, str(theirs)),
        *(sys.executable, "-c", _RUN, str(Path(mfimage.__file__).parents[1])),
        *("serve", reference),
    ]
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs,),
            start_new_session=True,  # Ctrl-C is for this process
            text=True,
            errors="replace",
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(theirs)
    assert process.stdout is not None
    # Room for requests while this interpreter is busy and reads nothing.
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return process, held


def _read(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    with process.stdout as file:
        lines.extend(line.rstrip("\n") for line in file)


def _end(process: subprocess.Popen[str], held: int, owner: int) -> None:
    if os.getpid() != owner:
        return
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with _STARTING:
        _LIFELINES.discard(held)
        os.close(held)


def _readable(line: str) -> str:
    """Return a line of the log as text."""
    try:
        entry = json.loads(line)
        text = f"{entry['level']}: {entry['message']}"
    except (ValueError, KeyError, TypeError):
        return line
    return f"{text}\n{entry['exception']}" if entry.get("exception") else text
