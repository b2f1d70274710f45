"""Fixtures for every room: a cache of our own, and a flow that really ran."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.browser import browser, context, page
from tests.support.no_lock import no_lock
from tests.support.projects import python
from tests.support.s3 import bucket, s3_server

# How long an example takes says more of the machine than of the code. The same examples each time:
# what fails came with a change. `--hypothesis-profile=quick`, as in `make unit`, looks further.
hypothesis.settings.register_profile("mfimage", deadline=None, derandomize=True)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile("mfimage")
# What starts us in the background may have made us, and so all we start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Metaflow refuses root.
os.environ["METAFLOW_USER"] = "alice"
# Metaflow reads it once, and tests have servers of their own.
os.environ.pop("METAFLOW_S3_ENDPOINT_URL", None)
# Whatever the terminal of who runs the tests is like, commands print plain lines.
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)
with warnings.catch_warnings():
    # Where PyYAML is installed, Metaflow's own copy of it warns of that.
    warnings.simplefilter("ignore")
    import metaflow
__all__ = ["browser", "bucket", "context", "page", "s3_server"]  # fixtures
_FLOWS = Path(__file__).parent / "support" / "flows"


@pytest.fixture(autouse=True)
def names_of_modules() -> Iterator[None]:
    """What a test has loaded, or put on the path, keeps no names of modules from the next test."""
    before = list(sys.path)
    yield
    added = tuple(f"{entry}/" for entry in sys.path if entry not in before)
    sys.path[:] = [entry for entry in sys.path if entry in before]
    for name in (
        list(sys.modules) if added else ()
    ):  # not items(): collecting garbage may forget some
        if str(getattr(sys.modules.get(name), "__file__", None)).startswith(added):
            sys.modules.pop(name, None)
    loading = sys.modules.get("mfimage.runtime.loading.modules")
    for folder in list(loading._USERS if loading else ()):
        loading._forget(folder)


# The longest first, so that no worker is left with a long one at the end.
_FIRST = ("ray", "e2e", "docker", "slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a module's tests in one process (`--dist loadgroup`), and all of Ray's in one.

    A module's fixtures are then made once. Two Ray clusters would want the same processors.
    """

    ranks: dict[Path, int] = {}
    for item in items:
        rank = next((n for n, mark in enumerate(_FIRST) if item.get_closest_marker(mark)), 9)
        ranks[item.path] = min(rank, ranks.get(item.path, 9))
    items.sort(key=lambda item: ranks[item.path])  # stable: a module's tests stay together
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this run, for all its processes."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared-cache"


@pytest.fixture(autouse=True)
def cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty for each test."""
    folder = caches / uuid.uuid4().hex
    monkeypatch.setenv("MFIMAGE_CACHE", str(folder))
    monkeypatch.delenv("MFIMAGE_FUNCTIONS_ROOT", raising=False)
    return folder


@dataclass(frozen=True)
class Run:
    """A run on this machine.

    Attributes
    ----------
    flow, run : str
        Its pathspec.
    folder : Path
        Where the flow's file and the datastore lie.
    """

    flow: str
    run: str
    folder: Path

    @property
    def pathspec(self) -> str:
        return f"{self.flow}/{self.run}"

    @property
    def mark(self) -> Path:
        """What ``Evil`` leaves when it is unpickled."""
        return self.folder / "mark"

    @property
    def env(self) -> dict[str, str]:
        """What other processes need to find the run."""
        return {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.folder)}


def _run(file: str, flow: str, folder: Path, *arguments: str, fails: bool = False) -> Run:
    shutil.copy(_FLOWS / file, folder)
    identity = folder / f"{flow}.run-id"
    command = [file, "--quiet", "--no-pylint", "run", *arguments, "--run-id-file", str(identity)]
    done = python(command, folder=folder, check=not fails)
    assert bool(done.returncode) == fails, done.stderr
    return Run(flow=flow, run=identity.read_text().strip(), folder=folder)


@pytest.fixture(scope="session")
def datastore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both flows ran in."""
    return tmp_path_factory.mktemp("flows")


@pytest.fixture(scope="session")
def iris_run(datastore: Path) -> Run:
    """The run of ``flows/train.py``."""
    run = _run("train.py", "IrisFlow", datastore, "--mark", str(datastore / "mark"))
    run.mark.unlink(missing_ok=True)
    return run


@pytest.fixture(scope="session")
def odd_run(datastore: Path) -> Run:
    """The run of ``flows/odd.py``, which failed."""
    return _run("odd.py", "OddFlow", datastore, fails=True)


@pytest.fixture
def metaflow_client(datastore: Path) -> Iterator[Any]:
    """Metaflow's client, looking at our datastore as alice."""
    metaflow.metadata(f"local@{datastore}")
    metaflow.namespace("user:alice")
    yield metaflow
    metaflow.namespace(None)
    metaflow.default_metadata()


@pytest.fixture
def task(iris_run: Run, metaflow_client: Any) -> Any:
    """The task that trained the model."""
    iris_run.mark.unlink(missing_ok=True)
    return metaflow_client.Step(f"{iris_run.pathspec}/train").task


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind without an index to lock from."""
    monkeypatch.setattr("mfimage.bind.describe_environment", no_lock.describe_environment)


@pytest.fixture(scope="session")
def bound_calls(iris_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """References of the functions of ``backends/calls.py``; their source is gone."""
    from tests.backends.calls import bind_all

    folder = tmp_path_factory.mktemp("calls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfimage.bind.describe_environment", no_lock.describe_environment)
        metaflow.metadata(f"local@{iris_run.folder}")
        metaflow.namespace("user:alice")
        bound = bind_all(folder, metaflow.Step(f"{iris_run.pathspec}/train").task)
        metaflow.namespace(None)
        metaflow.default_metadata()
    (folder / "calls_project.py").unlink()
    del sys.modules["calls_project"]
    return {name: function.reference for name, function in bound.items()}
