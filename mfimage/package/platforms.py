"""Platforms as images and locks name them, ``linux/amd64``; machines as Python and wheels do."""

from __future__ import annotations

# Those that mfimage builds and locks for.
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


def this_platform() -> str:
    """Return this machine's platform."""
    import platform  # not for `mfimage --help`

    return f"{platform.system().lower()}/{_architecture()}"


def machine_platform() -> str:
    """Return the platform of containers on this machine."""
    return f"linux/{_architecture()}"


def _architecture() -> str:
    import platform

    machine = platform.machine().lower()
    known = {name: each.partition("/")[2] for each, name in MACHINES.items()}
    return known.get(machine, machine)
