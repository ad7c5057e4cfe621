"""The processes of a benchmark: started, waited for, and charged with what they use."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """What the process and all that it has started have used so far."""
    return sum(map(own_cpu_s, tree(pid)))


def own_cpu_s(pid: int) -> float:
    """What the process alone has used so far; 0 if there is none. To the nanosecond where the kernel keeps such counts."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        tasks = []
    if tasks:
        return sum(int(task.split()[0]) for task in tasks) / 1e9
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def pss_kb(pid: int) -> int:
    """What memory the process and all that it has started hold; what is shared counts in parts."""
    return sum(
        int(line.split()[1])
        for each in tree(pid)
        for line in _lines(Path(f"/proc/{each}/smaps_rollup"))
        if line.startswith("Pss:")
    )


def tree(pid: int) -> list[int]:
    """The process, the processes that it has started, and so on."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def children(pid: int) -> list[int]:
    """The processes that it has started and that are running."""
    every = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [each for each in every if (fields := _stat(each)) and int(fields[1]) == pid]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """See proc(5), from the third field on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def started(*command: str, port: int, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens on `port`; ended with the block. `log`: where what it says is kept."""
    with open(log or os.devnull, "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        for _ in range(1500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with status {process.returncode}")
            time.sleep(0.02)
        else:
            sys.exit(f"{command[0]} does not listen on port {port}")
        yield process
    finally:
        process.terminate()
        process.wait(10)
