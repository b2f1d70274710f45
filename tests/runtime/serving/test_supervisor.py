from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mfimage.errors import OptionError
from mfimage.runtime.serving.http.supervisor import supervise
from mfimage.runtime.settings import Settings
from tests.runtime.packages import make_folder
from tests.runtime.servers import Server, running, until
from tests.runtime.serving.test_serving import NAP, Background, Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux"),
]

WHO = """
from prometheus_client import Counter
MINE = Counter("mine", "Calls.") if __name__ == "served" else None

@json_function
def predict(data: float) -> int:
    MINE.inc()
    time.sleep(data)
    return os.getpid()
"""


def until_all_are_ready(server: Server, count: int) -> Server:
    server.until_ready()
    until(lambda: f"mfimage_workers_ready {count}.0" in server.get("/metrics").text)
    return server


def pids(server: Server, count: int) -> set[int]:
    """Ask until that many processes have answered."""
    found: set[int] = set()

    def ask() -> bool:
        found.add(server.post("/predict", 0.0).json())
        return len(found) == count

    until(ask)
    return found


def value(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_every_process_answers_and_all_are_counted(tmp_path: Path) -> None:
    with running(make_folder(tmp_path / "fn", WHO), MFIMAGE_WORKERS="3") as server:
        until_all_are_ready(server, 3)
        assert len(pids(server, 3)) == 3
        before = value(server, 'mfimage_requests_total{endpoint="record",status="200"}')
        for _ in range(20):
            server.post("/predict", 0.0)
        after = value(server, 'mfimage_requests_total{endpoint="record",status="200"}')
        assert after - before == 20
        assert value(server, "mine_total") == after
        assert value(server, "mfimage_requests_in_flight") == 0
        server.signal()
        assert server.wait() == 0


def test_a_worker_that_dies_is_reaped_and_replaced(tmp_path: Path) -> None:
    with running(make_folder(tmp_path / "fn", WHO), MFIMAGE_WORKERS="2") as server:
        until_all_are_ready(server, 2)
        one, other = pids(server, 2)
        counted = value(server, 'mfimage_requests_total{endpoint="record",status="200"}')
        os.kill(one, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{one}").exists())
        assert server.get("/readyz").status_code == 200
        until(lambda: value(server, "mfimage_workers_ready") == 2)
        assert len(pids(server, 2) - {one, other}) == 1
        again = value(server, 'mfimage_requests_total{endpoint="record",status="200"}')
        assert again > counted
        server.signal()
        assert server.wait() == 0
    (entry,) = server.messages("error")
    assert entry["pid"] == one


def test_sigterm_to_the_parent_loses_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "fn", NAP)
    with running(folder, MFIMAGE_WORKERS="2", MFIMAGE_DRAIN="0.5") as server:
        until_all_are_ready(server, 2)
        clients = [Client(server.port) for _ in range(16)]
        until(lambda: all(client.answers[200] > 3 for client in clients))
        server.signal()
        assert server.wait() == 0
        for client in clients:
            client.join()
        answers: collections.Counter[object] = collections.Counter()
        for client in clients:
            answers += client.answers
        assert set(answers) == {200}


def test_a_second_signal_ends_all_workers(tmp_path: Path) -> None:
    with running(make_folder(tmp_path / "fn", WHO), MFIMAGE_WORKERS="2") as server:
        until_all_are_ready(server, 2)
        found = pids(server, 2)
        call = Background(server, 30.0).until_in_flight(server)
        server.signal()
        until(lambda: any(entry["message"] == "shutting down" for entry in server.log))
        server.signal()
        assert server.wait(10) == 128 + signal.SIGTERM
        assert call.answer.exception()
        until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in found))


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with running(make_folder(tmp_path / "fn", WHO), MFIMAGE_WORKERS="2") as server:
        until_all_are_ready(server, 2)
        found = pids(server, 2)
        server.signal(signal.SIGKILL)
        server.process.wait()
        # Nobody may be there to reap them: what counts is that they hold nothing any more.
        until(lambda: not any(_holds_files(pid) for pid in found))


def _holds_files(pid: int) -> bool:
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("end", ["raise RuntimeError('broken')", "os.kill(os.getpid(), 9)"])
def test_a_function_that_cannot_be_loaded_ends_them_all(tmp_path: Path, end: str) -> None:
    folder = make_folder(tmp_path / "fn", NAP)
    code = folder / "code" / "served.py"
    code.write_text(f"{code.read_text()}{end}\n")
    with running(folder, MFIMAGE_WORKERS="2") as server:
        assert server.wait() == 1
    assert any("no worker could load" in entry["message"] for entry in server.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_as_the_first_process(tmp_path: Path, workers: int) -> None:
    """In a PID namespace of its own, as in a container; a parent of workers reaps orphans."""
    probe = subprocess.run(["unshare", "--pid", "--fork", "true"], check=False)
    if probe.returncode:
        pytest.skip("no PID namespaces here")
    source = WHO.replace("    MINE.inc()\n", "    os.system('sleep 0.2 & exit 0')\n")
    folder = make_folder(tmp_path / "fn", source)
    command = [
        "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
        sys.executable, "-m", "mfimage.runtime", "serve", "--folder", str(folder),
    ]  # fmt: skip
    server = Server(folder, command=command, MFIMAGE_WORKERS=str(workers))
    try:
        until_all_are_ready(server, workers)
        for _ in range(5):
            server.post("/predict", 0.3)
        (first,) = children(server.process.pid)
        if workers > 1:
            until(lambda: len(children(first)) == workers)
        os.kill(first, signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.process.kill()
        server.wait()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


PID_1 = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as PID 1, it gets orphans
from mfimage.runtime.__main__ import _leave_pid_1
_leave_pid_1()
for _ in range(20):
    subprocess.run("true & exit 3", shell=True)
done = subprocess.run("exit 3", shell=True)
def zombies():
    states = [p.read_text().rpartition(")")[2].split() for p in Path("/proc").glob("[0-9]*/stat")]
    return [s for s in states if s[0] == "Z" and s[1] == str(os.getppid())]
until = time.monotonic() + 20
while zombies() and time.monotonic() < until:
    time.sleep(0.05)
print(done.returncode, len(zombies()), flush=True)
if sys.argv[1:]:
    time.sleep(60)
sys.exit(7)
"""


def test_pid_1_reaps_orphans_with_one_worker_too() -> None:
    """80 calls that left a helper behind filled the container's process limit with zombies."""
    done = subprocess.run(
        [sys.executable, "-c", PID_1], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("3 0\n", 7), done.stderr


def test_pid_1_passes_signals_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", PID_1, "wait"], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout as lines:
        assert lines.readline() == b"3 0\n"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM


def test_where_no_file_can_be_written_the_error_says_what_to_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OptionError, match="/tmp cannot be written") as caught:
        supervise(make_folder(tmp_path / "fn", WHO), Settings(workers=2))
    assert "emptyDir at /tmp" in str(caught.value.hint)
