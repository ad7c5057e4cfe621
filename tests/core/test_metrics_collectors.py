"""What is counted in numbers of our own is exposed as prometheus-client's own collectors would, and shared as its files are."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    enable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics

from relay.metrics import cells, collectors
from relay.metrics.families import Configured, Family

BOUNDS = (0.001, 0.5, 1, 4)
COUNTED = Family(
    "some_things_total", "counter", 'Things, "some"\\of them.', {"kind": ("a", "b"), "where": Configured("x")}
)
STANDING = Family("some_level", "gauge", "A level.", {"kind": ("a",)}, across="livemax")
TAKEN = Family("some_seconds", "histogram", "Seconds.", {"kind": ("a", "b")}, buckets=BOUNDS)

amounts = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(BOUNDS) | st.floats(0, 9)), max_size=20)


def told(registry):
    return generate_latest(registry), openmetrics.generate_latest(registry)


@pytest.fixture(autouse=True)
def _as_the_relay_does():
    """The library has no switch but one for the whole process."""
    disable_created_metrics()
    yield
    enable_created_metrics()


@given(amounts)
def test_the_same_as_the_library(observed):
    """To the byte, in both formats: names, labels, buckets, sums, and their order."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counted = collectors.counters(COUNTED, ours, where=('r"\n', "s"))
    standing = collectors.gauges(STANDING, ours)
    taken = collectors.histograms(TAKEN, ours)
    count = Counter(COUNTED.name, COUNTED.help, tuple(COUNTED.labels), registry=theirs)
    level = Gauge(STANDING.name, STANDING.help, tuple(STANDING.labels), registry=theirs)
    took = Histogram(TAKEN.name, TAKEN.help, tuple(TAKEN.labels), registry=theirs, buckets=BOUNDS)
    for values in counted:
        count.labels(*values)
    assert told(ours) == told(theirs)
    for kind, amount in observed:
        counted[kind, "s"].inc(amount)
        count.labels(kind, "s").inc(amount)
        taken[(kind,)].observe(amount)
        took.labels(kind).observe(amount)
        standing[("a",)].set(amount)
        level.labels("a").set(amount)
    assert told(ours) == told(theirs)


def test_exemplars_are_the_last_of_their_buckets(monkeypatch):
    """As the library's, where a request is named."""
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    monkeypatch.setattr(collectors, "time", lambda: 1.7e9)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    taken = collectors.histograms(TAKEN, ours)
    took = Histogram(TAKEN.name, TAKEN.help, tuple(TAKEN.labels), registry=theirs, buckets=BOUNDS)
    for number, amount in enumerate((0.7, 0.9, 99.0, 0.4)):
        taken[("a",)].observe(amount, f"r{number}")
        took.labels("a").observe(amount, {"request_id": f"r{number}"})
    taken[("a",)].observe(0.45)
    took.labels("a").observe(0.45)
    assert told(ours) == told(theirs)
    assert b'request_id="r1"' in told(ours)[1]
    assert b'request_id="r0"' not in told(ours)[1]


def test_only_what_is_looked_up_is_made():
    """`get` asks whether there is such a series; a key makes one."""
    taken = collectors.histograms(TAKEN, CollectorRegistry())
    assert taken.get(("a",)) is None
    assert taken[("a",)] is taken[("a",)]
    assert [("a",)] == list(taken)


@pytest.fixture
def shared(tmp_path):
    """What counts into files from now on; `shared()` is another process of the same number."""
    before = cells.keeper

    def begin():
        cells.keep(cells.Shared(tmp_path, 7))

    begin()
    yield begin
    cells.keep(before)


def read(folder):
    """What the library reads of a folder's files: (name, labels) → value."""
    registry = CollectorRegistry()
    found = MultiProcessCollector(registry, str(folder)).collect()
    return {(sample.name, *sample.labels.items()): sample.value for metric in found for sample in metric.samples}


def test_a_count_is_in_the_file_at_once(shared, tmp_path):
    """Nobody has to write it out: a process that is killed loses nothing."""
    registry = CollectorRegistry()
    counted = collectors.counters(COUNTED, registry, where=("s",))
    taken = collectors.histograms(TAKEN, registry)
    level = collectors.gauges(STANDING, registry)[("a",)]
    counted["a", "s"].inc(2)
    counted["a", "s"].inc()
    taken[("a",)].observe(0.7)
    taken[("a",)].observe(0.9)
    level.set(5)
    level.dec()
    found = read(tmp_path)
    assert 3 == found["some_things_total", ("kind", "a"), ("where", "s")]
    assert 0 == found["some_things_total", ("kind", "b"), ("where", "s")]
    assert 4 == found["some_level", ("kind", "a")]
    assert pytest.approx(1.6) == found["some_seconds_sum", ("kind", "a")]
    assert [0, 0, 2, 2, 2] == [
        found["some_seconds_bucket", ("kind", "a"), ("le", le)] for le in ("0.001", "0.5", "1.0", "4.0", "+Inf")
    ]
    assert told(registry)[0].startswith(b"# HELP some_things_total")


def test_another_process_goes_on(shared, tmp_path):
    """What stands in the files of its number is where it begins, for what it knows and for what it does not."""
    collectors.counters(COUNTED, CollectorRegistry(), where=("s",))["a", "s"].inc(2)
    shared()
    counted = collectors.counters(COUNTED, CollectorRegistry(), where=("s", "t"))
    counted["a", "s"].inc(5)
    counted["b", "t"].inc(4)
    found = read(tmp_path)
    assert 7 == found["some_things_total", ("kind", "a"), ("where", "s")]
    assert 4 == found["some_things_total", ("kind", "b"), ("where", "t")]
    assert ["counter_7.db"] == os.listdir(tmp_path)


def test_a_file_grows_under_who_counts_in_it(shared, tmp_path):
    """Also when nobody finds it any more: the supervisor has gone, and its folder with it."""
    counted = collectors.counters(COUNTED, CollectorRegistry(), where=("first",))
    counted["a", "first"].inc()
    size = (tmp_path / "counter_7.db").stat().st_size
    counted.bind(where=[f"{number:0100}" for number in range(500)])
    assert size < (tmp_path / "counter_7.db").stat().st_size
    counted["a", "first"].inc()
    counted["a", f"{499:0100}"].inc(3)
    found = read(tmp_path)
    assert 2 == found["some_things_total", ("kind", "a"), ("where", "first")]
    assert 3 == found["some_things_total", ("kind", "a"), ("where", f"{499:0100}")]
    (tmp_path / "counter_7.db").unlink()
    counted.bind(where=[f"{number:0200}" for number in range(1000)])
    counted["a", "first"].inc()


def test_nothing_is_lost_by_a_kill(tmp_path):
    """A process counts and is killed in the midst of it: all that it had counted is there."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from relay.metrics import Metrics, RequestRecord\n"
        "from relay.metrics.workers import share\n"
        "share(Path(sys.argv[1]), 0)\n"
        "metrics = Metrics(['small'], ['main'])\n"
        "for _ in range(3): metrics.request_ended(RequestRecord(operation='chat', outcome='completed', duration_s=2.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False, timeout=60)
    assert 3 == read(tmp_path)["relay_requests_total", ("operation", "chat"), ("outcome", "completed")]
