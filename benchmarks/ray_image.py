"""The size of an image for Ray against a hand-written slim one with the same wheels.

Run it with ``python -m benchmarks.ray_image``. Both install the same lock with uv in a build stage,
compiled, on the same base; the hand-written one adds only the function's own files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.build import BIN, CA, ROOT, docker, run

MOST = 1.05
DOCKERFILE = """
FROM python:3.11-slim AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PREVIEW_FEATURES=pylock
RUN --mount=type=cache,target=/root/.cache/pip {ca} pip install --quiet uv
COPY pylock.toml /
RUN --mount=type=cache,target=/root/.cache/uv {ca} \\
    uv venv --quiet /opt/venv && \\
    uv pip install --quiet --python /opt/venv/bin/python --requirement /pylock.toml
FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
COPY classify.py model.pkl /app/
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp RAY_USAGE_STATS_ENABLED=0
USER 1000
CMD ["ray", "start", "--head", "--block"]
"""


def size(command: list[str], image: str) -> float:
    """Return an image's size in megabytes."""
    return int(run([*command, "image", "inspect", image, "--format", "{{.Size}}"])) / 1e6


def main() -> int:
    """Print a row for each set of Ray's parts; return whether all meet the goal."""
    command, worst = docker(), 0.0
    env = {**os.environ, "DOCKER_BUILDKIT": "1", "METAFLOW_USER": "bench"}
    bundle = os.environ.get("SSL_CERT_FILE")
    secret = ["--secret", f"id=ca,src={bundle}"] if bundle else []
    print("| parts | mfimage | by hand | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("train.py", "classify.py"):
            shutil.copy(ROOT / "examples" / "batch" / file, folder)
        run([sys.executable, "train.py", "run"], cwd=folder, env=env)
        bind = [str(BIN / "mfimage"), "bind", "classify.py:classify", "--task", "WineFlow"]
        reference = run(bind, cwd=folder, env=env)
        for parts in ([], ["--with", "serve"]):
            ours = run(
                [str(BIN / "mfimage"), "build", reference, "--target", "ray", *parts,
                 "-t", "bench-ray:ours"],
                cwd=folder, env=env,
            )  # fmt: skip
            out = folder / f"rendered{len(parts)}"
            render = [str(BIN / "mfimage"), "render", reference, "--target", "ray", *parts]
            run([*render, "-o", str(out)], cwd=folder, env=env)
            hand = folder / f"hand{len(parts)}"
            hand.mkdir()
            shutil.copy(out / "build" / "lock" / "pylock.toml", hand)
            shutil.copy(folder / "classify.py", hand)
            (hand / "model.pkl").write_bytes(b"x" * 1000)
            (hand / "Dockerfile").write_text(DOCKERFILE.format(ca=CA if bundle else ""))
            run([*command, "build", "-q", "-t", "bench-ray:hand", *secret, str(hand)], env=env)
            sizes = size(command, ours), size(command, "bench-ray:hand")
            worst = max(worst, sizes[0] / sizes[1])
            label = ", ".join(["default", *parts[1:]])
            print(f"| {label} | {sizes[0]:.0f} MB | {sizes[1]:.0f} MB | "
                  f"{sizes[0] / sizes[1]:.3f} |", flush=True)  # fmt: skip
        images = ["bench-ray:ours", "bench-ray:hand"]
        subprocess.run([*command, "rmi", "-f", *images], capture_output=True, check=False)
    return 0 if worst <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
