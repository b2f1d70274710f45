"""The uv that installs dependencies in a build: one version, verified like what it installs."""

from __future__ import annotations

UV_VERSION = "0.13.8"

# Of the wheels for glibc's Linux, amd64 and arm64, where images are built for.
_HASHES = (
    "e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984",
    "0b3e8b1a4f5e405e31e2ff33de8af4744831e9f7338539671efbd8c3c94e791d",
    "5337c30bb893b4f9ce0ceb921ba2da0d13f649da644f40ad3bef84083bef0203",
)


def uv_requirement() -> bytes:
    """Return the requirements file that pip installs uv from."""
    hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in _HASHES)
    return f"uv=={UV_VERSION}{hashes}\n".encode()
