"""The journal: what the store could not take is brought to it later, once, whatever dies meanwhile."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay import journal as journal_module
from relay import log
from relay.failpoint import FAILPOINTS, armed, hit
from relay.journal import Journal
from relay.journal_file import JournalFile, Settlement, line_of
from relay.ledger import Ledger
from relay.metrics import Metrics
from relay.store.port import StoreError


class Switch:
    """A store that can be away. trouble: what it says then; for: to which accounts alone."""

    def __init__(self, store):
        self.store = store
        self.trouble = None
        self.account = ""
        self.asked = 0

    def key(self, tag, *parts):
        return self.store.key(tag, *parts)

    async def run(self, script, keys, args=()):
        self.asked += 1
        if self.trouble is not None and self.account in keys[0]:
            raise StoreError(self.trouble, acted=False)
        return await self.store.run(script, keys, args)


class Rig:
    """A folder, a store that is away at first, and what was counted and logged."""

    def __init__(self, folder, store):
        self.folder = folder / "data" / "journal"
        self.switch = Switch(store)
        self.switch.trouble = "away"
        self.metrics = Metrics([], [])
        self.out = io.BytesIO()
        self.ledgers = {"points": Ledger(self.switch, "points", grant=1000)}

    def journal(self, **bounds):
        return Journal(self.folder, self.ledgers.__getitem__, log.configure(self.out), self.metrics, **bounds)

    def counted(self):
        """waiting, replayed, lost"""
        found = {
            sample.name: sample.value for f in parse_text(self.metrics.render()[0].decode()) for sample in f.samples
        }
        names = ("relay_journal_entries", "relay_journal_replayed_total", "relay_journal_lost_total")
        return tuple(int(found[name]) for name in names)

    def lines(self):
        return [orjson.loads(line) for line in self.out.getvalue().splitlines()]

    def events(self):
        return [line["event"] for line in self.lines()]

    def on_disk(self):
        """Every line of every file; without those of a file that is being removed."""
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            try:
                found += path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
        return found

    async def used(self, account="ada"):
        trouble, self.switch.trouble = self.switch.trouble, None
        try:
            return (await self.ledgers["points"].look(account)).used
        finally:
            self.switch.trouble = trouble


@pytest.fixture
def rig(tmp_path, store):
    return Rig(tmp_path, store)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def filled(rig, count, **bounds):
    """An open journal with settlements of 1, 2, … points, all of them on the disk."""
    async with rig.journal(**bounds) as journal:
        for number in range(1, count + 1):
            journal.put("points", "ada", str(number), number, {"model": "m"})
        await until(lambda: len(rig.on_disk()) == count)
        yield journal


def left_behind(folder, name, lines):
    """A file as a process that died leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_bytes(b"".join(lines))


def raw(id, amount, put_at=None, unit="points"):
    put_at = time.time() if put_at is None else put_at
    return line_of(Settlement(unit=unit, account="ada", id=id, amount=amount, put_at=put_at)).raw


async def test_nothing_to_do_leaves_nothing(rig):
    """Without a settlement there is no folder, no file and no line in the log."""
    async with rig.journal():
        await asyncio.sleep(0)
    assert not rig.folder.exists()
    assert [] == rig.lines()
    assert (0, 0, 0) == rig.counted()


async def test_settlements_are_brought_when_the_store_is_back(rig):
    """In their order; the file is gone then."""
    async with filled(rig, 3):
        assert (3, 0, 0) == rig.counted()
        assert 0o700 == rig.folder.stat().st_mode & 0o777
        assert {0o600} == {path.stat().st_mode & 0o777 for path in rig.folder.iterdir()}
        rig.switch.trouble = None
        await until(lambda: not list(rig.folder.iterdir()))
        assert (0, 3, 0) == rig.counted()
        entries = await rig.ledgers["points"].entries("ada")
        assert [("3", -3, {"model": "m"}), ("2", -2, {"model": "m"}), ("1", -1, {"model": "m"})] == [
            (entry.id, entry.amount, entry.note) for entry in entries[:3]
        ]
    assert ["journal in use", "journal empty"] == rig.events()


async def test_what_the_store_had_done_is_not_done_again(rig):
    """Its answer got lost, or the reservation was swept meanwhile."""
    async with filled(rig, 3):
        rig.switch.trouble = None
        await rig.ledgers["points"].settle("ada", "2", 2)
        await until(lambda: rig.counted()[0] == 0)
        assert (0, 3, 0) == rig.counted()
        assert 6 == await rig.used()


async def test_the_store_is_asked_ever_more_seldom(rig, monkeypatch):
    """One attempt a pause, whatever is put meanwhile; and soon after it is back all is brought."""
    monkeypatch.setattr(journal_module, "_PAUSE_FIRST_S", 10.0)
    async with rig.journal() as journal:
        for number in range(1, 201):
            journal.put("points", "ada", str(number), 1, {})
            await asyncio.sleep(0)
        await until(lambda: len(rig.on_disk()) == 200)
        assert 1 == rig.switch.asked
        rig.switch.trouble = None
    assert (0, 200, 0) == rig.counted()  # the end of the process tries once more
    assert 200 == await rig.used()
    assert [] == list(rig.folder.iterdir())


async def test_the_next_start_brings_what_was_left(rig):
    """The store was away until the end, so the file stays; whoever starts in the folder takes it over."""
    async with filled(rig, 3):
        pass
    assert 3 == len(rig.on_disk())
    assert "journal left" == rig.events()[-1]
    rig.switch.trouble = None
    async with rig.journal():
        await until(lambda: rig.counted()[0:2] == (0, 3))
        await until(lambda: not list(rig.folder.iterdir()))
    assert 6 == await rig.used()
    assert "journal taken over" in rig.events()


async def test_a_file_that_is_held_is_left_alone(rig):
    """Two processes in one folder have two files, and neither takes the other's."""
    async with filled(rig, 3):
        other = Rig(rig.folder.parents[1], rig.switch.store)
        async with other.journal() as beside:
            beside.put("points", "bob", "1", 10, {})
            await until(lambda: len(list(rig.folder.iterdir())) == 2)
            assert (1, 0, 0) == other.counted()
        assert 4 == len(rig.on_disk())
    rig.switch.trouble = other.switch.trouble = None
    async with rig.journal():
        await until(lambda: not list(rig.folder.iterdir()))
    assert (6, 10) == (await rig.used("ada"), await rig.used("bob"))


async def test_a_file_that_was_never_begun_is_removed(rig):
    """Its process died before it had its name; that of one that lives is left alone."""
    rig.folder.mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive = (rig.folder / f"{pid}-0123.new" for pid in (gone.pid, os.getpid()))
    dead.touch()
    alive.touch()
    async with rig.journal():
        async with asyncio.timeout(10):
            while dead.exists():
                await asyncio.sleep(0.001)
    assert alive.exists()


async def test_files_of_the_dead_are_taken_while_there_is_room(rig):
    """One in any case, the rest when that is done with; two who come at once share them."""
    for name in "abcdef":
        left_behind(rig.folder, name, [raw(f"{name}{number}", 1) for number in range(4)])
    rig.switch.trouble = None
    async with rig.journal(entries_max=3), rig.journal(entries_max=10):
        await until(lambda: not list(rig.folder.iterdir()))
        await until(lambda: rig.counted()[1] == 24)
    assert 24 == await rig.used()


@pytest.mark.parametrize(("cut", "replayed", "lost"), [(0, 2, 0), (1, 2, 1), (20, 2, 1), (-2, 2, 1), (-1, 3, 0)])
async def test_half_a_line_is_skipped_and_counted(rig, cut, replayed, lost):
    """The process was killed while it wrote; what it had fsynced before is all there."""
    left_behind(rig.folder, "dead", [raw("1", 1), raw("2", 2), raw("3", 3)[:cut]])
    rig.switch.trouble = None
    async with rig.journal():
        await until(lambda: not list(rig.folder.iterdir()))
    assert (0, replayed, lost) == rig.counted()
    assert ["half_a_line"] * lost == [line["why"] for line in rig.lines() if line["event"] == "settlement lost"]


async def test_what_is_too_old_is_not_brought(rig):
    """The ledger may have forgotten its id; its lease was charged long ago."""
    left_behind(rig.folder, "dead", [raw("1", 1, time.time() - 23.1 * 3600), raw("2", 2, time.time() - 22.9 * 3600)])
    rig.switch.trouble = None
    async with rig.journal():
        await until(lambda: not list(rig.folder.iterdir()))
    assert (0, 1, 1) == rig.counted()
    assert 2 == await rig.used()
    assert ["too_old"] == [line["why"] for line in rig.lines() if line["event"] == "settlement lost"]


@pytest.mark.parametrize("bounds", [{"entries_max": 3}, {"bytes_max": 3 * len(raw("1", 1, unit="points")) + 40}])
async def test_what_does_not_fit_is_counted_and_logged(rig, bounds):
    """By its amount, not by its account. Once there is room again it fits."""
    async with rig.journal(**bounds) as journal:
        for number in range(1, 6):
            journal.put("points", "ada", str(number), number, {})
        waiting, replayed, lost = rig.counted()
        assert (3, 0, 2) == (waiting, replayed, lost)
        told = [line for line in rig.lines() if line["event"] == "settlement lost"]
        assert [("full", "points", "4", 4), ("full", "points", "5", 5)] == [
            (line["why"], line["unit"], line["id"], line["amount"]) for line in told
        ]
        assert b"ada" not in rig.out.getvalue()
        rig.switch.trouble = None
        await until(lambda: rig.counted()[0] == 0)
        journal.put("points", "ada", "6", 6, {})
        await until(lambda: rig.counted()[0] == 0)
    assert 12 == await rig.used()


async def test_what_the_ledger_refuses_holds_nobody_up(rig):
    """A unit that is no more, an amount that is none: lost, and the next one is brought."""
    async with rig.journal() as journal:
        journal.put("wishes", "ada", "1", 1, {})
        journal.put("points", "ada", "2", -2, {})
        journal.put("points", "ada", "3", 3, {})
        journal.put("points", "ada", "4", 4, {"half": "\ud800"})
        rig.switch.trouble = None
        await until(lambda: rig.counted()[0] == 0)
    assert (0, 1, 3) == rig.counted()
    assert 3 == await rig.used()
    whys = [line["why"] for line in rig.lines() if line["event"] == "settlement lost"]
    assert ["unwritable", "refused", "refused"] == whys


async def test_an_account_in_trouble_holds_nobody_up(rig):
    """What the store says about one settlement alone is no reason to keep the others."""
    rig.switch.trouble, rig.switch.account = "error", "ada"
    async with rig.journal() as journal:
        journal.put("points", "ada", "1", 1, {})
        journal.put("points", "bob", "1", 2, {})
        await until(lambda: rig.counted() == (1, 1, 0))
        assert 2 == await rig.used("bob")
        rig.switch.trouble = None
        await until(lambda: rig.counted() == (0, 2, 0))


async def test_put_outside_of_its_life_loses(rig):
    """It neither raises nor pretends."""
    journal = rig.journal()
    journal.put("points", "ada", "1", 1, {})
    async with journal:
        pass
    journal.put("points", "ada", "2", 2, {})
    assert (0, 0, 2) == rig.counted()
    assert ["closed", "closed"] == [line["why"] for line in rig.lines()]


async def test_what_cannot_be_written_is_brought_all_the_same(rig):
    """As long as the process lives; the log says once that it is in no file. It is, as soon as that can be."""
    rig.folder.parent.mkdir()
    rig.folder.write_text("in the way")
    async with rig.journal() as journal:
        journal.put("points", "ada", "1", 1, {})
        await until(lambda: "journal not written" in rig.events())
        journal.put("points", "ada", "2", 2, {})
        await until(lambda: rig.switch.asked >= 2)
        rig.folder.unlink()
        journal.put("points", "ada", "3", 4, {})
        await until(lambda: len(rig.on_disk()) == 3)
        rig.switch.trouble = None
    assert (0, 3, 0) == rig.counted()
    assert 7 == await rig.used()
    assert 1 == rig.events().count("journal not written")


async def test_what_cannot_be_read_holds_nobody_up(rig):
    """The log says so; what came before it is taken over, and the journal does its work."""
    left_behind(rig.folder, "a", [raw("1", 1)])
    (rig.folder / "b.jsonl").mkdir()
    async with rig.journal() as journal:
        await until(lambda: rig.counted()[0] == 1)
        rig.switch.trouble = None
        await until(lambda: "journal not read" in rig.events())
        journal.put("points", "ada", "2", 2, {})
        await until(lambda: rig.counted() == (0, 2, 0))
    assert 3 == await rig.used()


async def test_a_disk_that_fills_up_leaves_no_torn_line(rig, monkeypatch):
    """After half a write the journal goes on in a new file, with all that waits."""
    write, full = os.write, [False]

    def half(fd, data):
        if full[0] and bytes(data).startswith(b'{"unit"'):
            write(fd, bytes(data)[:10])
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", half)
    async with filled(rig, 2) as journal:
        full[0] = True
        journal.put("points", "ada", "3", 3, {})
        await until(lambda: "journal not written" in rig.events())
        asked = rig.switch.asked
        await until(lambda: rig.switch.asked > asked + 1)  # and a new file could not be written either
        assert 1 == len(list(rig.folder.iterdir()))
        full[0] = False
        journal.put("points", "ada", "4", 4, {})
        await until(lambda: len(rig.on_disk()) == 4)
    assert [1, 2, 3, 4] == [orjson.loads(line)["amount"] for line in rig.on_disk()]
    assert 1 == len(list(rig.folder.iterdir()))


async def test_the_file_does_not_grow_for_ever(rig, monkeypatch):
    """Where the store takes some and one stays, the file begins anew with that one."""
    monkeypatch.setattr(journal_module, "_PAUSE_FIRST_S", 0.005)
    rig.switch.trouble, rig.switch.account = "error", "ada"
    size = len(raw("1", 1))
    async with rig.journal(bytes_max=4 * size) as journal:
        journal.put("points", "ada", "1", 1, {})
        for number in range(30):
            journal.put("points", "bob", str(number), 1, {})
            await until(lambda: rig.counted()[0] == 1)
            await until(lambda: len(list(rig.folder.iterdir())) == 1)
            assert sum(path.stat().st_size for path in rig.folder.iterdir()) <= 10 * size
    assert (0, 30, 0) == rig.counted()  # of what is left in the file nobody has any more
    assert any(orjson.loads(line)["account"] == "ada" for line in rig.on_disk())


def test_files_are_read_as_they_were_written(tmp_path):
    """Whatever the names and notes are."""
    settlement = Settlement(
        unit="points", account='a"\n{阿}', id="1", amount=2**53 - 1, put_at=1.5, note={"n": -1, "\u2028": "\x00"}
    )
    dead, living = JournalFile(tmp_path), JournalFile(tmp_path)
    dead.append([line_of(settlement)] * 2)
    assert ([], 0) == living.take_over(10, 10_000)
    dead.close()
    assert ([line_of(settlement)] * 2, 0) == living.take_over(10, 10_000)
    assert 1 == len(list(tmp_path.iterdir()))
    living.remove()
    assert [] == list(tmp_path.iterdir())


# Processes that are killed.

DYING = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from relay import log
    from relay.journal import Journal
    from relay.ledger import Ledger
    from relay.metrics import Metrics
    from relay.store.redis import RedisStore

    async def main(folder, socket):
        store = RedisStore.on_socket(socket)
        ledger = Ledger(store, "points", grant=1000)
        async with Journal(Path(folder), lambda unit: ledger, log.configure(), Metrics([], [])) as journal:
            for number in range(1, 6):
                journal.put("points", "ada", str(number), 10, {})
            await asyncio.sleep(60)

    asyncio.run(main(*sys.argv[1:]))
    """
)


def die(folder, socket, failpoint):
    """Run a process that journals five settlements of 10 until it is killed at a point."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(folder), str(socket)],
        env={**os.environ, "RELAY_FAILPOINT": failpoint},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert -signal.SIGKILL == done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("failpoint", "used"),
    [
        ("journal_put:5", 0),  # nothing was on the disk yet
        ("journal_fsynced", 50),
        ("journal_replayed", 50),
        ("journal_replayed:3", 50),
        ("before_settle:2", 50),
        ("after_settle:5", 50),
    ],
)
async def test_a_killed_process_loses_nothing_that_was_fsynced(rig, server, failpoint, used):
    """Wherever it dies: the next one brings what it left, and nothing is charged twice."""
    # Where it is to die before the store is asked, its store is away.
    socket = server if "settle" in failpoint or "replayed" in failpoint else rig.folder / "nowhere"
    await asyncio.to_thread(die, rig.folder, socket, failpoint)
    rig.switch.trouble = None
    async with rig.journal():
        await until(lambda: not list(rig.folder.glob("*.jsonl")))
        await until(lambda: rig.counted()[0] == 0)
    assert used == await rig.used()
    assert 0 == rig.counted()[2]


def test_fail_points_do_nothing_unless_armed():
    """Nor does one that is armed for another."""
    hit("after_reserve")
    armed("")("mid_stream")
    armed("mid_stream:2")("after_reserve")
    armed("mid_stream:2")("mid_stream")
    assert 12 == len(set(FAILPOINTS))


@pytest.mark.parametrize("told", ["nowhere", "mid_stream:x", "mid_stream:-1", "mid_stream:0", ":1"])
def test_a_misspelt_fail_point_says_so(told):
    """At the start, since a test that kills nobody proves nothing."""
    with pytest.raises(ValueError, match="write NAME or NAME:COUNT"):
        armed(told)
