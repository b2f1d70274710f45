"""`mfimage build --builder oci --push` against `docker build` and `docker push`, side by side.

Run it with ``python -m benchmarks.oci_build``. Both make an image of the same lock, artifacts and
code on the same base, and both have it in the same registry in the end. The hand-written Dockerfile
is that of `benchmarks.build`. Cold means: no layer anywhere, package files at hand.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.build import BIN, ROUNDS, Bench, first_200, row, run, timed
from tests.support.docker import registry

BASE = "python:3.11-slim"
LARGE = 2_000_000_000


class OciBench(Bench):
    """The same function in both forms, and a registry."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.address = address
        self.base = f"{address}/base/{BASE}"
        run(["docker", "tag", BASE, self.base])
        run(["docker", "push", "-q", self.base])
        self.env["MFIMAGE_CACHE"] = str(folder / "cache")

    def ours(self, reference: str, name: str, *flags: str) -> None:
        tag = f"{self.address}/ours/{name}"
        self.mfimage(
            "build", reference, "--builder", "oci", "--base-image", self.base, "--push",
            "-t", tag, *flags,
        )  # fmt: skip

    def theirs(self, name: str, *flags: str) -> None:
        self.build_by_hand(*flags)
        tag = f"{self.address}/hand/{name}"
        run(["docker", "tag", "bench-hand", tag])
        run(["docker", "push", "-q", tag])

    def forget(self) -> None:
        """Remove what mfimage has built; the target's lock stays beside the package."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def large(self) -> str:
        """Return a package like the bound one, with an artifact of 2 GB more."""
        from dataclasses import replace

        from mfimage.package.spec import ArtifactRef
        from mfimage.package.store import open_package

        package = open_package(self.bind(0))
        path = self.folder / "large"
        block = os.urandom(50_000_000)
        with path.open("wb") as file:
            for _ in range(LARGE // len(block)):
                file.write(block)
        blob = package.store.put_file(path)
        path.unlink()
        ref = ArtifactRef(
            digest=blob.digest, size=blob.size, encoding="gzip+pickle-v4", type="builtins.bytes"
        )
        spec = replace(package.spec, artifacts={**package.spec.artifacts, "large": ref})
        return package.store.write(spec)


def peak_memory(command: list[str], **kwargs: object) -> float:
    """Return the most megabytes that a command, or one of its processes, had at once."""
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(json.dumps([done.returncode, "
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
    )
    status, kilobytes = json.loads(run([sys.executable, "-c", code, *command], **kwargs))
    if status:
        sys.exit(f"{' '.join(command)}: exit code {status}")
    return float(kilobytes) / 1000


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as text, registry("plain", directory=Path(text)) as running:
        folder = Path(text, "bench")
        folder.mkdir()
        bench = OciBench(folder, running.address)
        bench.train()
        reference = bench.bind(0)
        bench.write_by_hand(0, reference)
        bench.ours(reference, "warm:1")
        bench.theirs("warm:1")
        print("| | mfimage | by hand | ratio | goal |\n|---|---|---|---|---|")
        _cold(bench, reference)
        _edits(bench)
        _artifacts(bench)
        start = ([], [], [])
        plain, compiled = (f"{bench.address}/ours/start:{name}" for name in ("plain", "compiled"))
        bench.ours(reference, "start:plain")
        bench.ours(reference, "start:compiled", "--compile")
        for image in (plain, compiled):
            run(["docker", "pull", "-q", image])
        for _ in range(ROUNDS):
            for times, image in zip(start, (plain, compiled, "bench-hand"), strict=True):
                times.append(first_200(image))
        row("`docker run` to first 200", start[0], start[2], "-")
        row("the same, `--compile`", start[1], start[2], "-")
        command = [
            str(BIN / "mfimage"), "build", bench.large(), "--builder", "oci",
            "--base-image", bench.base, "--push", "-t", f"{bench.address}/ours/large:1",
        ]  # fmt: skip
        found = peak_memory(command, cwd=bench.folder, env=bench.env)
        print(f"| peak memory, artifact of 2 GB | {found:.0f} MB | | | 200 MB |", flush=True)


def _cold(bench: OciBench, reference: str) -> None:
    for name, flags in (("cold", ()), ("cold, `--compile`", ("--compile",))):
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(max(2, ROUNDS // 2)):
            bench.forget()
            at = f"cold{len(flags)}-{number}"
            times[0].append(timed(lambda at=at, flags=flags: bench.ours(reference, at, *flags)))
            times[1].append(timed(lambda at=at: bench.theirs(at, "--no-cache")))
        row(name, *times, 0.8)
    bench.ours(bench.bind(0), "warm:1")


def _edits(bench: OciBench) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, ROUNDS + 1):
        reference = bench.bind(number)
        bench.edit_by_hand(number)
        # The package is new, and so is its target's lock, which is in the cache.
        times[0].append(timed(lambda r=reference: bench.ours(r, "warm:1")))
        times[1].append(timed(lambda: bench.theirs("warm:1")))
    row("code edit (goal: 0.3 s)", *times, "-")


def _artifacts(bench: OciBench) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, ROUNDS + 1):
        bench.train()
        reference = bench.bind(number)
        bench.write_by_hand(number, reference)
        times[0].append(timed(lambda r=reference: bench.ours(r, "warm:1")))
        times[1].append(timed(lambda: bench.theirs("warm:1")))
    row("new 50 MB artifact", *times, 0.8)


if __name__ == "__main__":
    main()
