"""A compose.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_value, default_name, parse_cpu, resource_name
from mfimage.manifests.image import ServerImage, Stated, read_local_image
from mfimage.manifests.kind import Kind
from mfimage.manifests.options import option
from mfimage.manifests.server import MARGIN, MIB, READY, SizeOptions
from mfimage.manifests.shared import IMAGE_VARIABLES
from mfimage.manifests.text import to_yaml
from mfimage.runtime.layout import VENV

_LONGEST_NAME = 63
# The image has no other client. Without a proxy, and without what the user's folders have.
_PROBE = (
    "import http.client, sys; c = http.client.HTTPConnection('localhost', {port}, timeout=5); "
    "c.request('GET', '{path}'); sys.exit(c.getresponse().status != 200)"
)
_INTERVAL = 10


@dataclass(frozen=True, kw_only=True)
class ComposeOptions(SizeOptions):
    """A service of Docker Compose."""

    credentials: ClassVar[str] = "put it into a file that others cannot read: --env-file FILE"

    name: str | None = option("Name of the service; the function's by default.", "NAME")
    publish: str | None = option(
        "Port of this machine, or address and port; the image's on all addresses by default.",
        "[ADDRESS:]PORT",
    )
    env_files: tuple[str, ...] = option(
        "File with variables, such as credentials.", "FILE", (), flag="env-file"
    )

    def __post_init__(self) -> None:
        self.check_variables(IMAGE_VARIABLES)
        self.check_size()
        for each in self.env_files:
            check_value(each, field="env-file")
        if self.publish is not None:
            port = self.publish.rpartition(":")[2]
            if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
                raise OptionError(
                    f"publish: {self.publish!r} does not end with a port",
                    hint="such as 8080, or 127.0.0.1:8080",
                )


def write(image: ServerImage, options: ComposeOptions) -> str:
    """Write a compose.yaml for Docker Compose."""
    rule = resource_name(_LONGEST_NAME)
    name = options.name or default_name(image.name, rule)
    rule.check(name, field="name")
    settings = options.settings(image.env)
    memory = options.memory_bytes(image.env)
    service = {
        "image": _literal(image.reference),
        "ports": [_literal(f"{options.publish or settings.port}:{settings.port}")],
        "environment": {key: _literal(value) for key, value in options.env.items()} or None,
        "env_file": [_literal(each) for each in options.env_files] or None,
        "healthcheck": _healthcheck(settings.port, options.start_seconds),
        "stop_grace_period": f"{math.ceil(settings.grace) + MARGIN}s",
        "restart": "unless-stopped",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108  (of a container)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "cpus": float(parse_cpu(options.cpu, field="cpu")) if options.cpu else None,
        "mem_limit": f"{math.ceil(memory[1] / MIB)}m" if memory else None,
    }
    return to_yaml({"services": {name: service}})


def _healthcheck(port: int, start: int) -> dict[str, Any]:
    probe = _PROBE.format(port=port, path=READY)
    return {
        "test": ["CMD", f"{VENV}/bin/python", "-I", "-c", probe],
        "interval": f"{_INTERVAL}s",
        "timeout": "10s",
        "retries": 3,
        "start_period": f"{start}s",
    }


def _literal(text: str) -> str:
    """Return a text in which Compose replaces nothing."""
    return text.replace("$", "$$")


KIND = Kind(stated=Stated, options=((ComposeOptions, ""),), read=read_local_image, write=write)
