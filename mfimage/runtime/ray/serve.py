"""The function behind Ray Serve: the app of every server, inside Serve's replicas."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import signal
import threading
import time
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.errors import BackendError, OptionError
from mfimage.runtime.layout import function_folder
from mfimage.runtime.loading.loader import LiveFunction
from mfimage.runtime.loading.packages import find
from mfimage.runtime.ray.preflight import connect, import_serve
from mfimage.runtime.serving.app import App, headers_of
from mfimage.runtime.serving.content import MediaTypes
from mfimage.runtime.serving.contract import mounted
from mfimage.runtime.serving.loads import load_whole
from mfimage.runtime.serving.metrics import Metrics
from mfimage.runtime.serving.route import Message, Scope, Send
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Receive
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import Settings

# The settings that can be changed while the server runs; all are numbers.
CHANGEABLE = ("batch_wait", "max_batch", "max_body", "max_waiting", "threads", "timeout")
# Serve's own default, 5, would keep a batch function from ever seeing more records at once.
_ONGOING = 128
_RETIRED_POLL = 0.1

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class ServeArgs:
    """The ``args`` of a Serve application."""

    num_replicas: int | str | None = None  # copies of the function; ``auto`` lets Serve choose
    # Instead of a number: Serve's own, as {"min_replicas": 1, "max_replicas": 4}.
    autoscaling_config: Mapping[str, Any] | None = None
    # Resources of each copy.
    ray_actor_options: Mapping[str, Any] = field(default_factory=lambda: {"num_cpus": 1})
    max_ongoing_requests: int = _ONGOING  # in a copy; more wait at the proxy
    user_config: Mapping[str, Any] | None = None  # changes without new copies; see ``CHANGEABLE``
    function: str | None = None  # of an image of several: the one that is served

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> ServeArgs:
        """Return checked arguments; ``OptionError`` names the invalid one."""
        _refuse_unknown(args, [each.name for each in dataclasses.fields(cls)], "")
        found = cls(**args)
        if found.num_replicas is not None and found.autoscaling_config is not None:
            raise OptionError(
                "num_replicas: autoscaling_config is there, too", hint="leave one of them out"
            )
        if found.user_config is not None:
            changed(Settings(), found.user_config)
        return found

    def options(self) -> dict[str, Any]:
        """Return the options of Serve's ``deployment``."""
        if self.autoscaling_config is not None:
            from ray.serve.config import AutoscalingConfig

            known = list(AutoscalingConfig.model_fields)
            _refuse_unknown(self.autoscaling_config, known, "autoscaling_config.")
        given = {name: value for name, value in vars(self).items() if value is not None}
        given.pop("function", None)
        return given


def _refuse_unknown(given: Mapping[str, Any], known: list[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            message = f"{prefix}{name}: there is no such argument"
            raise OptionError(message, hint=f"one of: {', '.join(known)}")


def changed(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Return settings with some of them changed; ``OptionError`` names one that cannot be."""
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

    async def __init__(self, folder: str, name: str | None = None) -> None:  # type: ignore[misc]  # Serve awaits it
        global _replica  # noqa: PLW0603  (Serve makes one in a process, and the app apart from it)
        self._loop = asyncio.get_running_loop()
        self._settings = Settings.from_environ()
        self._metrics = Metrics()
        self._fn: LiveFunction = await self._loop.run_in_executor(
            None, load_whole, Path(folder), name
        )
        self._media_types = MediaTypes.of(self._fn.spec, self._fn, data=self._fn.data)
        gc.collect()
        gc.freeze()  # see docs/serving.md
        self._retired: set[asyncio.Task[None]] = set()
        self._services = self._new(self._settings)
        self.mounted = MountedApp(self._services)  # Serve's own class has an `app`
        _replica = self

    def _new(self, settings: Settings) -> Services:
        services = Services(
            served=Served.alone(self._fn.spec), settings=settings, metrics=self._metrics,
            loop=self._loop,
        )  # fmt: skip
        services.by_name[self._fn.name].start(self._fn, self._media_types)
        services.started()
        return services

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take new settings; requests in flight keep the old ones."""
        before, self._services = self._services, self._new(changed(self._settings, config))
        self.mounted.use(self._services)
        task = self._loop.create_task(self._retire(before))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _retire(self, services: Services) -> None:
        while any(service.inflight for service in services.by_name.values()):
            await asyncio.sleep(_RETIRED_POLL)
        await self._loop.run_in_executor(None, services.close)

    async def check_health(self) -> None:
        """Raise when the function takes no more calls: Serve then makes a new copy."""
        reason = self._services.not_ready()
        if reason:
            raise BackendError(f"{self._fn.name}: {reason}")


_replica: Replica | None = None


def replica_app() -> MountedApp:
    """Return the app of this process's replica."""
    assert _replica is not None
    return _replica.mounted


def build(args: Mapping[str, Any]) -> Any:
    """Return a Serve application of a function of this image; for ``args`` see ``ServeArgs``."""
    return _application(function_folder().absolute(), args)


def _application(folder: Path, args: Mapping[str, Any]) -> Any:
    given = ServeArgs.of(args)
    settings = Settings.from_environ()
    name = find(folder, given.function).spec.name
    serve = import_serve()
    try:
        made = serve.deployment(
            name=name,
            graceful_shutdown_timeout_s=settings.grace,
            logging_config={"enable_access_log": settings.access_log},
            **given.options(),
        )
        return made(serve.ingress(replica_app)(Replica)).bind(str(folder), name)
    except (TypeError, ValueError) as error:
        raise OptionError(f"Ray Serve refuses the arguments {dict(args)}: {error}") from error


def run(folder: Path, settings: Settings) -> int:
    """Serve from a Ray of this machine alone until SIGTERM; return the exit code."""
    serve = import_serve()
    import ray

    served = Served.in_folder(folder)
    stop = threading.Event()
    connect(ray, "local")
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own
        signal.signal(number, lambda *_: stop.set())
    try:
        options = {"host": settings.host, "port": settings.port}
        options["keep_alive_timeout_s"] = settings.keep_alive
        serve.start(proxy_location="HeadOnly", http_options=options)
        # This Ray serves nothing else: its CPUs do not limit the number of workers.
        args = {"num_replicas": settings.workers, "ray_actor_options": {"num_cpus": 0}}
        for name in served.specs:
            made = _application(folder.absolute(), {**args, "function": name})
            prefix = f"/{name}" if served.several else "/"
            serve.run(made, name=name.replace("/", "."), route_prefix=prefix)
            log.info("ready: POST /%s", name)
        stop.wait()
        # Shutting Serve down would first end the proxy, which returns the responses.
        for name in served.specs:
            serve.delete(name.replace("/", "."))
        serve.shutdown()
    except RuntimeError as error:
        message = f"{served.title} cannot be served: {error}"
        raise BackendError(message, hint="the log has the reason") from None
    finally:
        ray.shutdown()
    return 0


# Where Ray Serve mounts the application, and what of the contract is served there:
#
# route prefix /                       route prefix /predict
# POST /predict, /predict/batch        POST /predict, /predict/batch
# GET  /docs, /openapi.json            GET  /predict/docs, /predict/openapi.json
# GET  /healthz, /readyz               Serve's own: /-/healthz

_SPACE = b" \t\r\n" + BOM_UTF8
# A list that starts later is not recognized; what is kept until then counts nowhere.
_MAX_SPACE = 64 * 1024


class MountedApp:
    """The ASGI app of a replica, wherever Serve mounts it.

    A list that is posted to the record's path is a batch, unless a list may be a record.
    """

    def __init__(self, services: Services) -> None:
        (service,) = services.by_name.values()
        self._takes_lists = takes_lists(service.spec.input_schema)
        self.use(services)

    def use(self, services: Services) -> None:
        """Serve with other settings from the next request on."""
        self.services = services
        (self._service,) = services.by_name.values()
        self._apps: dict[str, App] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or ASGI's lifespan."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            root = scope.get("root_path", "").rstrip("/")
            path = scope["path"]
            if not path.startswith(root):
                path = root + path
            record = root or f"/{self._service.name}"
            is_record = path == record or (root and path == f"{root}/")
            if is_record and scope["method"] == "POST" and not self._takes_lists:
                is_list, receive = await self._peek(scope, receive)
                path = f"{record}/batch" if is_list else path
            if root not in self._apps:
                # Serve logs requests itself.
                routes = mounted(self.services.served, root)
                self._apps[root] = App(self.services, routes, access=None)
            await self._apps[root]({**scope, "path": path}, receive, send)

    async def _peek(self, scope: Scope, receive: Receive) -> tuple[bool, Receive]:
        """Do what ``_peek`` does, while the request counts as arriving and has its time."""
        service = self._service
        assert service.media_types is not None
        started = time.monotonic()
        try:
            peeking = _peek(scope, receive, service.media_types.codecs)
            return await service.admit().arrive(started, peeking)
        except Exception as error:  # noqa: BLE001  (the app has the response to it)
            return False, _failing(error)


def _failing(error: Exception) -> Receive:
    async def receive() -> Message:
        raise error

    return receive


async def _peek(scope: Scope, receive: Receive, codecs: Collection[str]) -> tuple[bool, Receive]:
    """Return whether the body is a JSON list, and what receives the body from its start."""
    kind = headers_of(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    if kind.partition(";")[0].strip().lower() in codecs:
        return False, receive
    read: list[Message] = []
    start, size = b"", 0
    while not start and size < _MAX_SPACE:
        read.append(await receive())
        body = read[-1].get("body", b"")
        start, size = body.lstrip(_SPACE), size + len(body)
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


def takes_lists(schema: Any, definitions: Any = None, seen: Collection[str] = ()) -> bool:
    """Return whether a list may be one record of a JSON Schema."""
    if not isinstance(schema, dict):
        return schema is not False
    if definitions is None:
        definitions = schema.get("$defs", {})
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        found = definitions.get(name, {})
        return name not in seen and takes_lists(found, definitions, {*seen, name})
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return any(takes_lists(each, definitions, seen) for each in schema[key])
    if "const" in schema or "enum" in schema:
        return any(isinstance(each, list) for each in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", "array")
    return "array" in (kinds if isinstance(kinds, list) else [kinds])
