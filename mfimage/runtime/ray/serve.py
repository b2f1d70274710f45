"""The function behind Ray Serve: the same server as everywhere, inside Serve's replicas."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.errors import BackendError, OptionError
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.layout import function_folder
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.ray.preflight import connect, import_serve
from mfimage.runtime.serving.app import Front
from mfimage.runtime.serving.codecs import Wire
from mfimage.runtime.serving.content import Speech
from mfimage.runtime.serving.metrics import Board, Metrics
from mfimage.runtime.serving.process import dispatcher_for, load_whole, read_spec
from mfimage.runtime.serving.responses import App, Message, Receive, Scope, Send, headers_of
from mfimage.runtime.settings import Settings

# Of the server's settings, what can be changed while it runs; numbers all.
CHANGEABLE = ("batch_wait", "max_batch", "max_body", "max_waiting", "threads", "timeout")
# Serve's own default, 5, would keep a batch function from ever seeing more records at once.
_ONGOING = 128
_RETIRED_LOOK = 0.1

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class ServeArgs:
    """What ``args`` of an application may be.

    Attributes
    ----------
    num_replicas : int, str or None
        How many copies of the function; ``auto`` for Serve's own choice.
    autoscaling_config : mapping or None
        Instead of a number: Serve's own, as ``{"min_replicas": 1, "max_replicas": 4}``.
    ray_actor_options : mapping
        What each copy takes, as ``{"num_cpus": 1, "num_gpus": 0}``.
    max_ongoing_requests : int
        The most requests at once in a copy; more wait at the proxy.
    user_config : mapping or None
        Settings that can be changed later without new copies; see ``CHANGEABLE``.
    """

    num_replicas: int | str | None = None
    autoscaling_config: Mapping[str, Any] | None = None
    ray_actor_options: Mapping[str, Any] = field(default_factory=lambda: {"num_cpus": 1})
    max_ongoing_requests: int = _ONGOING
    user_config: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> ServeArgs:
        """Return checked arguments.

        Raises
        ------
        OptionError
            Naming the one that is wrong.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        _refuse_unknown(args, known, "")
        found = cls(**args)
        if found.num_replicas is not None and found.autoscaling_config is not None:
            raise OptionError(
                "num_replicas: autoscaling_config is there, too", hint="leave one of them out"
            )
        if found.user_config is not None:
            changed(Settings(), found.user_config)
        return found

    def options(self) -> dict[str, Any]:
        """Return what Serve's ``deployment`` takes."""
        options = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        if self.autoscaling_config is not None:
            from ray.serve.config import AutoscalingConfig

            known = list(AutoscalingConfig.model_fields)
            _refuse_unknown(self.autoscaling_config, known, "autoscaling_config.")
        return {name: value for name, value in options.items() if value is not None}


def _refuse_unknown(given: Mapping[str, Any], known: list[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            raise OptionError(
                f"{prefix}{name}: there is no such argument", hint=f"one of: {', '.join(known)}"
            )


def changed(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Return settings with some of them changed; ``OptionError`` for what cannot be."""
    _refuse_unknown(config, list(CHANGEABLE), "user_config.")
    for name, value in config.items():
        whole = name not in ("batch_wait", "timeout")
        right = type(value) is int if whole else type(value) in (int, float)
        if not right or not value >= (1 if whole else 0):
            kind = "a whole number of at least 1" if whole else "seconds of at least 0"
            raise OptionError(f"user_config.{name}: expected {kind}, got {value!r}")
    return dataclasses.replace(settings, **config)


class Replica:
    """One copy of the function; Serve makes it, and calls its methods on one event loop."""

    async def __init__(self, folder: str) -> None:  # type: ignore[misc]  # Serve awaits it
        global _replica  # noqa: PLW0603  (Serve makes one in a process, and the app apart from it)
        self._loop = asyncio.get_running_loop()
        self._settings = Settings.from_environ()
        self._metrics = Metrics(Board())
        load = self._loop.run_in_executor(None, load_whole, Path(folder))
        self._fn: LiveFunction = await load
        self._wires = self._fn.speaks()
        self._pages = build_pages(self._fn.spec, self._metrics.board, self._wires)
        gc.collect()
        gc.freeze()  # see docs/serving.md
        self._retired: set[asyncio.Task[None]] = set()
        self._front, self._dispatcher = self._new(self._settings)
        self.routes = Routes(self._fn.spec, self._wires, self.front)
        _replica = self

    def front(self) -> Front:
        """Return what answers now."""
        return self._front

    def _new(self, settings: Settings) -> tuple[Front, Any]:
        front = Front(
            spec=self._fn.spec,
            settings=settings,
            metrics=self._metrics,
            access=None,  # Serve logs requests itself
            loop=self._loop,
        )
        dispatcher = dispatcher_for(
            self._fn, settings, loop=self._loop, on_batch=self._metrics.count_batch
        )
        front.start(dispatcher, Speech.of(self._fn, self._wires))
        front.show(self._pages)
        return front, dispatcher

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take new settings; requests that are under way keep the old ones."""
        settings = changed(self._settings, config)
        before = self._front, self._dispatcher
        self._front, self._dispatcher = self._new(settings)
        task = self._loop.create_task(self._retire(*before))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _retire(self, front: Front, dispatcher: Any) -> None:
        while front.inflight:
            await asyncio.sleep(_RETIRED_LOOK)
        await self._loop.run_in_executor(None, dispatcher.close)

    async def check_health(self) -> None:
        """Raise when the function takes no more calls: Serve then makes a new copy."""
        reason = self._front.not_ready()
        if reason:
            raise BackendError(f"{self._fn.name}: {reason}")


_replica: Replica | None = None


def replica_app() -> Routes:
    """Return the app of this process's replica."""
    assert _replica is not None
    return _replica.routes


def build(args: Mapping[str, Any]) -> Any:
    """Return a Serve application of this image's function.

    Parameters
    ----------
    args : mapping
        See ``ServeArgs``.

    Raises
    ------
    OptionError
        When an argument is unknown or cannot be used.
    """
    return _application(function_folder().absolute(), args)


def _application(folder: Path, args: Mapping[str, Any]) -> Any:
    serve = import_serve()
    given = ServeArgs.of(args)
    spec = read_spec(folder)
    settings = Settings.from_environ()
    try:
        made = serve.deployment(
            name=spec.name,
            graceful_shutdown_timeout_s=settings.grace,
            logging_config={"enable_access_log": settings.access_log},
            **given.options(),
        )
        return made(serve.ingress(replica_app)(Replica)).bind(str(folder))
    except (TypeError, ValueError) as error:
        raise OptionError(f"Ray Serve refuses the arguments {dict(args)}: {error}") from error


def run(folder: Path, settings: Settings) -> int:
    """Serve from a Ray of this machine alone until SIGTERM; return the exit code."""
    serve = import_serve()
    import ray

    name = read_spec(folder).name
    stop = threading.Event()
    connect(ray, "local")
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": settings.host,
                "port": settings.port,
                "keep_alive_timeout_s": settings.keep_alive,
            },
        )
        # Nobody else uses this Ray: how many fit is not Ray's to say.
        args = {"num_replicas": settings.workers, "ray_actor_options": {"num_cpus": 0}}
        serve.run(_application(folder.absolute(), args), name=name, route_prefix="/")
        log.info("ready: POST /%s", name)
        stop.wait()
        # Shutting Serve down would first end the proxy, and with it the way back of answers.
        serve.delete(name)
        serve.shutdown()
    except RuntimeError as error:
        raise BackendError(f"{name} cannot be served: {error}", hint="the log tells more") from None
    finally:
        ray.shutdown()
    return 0


# Which request of Ray Serve is for what of the server, wherever Serve puts the application.
#
# ::
#
# route prefix /                       route prefix /predict
# POST /predict, /predict/batch        POST /predict, /predict/batch
# GET  /docs, /openapi.json            GET  /predict/docs, /predict/openapi.json
# GET  /healthz, /readyz               Serve's own: /-/healthz

_PAGES = ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")
_HEALTH = ("/healthz", "/readyz")
_NOWHERE = "/-"
_SPACE = b" \t\r\n"


class Routes:
    """The application: finds the way in the server, and tells lists from records.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    wires : mapping of str to Wire
        What is spoken beside JSON, by media type.
    front : callable
        Returns the server's front.
    """

    def __init__(
        self, spec: FunctionSpec, wires: Mapping[str, Wire], front: Callable[[], Front]
    ) -> None:
        self._record, self._batch = f"/{spec.name}", f"/{spec.name}/batch"
        self._wires = wires
        self._front = front
        self._takes_lists = takes_lists(spec.input_schema)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; Serve asks for a life cycle, too."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            path, scope = self._way(scope)
            if path == self._record and scope["method"] == "POST" and not self._takes_lists:
                is_list, receive = await self._peek(scope, receive)
                path = self._batch if is_list else path
            await self._front()({**scope, "path": path}, receive, send)

    def _way(self, scope: Scope) -> tuple[str, Scope]:
        """Return the path as the server knows it, and the request."""
        root = scope.get("root_path", "").rstrip("/")
        path = scope["path"]
        below = path[len(root) :] if path.startswith(root) else path
        if root:
            ours = {"": self._record, "/": self._record, "/batch": self._batch}
            about = below in ("", "/")
        else:
            ours = {each: each for each in (self._record, self._batch, *_HEALTH)}
            about = below == "/"
        if below in ours and (scope["method"] == "POST" or below in _HEALTH):
            return ours[below], {**scope, "root_path": ""}
        if about:
            return f"{root}/", scope
        if below in _PAGES:
            return path, scope
        if below in ours:  # not with this method
            return ours[below], {**scope, "root_path": ""}
        return f"{root}{_NOWHERE}", scope

    async def _peek(self, scope: Scope, receive: Receive) -> tuple[bool, Receive]:
        """Tell whether the body is a JSON list; return what gives the body from its start."""
        kind = headers_of(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() in self._wires:
            return False, receive
        read: list[Message] = []
        start = b""
        while not start:
            read.append(await receive())
            start = read[-1].get("body", b"").lstrip(_SPACE)
            if not read[-1].get("more_body", False):
                break

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        return start[:1] == b"[", again


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def takes_lists(schema: Mapping[str, Any]) -> bool:
    """Tell whether a list may be one record of a JSON Schema."""
    return _may_be_list(schema, schema, set())


def _may_be_list(schema: Any, root: Mapping[str, Any], seen: set[str]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema:
        name = str(schema["$ref"])
        if name in seen:
            return False
        found = root.get("$defs", {}).get(name.rpartition("/")[2], {})
        return _may_be_list(found, root, {*seen, name})
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return any(_may_be_list(each, root, seen) for each in schema[key])
    if "const" in schema or "enum" in schema:
        return any(isinstance(each, list) for each in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "array")
    return "array" in (kinds if isinstance(kinds, list) else [kinds])


def build_pages(spec: FunctionSpec, board: Board, wires: Mapping[str, Wire]) -> App:
    """Return FastAPI's app; its document has the function's operations where they are here."""
    import orjson
    from starlette.responses import Response

    from mfimage.runtime.serving import openapi

    app = openapi.build_pages(spec, board, wires)
    names = {f"/{spec.name}": "", f"/{spec.name}/batch": "/batch"}

    async def pages(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "").rstrip("/")
        if scope["path"] != f"{root}/openapi.json" or scope["method"] not in ("GET", "HEAD"):
            await app(scope, receive, send)
            return
        document = app.openapi()
        record = root or f"/{spec.name}"
        paths = {record + rest: document["paths"][path] for path, rest in names.items()}
        content = orjson.dumps({**document, "paths": paths})
        await Response(content, media_type="application/json")(scope, receive, send)

    return pages
