"""A stand-in for ``mfimage.capture.environment.choose`` that locks nothing."""

import sys
from types import SimpleNamespace

LOCK = b'lock-version = "1.0"\ncreated-by = "tests"\npackages = []\n'
Environment = SimpleNamespace


def describe_environment(*, platform, **asked):
    return Environment(
        python=".".join(map(str, sys.version_info[:3])),
        platform=platform,
        source="imports",
        lock=SimpleNamespace(data=LOCK, wheels={}, packages=()),
        system_packages=(),
        reasons={},
    )
