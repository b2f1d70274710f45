"""Where the description of an environment comes from: the first source in ``SOURCES`` that has one.

A source is a module with ``find(request)``: another one is a new module and its place in the tuple.
"""

from __future__ import annotations

from mfimage.capture.environment.sources import imports, named, project, resolution
from mfimage.capture.environment.sources.base import Environment, Request, Source

__all__ = ["SOURCES", "Environment", "Request", "describe_environment"]

SOURCES: tuple[Source, ...] = (named, resolution, project, imports)


def describe_environment(request: Request) -> Environment:
    """Describe the environment of a function, from the first source that has one."""
    found = next(filter(None, (source.find(request) for source in SOURCES)))
    return found()
