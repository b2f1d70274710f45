"""What an Avro schema is made of, once it is checked and its names are linked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NO_DEFAULT: Any = object()


@dataclass(kw_only=True, eq=False)
class Type:
    """One type of a schema.

    Attributes
    ----------
    kind : str
        A primitive's name, or ``array``, ``map``, ``union``, ``record``, ``enum``, ``fixed``.
    logical : str
        Its logical type, if it is one that is known here.
    name : str
        Full name of a record, enum or fixed.
    items : Type
        Of an array's items or a map's values.
    branches : tuple of Type
        Of a union.
    fields : list of Field
        Of a record.
    symbols : tuple of str
        Of an enum.
    size : int
        Of a fixed, in bytes.
    precision, scale : int
        Of a decimal.
    """

    kind: str
    logical: str = ""
    name: str = ""
    items: Type | None = None
    branches: tuple[Type, ...] = ()
    fields: list[Field] = field(default_factory=list)
    symbols: tuple[str, ...] = ()
    size: int = 0
    precision: int = 0
    scale: int = 0
    doc: str = ""

    @property
    def is_nullable(self) -> bool:
        """Whether null is among its values."""
        return self.kind == "null" or any(branch.kind == "null" for branch in self.branches)


@dataclass(kw_only=True, eq=False)
class Field:
    """A field of a record.

    Attributes
    ----------
    name : str
        Its name in Avro.
    key : str
        What the member of the JSON object is called: ``jsonName``, else its name.
    type : Type
        Of its values.
    default : Any
        Avro's default, in the form that schemas have it; ``NO_DEFAULT`` when there is none.
    json_default : Any
        ``jsonDefault``: the JSON value that an absent member stands for; else ``NO_DEFAULT``.
    absent : bool
        ``jsonAbsent``: null in Avro is an absent member.
    """

    name: str
    key: str
    type: Type
    default: Any = NO_DEFAULT
    json_default: Any = NO_DEFAULT
    absent: bool = False
    doc: str = ""
