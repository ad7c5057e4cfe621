"""What the benchmark's own figures rest on, and each of its rows, measured once and short against a real relay."""

import json
import math
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from bench import table as pages
from bench.__main__ import PAGES, curves, draw, run
from bench.lab import TINY, Lab
from bench.listener import at_share
from bench.load import percentiles_us
from bench.phrases import held, phrases
from bench.picture import Point, bars, svg
from bench.processes import cpu_s, free_port, pss_kb, started, tree
from bench.proxies import NGINX, RELAY, ROUTER, SYSTEM_PATH
from bench.rig import OVERLAP, seen
from bench.row import Row, Table
from bench.rows import GROUPS
from bench.shapes import LARGE, SHAPES, STAMPS, TOKENS, Setting, stamp
from bench.slow import queued
from bench.texts import chunks, reply


def windows(text: str, ends: list[int]) -> list[str]:
    return [text[max(0, start - OVERLAP) : end] for start, end in zip([0, *ends], ends, strict=False)]


def test_the_model_says_its_reply() -> None:
    for seed in range(50):
        text = reply(seed)
        assert "".join(chunks(text, seed)) == text == reply(seed)
        assert 900 <= len(text) < 1600
        assert 100 <= len(reply(seed, 100)) < 200


def test_what_was_shown_is_seen_and_nothing_else() -> None:
    for seed in range(50):
        text = reply(seed)
        shown = windows(text, [47, 120, 200, 290, *range(380, len(text), 85), len(text)])
        assert seen(text, text, shown) == len(text)
        assert seen(text, text, [shown[1], shown[0], shown[0], *shown[2:]]) == len(text)  # in any order, and again
        left_out = len(shown[4]) - OVERLAP
        assert seen(text, text, shown[:4] + shown[5:]) == len(text) - left_out
        assert seen(text[:100], text, shown) == 100
        assert seen(text[:100], text, shown[:1]) == 47


def test_a_share_of_the_characters_is_no_later_than() -> None:
    delays = [(0.1, 2), (0.2, 4), (0.9, 4)]
    assert at_share(delays, 0.5) == 0.2
    assert at_share(delays, 0.6) == 0.2
    assert at_share(delays, 0.99) == 0.9
    assert at_share([], 0.5) is None


def test_the_picture_is_a_picture() -> None:
    points = [Point("300 ms", 42.4, 0.46, 0.83), Point("2400 ms", 8.1, 1.17, 2.32)]
    picture = ElementTree.fromstring(svg(points, "title"))
    assert len(picture.findall("{*}circle")) == 4
    assert "42.4" in bars(points)


# Labs at the same time: most of what they do is wait.
PARTS = (
    ["cpu", "carried", "latency", "first", "shapes"],
    ["whole", "slow"],
    ["tencent", "memory"],
    ["workers", "start"],
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The whole table, without peers."""

    def part(folder: Path, groups: list[str]) -> Table:
        lab = Lab(folder, TINY, "whole", None, with_nginx=False)
        table = run(lab, groups)
        assert lab.wrong == []
        return table

    with ThreadPoolExecutor(len(PARTS)) as pool:
        parts = list(pool.map(part, [tmp_path_factory.mktemp("bench") for _ in PARTS], PARTS))
    return Table([row for each in parts for row in each.rows], parts[0].foot, parts[0].made)


def test_every_row_is_measured(measured: Table) -> None:
    assert {row.group for row in measured.rows} == set(GROUPS)
    assert len({row.key for row in measured.rows}) == len(measured.rows)
    for row in measured.rows:
        [figure] = row.figures[RELAY]
        assert math.isfinite(figure), row
        assert figure > 0 or row.key == "memory", row  # of so few streams it is less than the noise
    by_key = {row.key: row for row in measured.rows}
    assert by_key["open"].figures[RELAY] == [TINY.streams(5000)]
    assert "52%" in by_key["latency held p50"].note


@pytest.mark.skipif(shutil.which("nginx", path=SYSTEM_PATH) is None, reason="nginx is not installed")
def test_two_workers_are_measured_of_nginx_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path, TINY, "whole", None)
    [row] = run(lab, ["workers"]).rows
    assert lab.wrong == []
    assert [*row.figures] == [RELAY, NGINX]
    assert all(math.isfinite(figure) and figure > 0 for [figure] in row.figures.values())


def test_the_table_is_kept_and_shown(measured: Table, tmp_path: Path) -> None:
    pages.save(measured, tmp_path / "table.json")
    kept = pages.load(tmp_path / "table.json")
    assert kept == measured
    shown = pages.text(kept)
    assert all(
        row.name.replace("p50", "p50 / p99") in shown for row in kept.rows if row.shown and "p99, " not in row.name
    )
    draw(kept, tmp_path / "cost.png")
    assert [streams for streams, _ in curves(kept)[RELAY]] == [5, 20, 100, 400]
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.format == "PNG"


def test_pages_show_the_table_between_their_markers(tmp_path: Path) -> None:
    row = Row("cpu", "cpu", "CPU", "µs", {RELAY: [1, 30, 20], NGINX: [8, 10, 70], ROUTER: [math.nan]}, note="so it is")
    small = Row("shapes", "crlf", "CRLF", "µs", {RELAY: [2]}, headline=False)
    hidden = Row("cpu", "curve", "hidden", "µs", {RELAY: [2]}, shown=False)
    table = Table([row, small, hidden], ["made today"])
    for page, headline in PAGES.items():
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        pages.write(copy, table, headline=headline)
        once = copy.read_text(encoding="utf-8")
        assert "| CPU, µs | 20.0 | 10.0 | 2.00 | – | – |" in once
        assert ("so it is" in once) == ("CRLF" in once) == (not headline)
        assert "made today" in once
        assert "hidden" not in once
        pages.write(copy, table, headline=headline)
        assert copy.read_text(encoding="utf-8") == once
    bare = tmp_path / "bare.md"
    bare.write_text("no table")
    with pytest.raises(ValueError, match="no markers"):
        pages.write(bare, table, headline=True)


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_says_its_text_with_a_stamp_for_each_event(shape: str, together: int) -> None:
    writes = [stamp().join(write) for write in Setting(shape=shape, events=30, together=together).writes()]
    assert len(writes) == 30 // together + 3
    assert [len(STAMPS.findall(write)) for write in writes] == [1, *[together] * (30 // together), 1, 0]
    body = b"".join(writes).partition(b"\r\n\r\n")[2]
    events = []
    while body:
        size, _, body = body.partition(b"\r\n")
        events.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    end = b"\r\n\r\n" if shape == "crlf" else b"\n\n"
    assert events[-2:] == [b"data: [DONE]" + end, b""]
    said = ""
    for event in events[:-2]:
        assert event.endswith(end)
        content = json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "")
        said += content if isinstance(content, str) else "".join(part["text"] for part in content)
    assert said == "".join((TOKENS * 2)[:30])


def test_large_events_are_large() -> None:
    writes = Setting(events=3, large=True).writes()
    assert all(LARGE < sum(map(len, write)) < LARGE * 1.1 for write in writes[1:-2])


def test_what_may_begin_a_phrase_is_held() -> None:
    assert held(["ab", "c", "d"], ["cx"]) == pytest.approx(1 / 3)
    assert held(["ab", "c", "d"], ["bcx", "de"]) == 1
    assert held(["A", "b"], ["abc"]) == 1
    assert held(["x"], ["xx"]) == 1
    unheard = phrases(unheard="".join(TOKENS))
    assert len(unheard) == len(set(phrases())) == 5000
    assert held(TOKENS, unheard) == 0


def test_percentiles() -> None:
    assert percentiles_us(range(100_000, 0, -1000)) == (51, 100)
    assert percentiles_us([]) is None


def test_what_the_kernel_holds_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client, server.accept()[0] as accepted:
            ports = (client.getsockname()[1], address[1])
            assert queued(ports) == 0
            client.sendall(b"x" * 1000)
            assert accepted.recv(1, socket.MSG_PEEK)  # it has come
            assert queued(ports) >= 1000
            accepted.recv(1000, socket.MSG_WAITALL)
            assert queued((ports[1], ports[0])) < 1000


def test_a_process_is_charged_with_what_it_starts() -> None:
    port = free_port()
    work = "sum(range(10**7)); "
    child = f"import socket; {work} s = socket.create_server(('127.0.0.1', {port})); s.accept()[0].recv(1); s.accept()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with started(sys.executable, "-c", parent, port=port) as process:
        below = tree(process.pid)
        assert len(below) == 2
        assert cpu_s(process.pid) > 2 * cpu_s(below[1]) * 0.5 > 0
        assert pss_kb(process.pid) > pss_kb(below[1]) > 1000
        with socket.create_connection(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    ("work", "end"), [("plain", b'"system_fingerprint":"fp_123456789012345"}\n'), ("stream", b"0\r\n\r\n\n")]
)
def test_the_work_without_a_network(work: str, end: bytes) -> None:
    """What instructions are counted of is a whole reply."""
    command = [sys.executable, "-m", "bench.inside", work, "1", "--show"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    assert done.stdout.startswith(b"HTTP/1.1 200 OK")
    assert done.stdout.endswith(end)
