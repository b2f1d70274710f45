"""Options of the Ray backend, checked; Ray itself is not imported here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import OptionError
from mfimage.sizes import parse_size


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of the Ray backend.

    Attributes
    ----------
    address : str, optional
        ``auto``, or ``host:port`` of a cluster's head. By default the cluster that this process has
        joined, the one that ``RAY_ADDRESS`` names, one on this machine, or a new one here.
    num_cpus : float
        Processors that each actor takes of its node.
    num_gpus : float
        GPUs that each actor takes of its node.
    memory : int or str, optional
        Bytes that each actor takes, or a size such as ``"2GiB"``; Ray does not enforce it.
    resources : mapping
        Custom resources that each actor takes.
    min_actors : int
        Number of actors at all times.
    max_actors : int, optional
        Number of actors under load; by default as many as fit.
    max_retries : int
        How often to retry a record after the actor that had it died.
    placement : str, optional
        ``image``: only on nodes that run the function's image; the function is loaded from there.
    patience : float
        Seconds that an autoscaling cluster may take to add nodes.
    start_timeout : float
        Seconds until an actor must have loaded the function.
    progress : bool
        Whether ``map`` shows a progress bar when stderr is a terminal.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | str | None = None
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_actors: int = 1
    max_actors: int | None = None
    max_retries: int = 2
    placement: str | None = None
    patience: float = 0
    start_timeout: float = 300
    progress: bool = True

    def __post_init__(self) -> None:
        minima = {"num_cpus": 0, "num_gpus": 0, "min_actors": 1, "max_retries": 0, "patience": 0}
        for name, minimum in minima.items():
            value = getattr(self, name)
            _check(name, f"a number, at least {minimum}", value, _is_number(value, minimum))
        for name in ("min_actors", "max_actors", "max_retries"):
            value = getattr(self, name)
            _check(name, "a whole number", value, value is None or type(value) is int)
        value = self.start_timeout
        _check("start_timeout", "more than 0 seconds", value, _is_number(value) and value > 0)
        for name, value in self.resources.items():
            wanted = f"more than 0 of {name!r}"
            _check("resources", wanted, value, _is_number(value) and value > 0)
        enough = self.max_actors is None or self.max_actors >= self.min_actors
        _check("max_actors", f"at least min_actors={self.min_actors}", self.max_actors, enough)
        _check("placement", "'image' or None", self.placement, self.placement in (None, "image"))
        _check("progress", "True or False", self.progress, isinstance(self.progress, bool))
        self.requested()

    def requested(self) -> dict[str, float]:
        """Return what one actor takes, by Ray's names."""
        memory = 0 if self.memory is None else parse_size(str(self.memory), field="memory")
        taken = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": memory, **self.resources}
        return {name: amount for name, amount in taken.items() if amount}


def check_names(given: Mapping[str, Any]) -> None:
    """Raise ``OptionError`` for keywords that are not options."""
    names = [field.name for field in dataclasses.fields(RayOptions)]
    for name in given:
        if name not in names:
            raise OptionError(
                f"{name}: there is no such option", hint=f"backend='ray' has {', '.join(names)}"
            )


def _check(name: str, wanted: str, value: Any, fits: bool) -> None:
    if not fits:
        raise OptionError(f"{name}: expected {wanted}, got {value!r}")


def _is_number(value: Any, minimum: float = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= minimum
