"""What the options of manifests are made of; a field made by `option` is a flag, too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_label, check_number, parse_cpu, parse_memory

Options = TypeVar("Options")
REQUIRED = dataclasses.MISSING
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def option(
    text: str,
    metavar: str | None = None,
    default: Any = None,
    *,
    flag: str | None = None,
    type: type | None = None,
    choices: Sequence[str] = (),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a field that the command line has as a flag."""
    # The type is the default's if not given. A tuple collects values; a dict, NAME=VALUE each.
    metadata = {
        "text": text, "metavar": metavar, "flag": flag, "type": type, "choices": choices,
        "parse": parse,
    }  # fmt: skip
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def resources(pods: str) -> Any:
    """Declare a field with the `Resources` of pods, each of which is a flag."""
    return dataclasses.field(default_factory=Resources, metadata={"pods": pods})


def flags(
    kind: type, prefix: str = "", pods: str = ""
) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield the flags of options, as click takes them: flag and parameter; attributes."""
    for each in dataclasses.fields(kind):
        about, name = each.metadata, prefix + each.name
        if "pods" in about:
            yield from flags(Resources, f"{each.name}_", about["pods"])
            continue
        table = each.default_factory is not dataclasses.MISSING
        many = table or isinstance(each.default, tuple)
        yield (
            (f"--{about['flag'] or name.replace('_', '-')}", name),
            {
                "metavar": about["metavar"],
                "help": about["text"].format(pods=pods),
                "multiple": many,
                "is_flag": each.default is False,
                "type": about["type"],
                "choices": about["choices"],
                "required": each.default is REQUIRED and not table,
                "default": None if many or each.default is REQUIRED else each.default,
            },
        )


def read_options(kind: type[Options], given: Mapping[str, Any], prefix: str = "") -> Options:
    """Make options from the values of their flags."""
    values: dict[str, Any] = {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]  # it is a dataclass
        about, name = each.metadata, prefix + each.name
        if "pods" in about:
            values[each.name] = read_options(Resources, given, f"{each.name}_")
            continue
        value, parse = given[name], about["parse"] or (lambda text: text)
        if each.default_factory is not dataclasses.MISSING:
            field = about["flag"] or name.replace("_", "-")
            pairs = parse_pairs(value, field=field)
            values[each.name] = {key: parse(text) for key, text in pairs.items()}
        elif isinstance(each.default, tuple):
            values[each.name] = tuple(parse(text) for text in value)
        else:
            values[each.name] = None if value is None else parse(value)
    return kind(**values)


def parse_pairs(texts: Iterable[str], *, field: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` each; the value may contain ``=``."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            # Not all of the text, which may be part of a credential.
            raise OptionError(f"{field}: {name[:40]!r} has no value", hint=f"--{field} NAME=VALUE")
        if name in pairs:
            raise OptionError(f"{field}: {name} is given twice", hint="leave one of them out")
        pairs[name] = value
    return pairs


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a pod requests, and may use at most, as Kubernetes writes it: ``500m``, ``4Gi``."""

    cpu: str = option("CPUs of {pods}.", "CPUS", "2")
    memory: str = option("Memory of {pods}.", "SIZE", "4Gi")
    gpus: int = option("GPUs of {pods}.", "N", 0)

    def check(self, pod: str) -> None:
        """Raise an `OptionError` if something is not a quantity."""
        parse_cpu(self.cpu, field=f"{pod}-cpu")
        parse_memory(self.memory, field=f"{pod}-memory")
        check_number(self.gpus, field=f"{pod}-gpus")

    @property
    def whole_cpus(self) -> int:
        """The CPUs, rounded up."""
        return math.ceil(parse_cpu(self.cpu, field="cpu"))


@dataclass(frozen=True, kw_only=True)
class SecretRef:
    """A key of a Secret."""

    secret: str
    key: str

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        """Parse ``SECRET:KEY``."""
        secret, _, key = text.partition(":")
        if not secret or not key:
            raise OptionError(
                f"env-from-secret: {text!r} does not name a key of a Secret",
                hint="--env-from-secret NAME=SECRET:KEY",
            )
        return cls(secret=secret, key=key)


@dataclass(frozen=True, kw_only=True)
class VariableSource:
    """A Secret or ConfigMap."""

    kind: str
    name: str

    @classmethod
    def parse(cls, text: str) -> VariableSource:
        """Parse ``secret/NAME`` or ``configmap/NAME``, as ``kubectl set env --from`` does."""
        kind, _, name = text.partition("/")
        if kind not in ("secret", "configmap") or not name:
            raise OptionError(
                f"env-from: {text!r} does not name a Secret or ConfigMap",
                hint="--env-from secret/NAME or --env-from configmap/NAME",
            )
        return cls(kind=kind, name=name)

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return it as an entry of ``envFrom``."""
        return {f"{'secret' if self.kind == 'secret' else 'configMap'}Ref": {"name": self.name}}


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that pods may run on; with any value if ``value`` is None."""

    key: str
    value: str | None = None
    effect: str | None = None

    @classmethod
    def parse(cls, text: str) -> Toleration:
        """Parse ``KEY[=VALUE][:EFFECT]``, as ``kubectl taint`` writes taints."""
        taint, _, effect = text.partition(":")
        key, equals, value = taint.partition("=")
        return cls(key=key, value=value if equals else None, effect=effect or None)

    def to_dict(self) -> dict[str, str | None]:
        """Return it as an entry of ``tolerations``."""
        operator = "Exists" if self.value is None else "Equal"
        return {"key": self.key, "operator": operator, "value": self.value, "effect": self.effect}

    def check(self) -> None:
        """Raise an `OptionError` if it is not a taint."""
        check_label(self.key, self.value or "", field="toleration")
        if self.effect not in (None, *_EFFECTS):
            raise OptionError(
                f"toleration: {self.key}: {self.effect!r} is not an effect",
                hint=", ".join(_EFFECTS),
            )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many: at the start, at least and at most."""

    replicas: int
    minimum: int
    maximum: int

    def check(self, prefix: str = "") -> None:
        """Raise an `OptionError` if the numbers contradict each other."""
        low, high = f"{prefix}min-replicas", f"{prefix}max-replicas"
        if self.minimum > self.maximum:
            raise OptionError(
                f"{low}: {self.minimum} is more than {high} {self.maximum}", hint=f"raise --{high}"
            )
        if not self.minimum <= self.replicas <= self.maximum:
            more = self.replicas > self.maximum
            bound = (
                f"more than {high} {self.maximum}" if more else f"less than {low} {self.minimum}"
            )
            raise OptionError(
                f"{prefix}replicas: {self.replicas} is {bound}",
                hint=f"change --{prefix}replicas or --{high if more else low}",
            )
