"""Names that a function in an image cannot have: paths of the server's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mfimage.errors import OptionError
from mfimage.package.spec import CallableSpec

_PROBE = "x"


def check_names(specs: Mapping[str, CallableSpec]) -> None:
    """Refuse a function whose path, by its name, is one of the server's own."""
    server, function = _reserved(next(iter(specs.values())))
    for name in specs:
        first, _, value = name.partition("/")
        taken, whose = (server, "the server") if first in server else (function, first)
        if first in server or value in function:
            raise OptionError(
                f"name: {name!r} is a path of {whose} itself",
                hint=f"bind it with another --name; these are taken: {', '.join(sorted(taken))}",
            )


def _reserved(spec: CallableSpec) -> tuple[set[str], set[str]]:
    """Return the first parts of the server's paths, and those below a function's own path."""
    # Made from the table of routes, which takes a while to import.
    from mfimage.runtime.serving.contract import routes
    from mfimage.runtime.serving.served import Served

    probe = replace(spec, name=_PROBE)
    table = routes(Served.together([probe]))
    parts = [route.path.strip("/").split("/") for route in table]
    server = {first for first, *_ in parts} - {_PROBE, ""}
    return server, {rest[0] for first, *rest in parts if first == _PROBE and rest}
