"""Counts of several processes, as one scrape shows them."""

import os
import subprocess
import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay.metrics import FAMILIES, Metrics
from relay.metrics.families import SUPERVISED, WORKER_ENDS, WORKER_STATES
from relay.metrics.workers import Crew, WorkersMetrics, shared_folder

# A process that counts: its folder, its number, and how many requests end in it while one stream is open.
COUNTING = """
import sys
from pathlib import Path
from relay.metrics import Metrics, RequestRecord, Standing
from relay.metrics.workers import share

share(Path(sys.argv[1]), int(sys.argv[2]))
metrics = Metrics(["small"], ["main"])
metrics.calls("tencent", lambda: Standing("open" if sys.argv[2] == "1" else "closed", 800, 10.0 * int(sys.argv[2]), 3))
for _ in range(int(sys.argv[3])):
    metrics.request_ended(RequestRecord(operation="chat", outcome="completed", duration_s=2.0, model="small"))
metrics.stream_opened()
metrics.look()
"""


def count(folder, worker, requests):
    subprocess.run([sys.executable, "-c", COUNTING, folder, str(worker), str(requests)], check=True, timeout=60)


@pytest.fixture
def folder():
    with shared_folder() as made:
        yield made


@pytest.fixture
def metrics(folder):
    """Of a supervisor with two workers, whose process is this one's in both cases."""
    return WorkersMetrics(folder, lambda: Crew({"serving": 2}, {0: os.getpid(), 1: os.getpid()}))


def samples(metrics, accept=""):
    body, content_type = metrics.render(accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    families = list(parse(body.decode()))
    assert len(families) == len({family.name for family in families})
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[name, frozenset(labels.items())]


COMPLETED = {"operation": "chat", "outcome": "completed"}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_what_all_count_is_one(folder, metrics, accept):
    """Counters, histograms and most gauges are summed; of the others the least or the greatest is shown."""
    count(folder, 0, 3)
    count(folder, 1, 4)
    found = samples(metrics, accept)
    assert found["relay_requests_total", frozenset(COMPLETED.items())] == 7
    labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "small", "error_type": ""}
    assert found["gen_ai_server_request_duration_seconds_sum", frozenset(labels.items())] == 14
    assert found["gen_ai_server_request_duration_seconds_count", frozenset(labels.items())] == 7
    assert found["relay_open_streams", frozenset()] == 2
    moderator = frozenset({("moderator", "tencent")})
    assert found["relay_moderation_checks_waiting", moderator] == 6
    assert found["relay_moderation_breaker_state", moderator] == 2
    assert found["relay_moderation_rate_ceiling", moderator] == 800
    assert found["relay_moderation_rate_allowed", moderator] == 0
    assert [name for name, _ in found if name.endswith("_created")] == []


def test_who_takes_a_place_goes_on(folder, metrics):
    """What a dead worker counted stays, and another one of its number adds to it; what its gauges said is over."""
    count(folder, 0, 3)
    count(folder, 1, 4)
    files = set(os.listdir(folder))
    metrics.ended(1, "died")
    assert value(metrics, "relay_requests_total", **COMPLETED) == 7
    assert value(metrics, "relay_open_streams") == 1
    assert value(metrics, "relay_moderation_breaker_state", moderator="tencent") == 0
    count(folder, 1, 10)
    assert value(metrics, "relay_requests_total", **COMPLETED) == 17
    assert value(metrics, "relay_open_streams") == 2
    assert files == set(os.listdir(folder))


def test_files_that_are_about_to_be_made(folder, metrics):
    """A scrape does not trip over a file that a worker has opened and not yet written to."""
    count(folder, 0, 1)
    (folder / "counter_1.db").touch()
    assert value(metrics, "relay_requests_total", **COMPLETED) == 1


def test_the_workers_themselves(metrics):
    """How many there are of each state, and what each uses."""
    found = samples(metrics)
    assert {state: value(metrics, "relay_workers", state=state) for state in WORKER_STATES} == {
        "starting": 0,
        "serving": 2,
        "leaving": 0,
    }
    for worker in ("0", "1"):
        assert found["relay_worker_cpu_seconds_total", frozenset({("worker", worker)})] > 0
        assert found["relay_worker_resident_memory_bytes", frozenset({("worker", worker)})] > 1_000_000


def test_a_worker_that_has_just_ended(folder):
    """It is left out: there is nobody to ask."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    found = samples(WorkersMetrics(folder, lambda: Crew({}, {0: gone.pid})))
    assert [name for name, _ in found if name.startswith("relay_worker_cpu")] == []


def test_every_gauge_says_how_it_is_put_together():
    """A sum of what each worker says of one thing would be nonsense."""
    assert [family.name for family in FAMILIES if (family.across is None) is (family.type == "gauge")] == []
    assert {family.name for family in SUPERVISED}.isdisjoint(family.name for family in FAMILIES)
    assert Metrics.families() == list(FAMILIES)


def test_ends_are_counted(folder):
    """By why, and from zero."""
    script = (
        "import sys; from pathlib import Path\n"
        "from relay.metrics.workers import SUPERVISOR, Crew, WorkersMetrics, share\n"
        "share(Path(sys.argv[1]), SUPERVISOR)\n"
        "metrics = WorkersMetrics(Path(sys.argv[1]), lambda: Crew({}, {}))\n"
        "metrics.ended(3, 'hung')\n"
        "sys.stdout.write(metrics.render()[0].decode())"
    )
    said = subprocess.run([sys.executable, "-c", script, folder], check=True, timeout=60, stdout=subprocess.PIPE).stdout
    [family] = [family for family in parse_text(said.decode()) if family.name == "relay_worker_ends"]
    assert {reason: float(reason == "hung") for reason in WORKER_ENDS} == {
        sample.labels["reason"]: sample.value for sample in family.samples
    }


def test_the_folder_goes_and_so_does_what_was_left(folder):
    """One that nobody holds is of a supervisor that was killed; others, as `folder`, stay."""
    script = (
        "import os\nfrom relay.metrics.workers import shared_folder\n"
        "with shared_folder() as made:\n    print(made, flush=True)\n    os._exit(1)"
    )
    left = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False).stdout
    left = left.decode().strip()
    assert os.path.isdir(left)
    with shared_folder() as other:
        assert not os.path.exists(left)
        assert other.is_dir()
        assert folder.is_dir()
    assert not other.exists()
