"""A stand-in for ``mfimage.capture.environment.sources`` that locks nothing."""

import sys
from types import SimpleNamespace

LOCK = b'lock-version = "1.0"\ncreated-by = "tests"\npackages = []\n'
Environment = Request = SimpleNamespace


def describe_environment(request):
    return Environment(
        python=".".join(map(str, sys.version_info[:3])),
        platform=request.platform,
        source="imports",
        lock=SimpleNamespace(data=LOCK, wheels={}, packages=()),
        system_packages=(),
        reasons={},
        outside={},
    )
