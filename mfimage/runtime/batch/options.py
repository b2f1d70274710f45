"""The options of a batch job; the command line of ``batch`` is made from these fields."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mfimage.errors import OptionError


def _option(
    text: str, type: type = str, default: Any = None, *, metavar: str = "N", minimum: Any = None
) -> Any:
    """Return a field with its help text, its type and its minimum."""
    metadata = {"help": text, "type": type, "metavar": metavar, "minimum": minimum}
    return field(default=default, metadata=metadata)


class _Checked:
    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            minimum, value = each.metadata["minimum"], getattr(self, each.name)
            if None not in (minimum, value) and not minimum <= value < math.inf:
                raise OptionError(f"{each.name}: expected at least {minimum}, got {value}")


@dataclass(frozen=True, kw_only=True)
class BatchOptions(_Checked):
    """What a job reads and writes; formats are serializers' names."""

    input: str = _option(
        "file, folder or pattern (*, ?, **): a path, s3://, gs:// or azure://",
        default=MISSING,
        metavar="URL",
    )
    output: str = _option(
        "folder for the results of this job alone", default=MISSING, metavar="URL"
    )
    format: str | None = _option(
        "format of the input: jsonl, avro, parquet or a registered one (default: by suffix)",
        metavar="NAME",
    )
    output_format: str | None = _option(
        "format of the results (default: that of the input)", metavar="NAME"
    )
    batch_size: int = _option(
        "maximum number of records in one call of a batch function", int, 256, minimum=1
    )
    part_bytes: int | None = _option(
        "bytes of a file of lines in one part (default: by the size of the input)", int, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ActorOptions(_Checked):
    """The processes that run a job, on a Ray cluster."""

    address: str | None = _option(
        "the Ray cluster; auto: the one on this machine; local: start one here "
        "(default: $RAY_ADDRESS, else auto, else local)",
        metavar="HOST:PORT",
    )
    num_actors: int | None = _option(
        "number of processes (default: as many as fit)", int, minimum=1
    )
    num_cpus: float = _option("CPUs per process", float, 1, minimum=0)
    num_gpus: float = _option("GPUs per process", float, 0, minimum=0)
    max_retries: int = _option(
        "how often a part is retried after its process died; the last retry isolates the record "
        "that ends the process",
        int,
        2,
        minimum=1,
    )
    start_timeout: float = _option(
        "how long to wait for a first process when the cluster has no room",
        float,
        300,
        metavar="SECONDS",
        minimum=0,
    )

    @property
    def resources(self) -> dict[str, float]:
        """What each process reserves on its node, by Ray's names."""
        return {n: x for n, x in (("CPU", self.num_cpus), ("GPU", self.num_gpus)) if x}
