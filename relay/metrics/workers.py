"""Counts of several workers, shown as one relay's: each writes to files of its own, and the supervisor adds them up.

The files are those of prometheus-client's multiprocess mode (`relay.metrics.cells` writes them, the library reads them), with
the number of the worker in their names in place of its process id: a worker that takes the place of a dead one goes on with its files, so that counters never go back and the files never
become more than there were workers at once. What a dead worker's gauges said is removed.

https://prometheus.github.io/client_python/multiprocess/
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector

from relay.metrics.cells import Shared, keep
from relay.metrics.collectors import counters
from relay.metrics.exposition import exposed
from relay.metrics.families import WORKER_CPU, WORKER_MEMORY, WORKER_STATES, WORKERS, WORKERS_ENDED

_PREFIX = f"relay-metrics-{os.getuid()}-"
# Memory that is a file's: nothing is written to a disk. Where there is none, the files lie where temporary ones do.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a name of our own is made in it

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


SUPERVISOR: Final = "supervisor"


def share(folder: Path, worker: int | str) -> None:
    """Let what this process counts from now on be read from `folder`; before any `Metrics` is made.

    No two living processes may be the same `worker`. The supervisor is one too, `SUPERVISOR`: it has a store.
    """
    keep(Shared(folder, worker))


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for the workers' files, as long as the block runs; those that killed supervisors left are removed."""
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


class Crew(NamedTuple):
    """The workers that there are: how many in each of `WORKER_STATES`, and their numbers with their process ids."""

    states: Mapping[str, int]
    processes: Mapping[int, int]


class WorkersMetrics:
    """What a supervisor, which shares too, exposes: the sums of all counts. `crew` is asked whenever they are read.

    `process_…` is about the supervisor's process.
    """

    def __init__(self, folder: Path, crew: Callable[[], Crew]) -> None:
        self._folder = folder
        self._registry = registry = CollectorRegistry()
        _Files(registry, str(folder))  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)
        registry.register(_CrewCollector(crew))
        self._ends = counters(WORKERS_ENDED, CollectorRegistry())  # found in its file

    def ended(self, worker: int, reason: str) -> None:
        """A worker has ended, for one of `WORKER_ENDS`; what its gauges said is over."""
        self._ends[(reason,)].inc()
        mark_process_dead(worker, str(self._folder))  # type: ignore[no-untyped-call]

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """As `relay.metrics.Metrics.render`."""
        return exposed(self._registry, accept)


class _Files(MultiProcessCollector):
    """Passes over files that their worker is about to make."""

    def collect(self) -> Iterable[Metric]:
        files = []
        for file in Path(self._path).glob("*.db"):
            with suppress(FileNotFoundError):  # a dead worker's
                if file.stat().st_size:
                    files.append(str(file))
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


class _CrewCollector:
    """What is known of the workers from outside."""

    def __init__(self, crew: Callable[[], Crew]) -> None:
        self._crew = crew

    def collect(self) -> Iterable[Metric]:
        crew = self._crew()
        states = GaugeMetricFamily(WORKERS.name, WORKERS.help, labels=tuple(WORKERS.labels))
        for state in WORKER_STATES:
            states.add_metric([state], crew.states.get(state, 0))
        cpu = CounterMetricFamily(WORKER_CPU.name, WORKER_CPU.help, labels=tuple(WORKER_CPU.labels))
        memory = GaugeMetricFamily(WORKER_MEMORY.name, WORKER_MEMORY.help, labels=tuple(WORKER_MEMORY.labels))
        for worker, process in sorted(crew.processes.items()):
            # None where there is no /proc, and for one that has just ended.
            with suppress(OSError):
                used_s, resident_bytes = _usage(process)
                cpu.add_metric([str(worker)], used_s)
                memory.add_metric([str(worker)], resident_bytes)
        return [states, cpu, memory]


def _usage(process: int) -> tuple[float, int]:
    """Seconds of processor time and resident bytes of a process: proc_pid_stat(5). Raises OSError."""
    # The second field is a name in brackets, which may hold anything; the third is the first of `fields`.
    fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND, int(fields[21]) * _PAGE_BYTES
