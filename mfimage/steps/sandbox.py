"""A folder of its own for a task that is not trusted, in the place of the local datastore.

The task finds its inputs there, and nothing of other tasks; what it leaves is checked and copied
by the host after it has ended. Nothing of it is unpickled but for what Metaflow's own scheduler
reads, and that only after a reader that knows no classes has accepted it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mfimage.steps.executor import Refused, StepCommand

# Where the inputs' bytes are, read-only.
INPUTS = "/run/mfimage-inputs"
CARDS = "mf.cards"
CHUNK = 2**20
# No note of Metaflow's about a task is larger.
LIMIT = 2**24
# Artifacts that Metaflow's scheduler reads, in the process that runs the flow.
SCHEDULED = {
    *("_task_ok", "_transition", "_foreach_num_splits", "_foreach_stack", "_iteration_stack"),
    *("_foreach_var", "_unbounded_foreach", "_control_mapper_tasks"),
    "_control_task_is_mapper_zero",
}
# Variables of Metaflow that may hold credentials.
SECRET = re.compile(r"KEY|TOKEN|SECRET|AUTH|PASSWORD|CREDENTIAL|HEADER|METAFLOW_HOME")
# `docker run` options under which a task can do little more than compute.
ARGUMENTS = (
    *("--network", "none", "--cap-drop", "ALL", "--pids-limit", "512"),
    *("--security-opt", "no-new-privileges"),
)


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The place of one attempt.

    Attributes
    ----------
    root : Path
        The local datastore.
    folder : Path
        Where the task's own folder, and its inputs, are made.
    pathspec : str
        ``Flow/run/step/task``.
    attempt : int
        Of the task.
    inputs : sequence of str
        ``run/step/task`` of each input.
    cards : Path
        Where cards are kept.
    """

    root: Path
    folder: Path
    pathspec: str
    attempt: int
    inputs: Sequence[str]
    cards: Path

    @classmethod
    def make(cls, command: StepCommand, folder: str) -> Sandbox:
        """Make the place of a command, below a private folder.

        Raises
        ------
        Refused
            If the datastore or the metadata are not local.
        """
        options = dict(zip(command.argv, command.argv[1:], strict=False))
        for name in ("--datastore", "--metadata"):
            if options.get(name) != "local":
                raise Refused(
                    f'sandbox="strict" has no network, but the flow has {name} {options.get(name)}',
                    hint=f"run the flow with {name} local, or leave sandbox= out",
                )
        made = cls(
            root=Path(options["--datastore-root"]),
            folder=Path(tempfile.mkdtemp(prefix="sandbox-", dir=folder)),
            pathspec=command.pathspec,
            attempt=command.attempt,
            cards=card_folder(command),
            inputs=[each.rpartition("/")[0] if each.count("/") > 2 else each
                    for each in expand(options.get("--input-paths", ""))],
        )  # fmt: skip
        made._fill()
        return made

    @property
    def own(self) -> Path:
        """What stands in the place of the datastore."""
        return self.folder / "own"

    @property
    def linked(self) -> Path:
        """The inputs' bytes."""
        return self.folder / "inputs"

    def _fill(self) -> None:
        flow = self.pathspec.partition("/")[0]
        self.own.mkdir()
        self.linked.mkdir()
        # What Metaflow has noted about the flow, the run, the step and the task.
        parts = PurePosixPath(self.pathspec)
        for place in (parts, *list(parts.parents)[:-1]):
            self._copy(self.root / place / "_meta")
        for task in (f"{flow}/{each}" for each in self.inputs):
            self._copy(self.root / task)
            for key in self._keys(self.root / task):
                self._link(f"{flow}/data/{key[:2]}/{key}")

    def _copy(self, source: Path) -> None:
        if source.is_dir():
            target = self.own / source.relative_to(self.root)
            shutil.copytree(source, target, dirs_exist_ok=True)

    def _keys(self, task: Path) -> Iterator[str]:
        for path in task.glob("*.data.json"):
            yield from json.loads(path.read_text()).get("objects", {}).values()

    def _link(self, name: str) -> None:
        """Let the task read a blob: the link cannot be written through the read-only mount."""
        for each in (name, f"{name}_meta"):
            source, linked, link = self.root / each, self.linked / each, self.own / each
            if not source.exists() or linked.exists():
                continue
            linked.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, linked)
            except OSError:  # on another file system
                shutil.copy(source, linked)
            link.symlink_to(f"{INPUTS}/{each}")

    def mounts(self) -> list[dict[str, Any]]:
        """Return what to mount, as keyword arguments of `mfimage.steps.docker.Mount`."""
        return [
            {"source": str(self.own), "target": str(self.root)},
            {"source": str(self.linked), "target": INPUTS, "read_only": True},
        ]

    def collect(self) -> None:
        """Copy the task's results into the datastore.

        Raises
        ------
        Refused
            If it left what it must not leave; nothing is copied then.
        """
        flow = re.escape(self.pathspec.partition("/")[0])
        blob = re.compile(rf"{flow}/data/(..)/(\1[0-9a-f]{{38}})(_meta)?")
        found = list(files(self.own))
        blobs = [name for name in found if blob.fullmatch(name)]
        notes = [name for name in found if self._is_own(name)]
        for name in blobs:
            if not name.endswith("_meta"):
                self._check_blob(name)
            elif self._json(name).keys() - {"cas_raw", "cas_version"}:
                raise self._refused(name, "is not the description of a blob")
        for name in notes:
            if name.endswith(".json"):
                self._json(name)
        data = f"{self.pathspec}/{self.attempt}.data.json"
        if data in notes:
            known = {name[-40:] for name in blobs}
            self._check_artifacts(data, {*known, *(each.name for each in self.linked.rglob("*"))})
        # Blobs before what leads to them, the mark of a finished attempt last.
        for name in [*blobs, *sorted(notes, key=lambda each: "DONE" in each)]:
            root = self.cards if "/runs/" in name else self.root
            target = root / name.removeprefix(f"{CARDS}/")
            if not target.exists():
                self._publish(name, target)

    def _is_own(self, name: str) -> bool:
        task = re.escape(self.pathspec)
        flow, run, step, number = map(re.escape, self.pathspec.split("/"))
        # Metaflow 2.19 leaves the first folder out where METAFLOW_CARD_LOCALROOT is set.
        card = f"({CARDS}/)?{flow}/runs/{run}/(steps/{step}/)?tasks/{number}/(cards|runtime)"
        return bool(
            re.fullmatch(rf"{task}/{self.attempt}\.(?!runtime)[\w.-]+", name)
            or re.fullmatch(rf"{task}/_meta/(?!_self)[\w.-]+\.json", name)
            or re.fullmatch(rf"{card}/[\w.-]+", name)
        )

    def _check_artifacts(self, name: str, known: set[str]) -> None:
        data = self._json(name)
        for artifact, key in data.get("objects", {}).items():
            if not isinstance(key, str) or key not in known:
                raise self._refused(name, f"names a blob for {artifact!r} that is not the task's")
            if artifact in SCHEDULED:
                if "pickle" not in str(data.get("info", {}).get(artifact, {}).get("encoding")):
                    raise self._refused(name, f"has an artifact {artifact!r} that is not a pickle")
                place = f"{self.pathspec.partition('/')[0]}/data/{key[:2]}/{key}"
                linked = (self.own / place).is_symlink()
                try:
                    PlainUnpickler(unpacked(self.linked if linked else self.own, place)).load()
                except Exception as error:  # noqa: BLE001 - whatever the bytes provoke
                    raise self._refused(name, f"has {artifact!r}: {error}") from None

    def _check_blob(self, name: str) -> None:
        digest = hashlib.sha1(usedforsecurity=False)  # Metaflow's own
        failed = suppress(OSError, EOFError, zlib.error)
        with failed, opened(self.own, name) as raw, gzip.open(raw) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() == name[-40:]:
            return
        digest = hashlib.sha1(usedforsecurity=False)
        with opened(self.own, name) as raw:
            while chunk := raw.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != name[-40:]:
            raise self._refused(name, "is not what its name says")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            with opened(self.own, name) as file:
                value = json.loads(file.read(LIMIT))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._refused(name, "is not a JSON object")
        return value

    def _publish(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(descriptor, "wb") as file, opened(self.own, name) as source:
            shutil.copyfileobj(source, file)
        Path(temporary).replace(target)

    def _refused(self, name: str, why: str) -> Refused:
        return Refused(
            f"the sandboxed task left {name}, which {why}",
            hint="nothing of this attempt was kept; see docs/sandboxing.md",
        )

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class FramePlaceholder(tuple[Any, ...]):
    """Stands for Metaflow's ``ForeachFrame``."""

    def __new__(cls, *values: Any) -> FramePlaceholder:
        """Make one as a named tuple is unpickled."""
        return super().__new__(cls, values)


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, containers and Metaflow's ``ForeachFrame``: no other class is known."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse all names but one, whose values are enough."""
        if (module, name) not in {("__main__", "ForeachFrame"), ("metaflow.task", "ForeachFrame")}:
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}")
        return FramePlaceholder

    def persistent_load(self, pid: Any) -> Any:
        """Refuse it."""
        raise pickle.UnpicklingError("the pickle has a persistent id")


def card_folder(command: StepCommand) -> Path:
    """Return where Metaflow keeps a local flow's cards: not always beside its datastore."""
    here = Path(command.cwd)
    found = (each for each in (here, *here.parents) if (each / ".metaflow").is_dir())
    return next(found, here) / ".metaflow" / CARDS


def files(root: Path) -> Iterator[str]:
    """Yield the paths of the regular files below a folder."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root).as_posix()


def opened(root: Path, name: str) -> BinaryIO:
    """Open a file that is not a link; nothing runs there any more."""
    return os.fdopen(os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def unpacked(root: Path, name: str) -> io.BytesIO:
    """Return the content of a small blob."""
    with opened(root, name) as raw, gzip.open(raw) as file:
        return io.BytesIO(file.read(LIMIT))


def expand(text: str) -> list[str]:
    """Return the items of a list as Metaflow compresses it on its command lines."""
    if text.startswith("!"):
        text = zlib.decompress(zlib.decompress(base64.b64decode(text[1:]))).decode()
    first, colon, rest = text.partition(":")
    items = rest.split(",") if colon else first.split(",")
    return [f"{first if colon else ''}{each}" for each in items if each or colon]


def variables(names: Iterable[str]) -> list[str]:
    """Return which of Metaflow's variables a task may see."""
    kept = [each for each in names if each.startswith("METAFLOW_") and not SECRET.search(each)]
    return [*kept, "PYTHONUNBUFFERED", "TZ"]
