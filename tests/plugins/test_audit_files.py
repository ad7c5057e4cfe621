"""The files of `audit`: a chain of lines, what a full disk does to it, and what is found when somebody has changed one."""

import asyncio
import errno
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.errors import Unavailable
from relay.exchange import Outcome
from relay.testing.reply import Lent, exchange
from relay.told import Told
from relay_plugins.audit import Audit, file, writer
from relay_plugins.audit.__main__ import main
from relay_plugins.audit.file import AuditFile
from relay_plugins.audit.verify import check, verify
from relay_plugins.audit.writer import Writer

MIB = 1024 * 1024
PATIENCE_S = 10.0


def record(number: int, size: int = 0) -> bytes:
    return json.dumps({"kind": "exchange", "number": number, "more": "x" * size}).encode()


def written(folder: Path, count: int = 3, max_bytes: int = MIB) -> list[Path]:
    """The files of a chain of so many records, put one by one, and ended."""
    audit = AuditFile(folder, max_bytes)
    audit.open()
    for number in range(count):
        assert (1, None) == audit.append([record(number)])
    assert audit.close() is None
    return sorted(folder.iterdir(), key=lambda path: check(path).first)


def problems(folder: Path) -> list[str]:
    return [checked.problem for checked in verify([folder]) if checked.problem]


def numbers(folder: Path) -> list[int]:
    """Those of the records that are there, in the order of the chain."""
    assert [] == problems(folder)
    found = [json.loads(line) for path in folder.iterdir() for line in path.read_bytes().splitlines()]
    return [line["number"] for line in sorted(found, key=lambda line: line["seq"]) if "number" in line]


# The chain


def test_a_chain(tmp_path: Path) -> None:
    """A beginning, the records, an end; each line is numbered and holds the hash of the one before it."""
    [path] = written(tmp_path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert ["begin", *["exchange"] * 3, "end"] == [line["kind"] for line in lines]
    assert [0, 1, 2, 3, 4] == [line["seq"] for line in lines]
    assert "0" * 64 == lines[0]["prev"]
    assert check(path).ended
    assert [] == problems(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), by=st.integers(1, 255))
def test_a_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, at: float, by: int) -> None:
    """Wherever it stands before the last line, of which the log has the hash."""
    [path] = written(tmp_path_factory.mktemp("audit"))
    data = bytearray(path.read_bytes())
    last = data.rindex(b"\n", 0, -1)
    data[int(at * last)] ^= by
    path.write_bytes(data)
    assert [] != problems(path.parent)


@given(data=st.data())
def test_lines_taken_out_or_moved_are_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Or put in twice."""
    [path] = written(tmp_path_factory.mktemp("audit"))
    lines = path.read_bytes().splitlines(keepends=True)
    order = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=7))
    path.write_bytes(b"".join(lines[number] for number in order))
    whole = order == [*range(len(order))]  # whose end alone is missing, which nobody can see
    assert whole is (problems(path.parent) == [])
    assert not whole or (len(order) == len(lines)) is check(path).ended


@pytest.mark.parametrize("max_bytes", [1, 500])
def test_files_follow_each_other(tmp_path: Path, max_bytes: int) -> None:
    """A file that is long enough is ended, and the chain goes on in the next one."""
    paths = written(tmp_path, 7, max_bytes)
    assert len(paths) > 2
    assert [*range(7)] == numbers(tmp_path)
    assert [None, *(path.name for path in paths[:-1])] == [check(path).after for path in paths]


def test_a_day_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first record of the day on, by UTC."""
    now = 86_399.5
    monkeypatch.setattr("relay_plugins.audit.file.time.time", lambda: now)
    audit = AuditFile(tmp_path, MIB)
    audit.open()
    audit.append([record(0)])
    now = 86_400.0
    audit.append([record(1)])
    audit.close()
    assert [0, 1] == numbers(tmp_path)
    assert ["audit-19700101T235959Z", "audit-19700102T000000Z"] == sorted(
        path.name.rsplit("-", 2)[0] for path in tmp_path.iterdir()
    )


def test_a_file_that_lost_its_end_is_found(tmp_path: Path) -> None:
    """By the one that goes on from it."""
    first, *_ = written(tmp_path, 4, 1)
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:-1]))
    assert [f"does not go on where {first.name} ends"] == problems(tmp_path)


def test_a_chain_has_one_end(tmp_path: Path) -> None:
    """Of two files that go on from one, one is made up."""
    first, second, *_ = written(tmp_path, 4, 1)
    begin, *_ = second.read_bytes().splitlines(keepends=True)
    (tmp_path / "audit-99.jsonl").write_bytes(begin.replace(second.name.encode(), b"audit-99.jsonl"))
    assert [f"goes on from {first.name}, as {second.name} does"] == problems(tmp_path)


def test_a_copy_under_another_name_is_found(tmp_path: Path) -> None:
    """Nothing goes on from the first file of a chain that could tell it from a chain of its own."""
    first, *_ = written(tmp_path, 4, 1)
    (tmp_path / "audit-99.jsonl").write_bytes(first.read_bytes())
    [problem] = problems(tmp_path)
    assert "line 1: is of a file with another name" in problem


@pytest.mark.parametrize("more", [b"{", b'{"kind": "exchange"}'])
def test_nothing_stands_behind_the_end(tmp_path: Path, more: bytes) -> None:
    """Not even half a line, as a crash leaves it before the end."""
    [path] = written(tmp_path)
    path.write_bytes(path.read_bytes() + more)
    assert ["line 6: stands behind the end"] == problems(tmp_path)


def test_a_good_copy_does_not_hide_a_broken_file(tmp_path: Path) -> None:
    """Nor the other way round: each file is looked at, and a chain may lie in several folders."""
    good, broken = tmp_path / "good", tmp_path / "broken"
    paths = written(good, 4, 1)
    broken.mkdir()
    for path in paths:
        (broken / path.name).write_bytes(path.read_bytes())
    assert [] == [checked.problem for checked in verify([good, broken, good]) if checked.problem]
    bad = broken / paths[1].name
    bad.write_bytes(bad.read_bytes().replace(b'"number"', b'"nomber"'))
    for folders in ([good, broken], [broken, good]):
        assert [bad] == [checked.path for checked in verify(folders) if checked.problem]
    for path in paths[:-1]:
        (broken / path.name).unlink()
    paths[-1].unlink()
    assert [] == [checked.problem for checked in verify([broken, good]) if checked.problem]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no line"),
        (b'{"kind"', "has no line"),
        (b"[]\n", "line 1: is no record"),
        (b"\xff\n", "line 1: is no record"),
        (b'{"kind": "end", "seq": 0, "prev": ""}\n', "line 1: is not the beginning of a file"),
        (b'{"kind": "begin", "seq": "0", "prev": ""}\n', "line 1: is not the beginning of a file"),
        (b'{"kind": "begin", "seq": 1, "prev": ""}\n', "line 1: is not the beginning of a chain"),
        (b'{"kind": "begin", "seq": 1, "prev": "", "after": []}\n\n', "line 2: is no record"),
    ],
)
def test_what_is_no_audit_file(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "audit-1.jsonl").write_bytes(content)
    assert [problem] == problems(tmp_path)


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each file, and a status that a script can act upon."""
    paths = written(tmp_path, 2, 1)
    assert 0 == main([str(tmp_path)])
    out = capsys.readouterr().out.splitlines()
    assert sorted(f"OK {path}: lines" for path in paths) == [" ".join(line.split()[:3]) for line in out]
    assert 0 == main([str(paths[1])])
    assert f"goes on from {paths[0].name}, which is not here" in capsys.readouterr().out
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    assert 0 == main([str(paths[0])])
    assert "has no end, as while it is written" in capsys.readouterr().out
    paths[1].write_bytes(paths[1].read_bytes().replace(b"number", b"nomber"))
    assert 1 == main([*map(str, paths)])
    assert "BROKEN" in capsys.readouterr().out


def test_the_command_with_nothing_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == main([str(tmp_path)])
    assert 1 == main([str(tmp_path / "none.jsonl")])
    assert "none.jsonl: No such file or directory" in capsys.readouterr().err


# Disks that are full, or gone


class Disk:
    """`os`, as the files see it, with so many bytes of room. syncs: whether it syncs. truncates: files may be cut."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.syncs = self.truncates = True
        self.held = threading.Event()  # cleared, and writes wait for it
        self.held.set()

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def write(self, fd: int, data: memoryview) -> int:
        self.held.wait(PATIENCE_S)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = os.write(fd, data[: self.room])
        self.room -= count
        return count

    def fsync(self, fd: int) -> None:
        if not self.syncs:
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        if not self.truncates:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        os.ftruncate(fd, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(file, "os", disk)
    return disk


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("room", [0, 1, 100, *range(120, 135), 400, 500])
def test_a_full_disk(tmp_path: Path, disk: Disk, room: int, truncates: bool) -> None:
    """What is there is whole, or ends in half a line where nothing may be taken away; the rest can be tried again."""
    audit = AuditFile(tmp_path, MIB)
    audit.open()
    disk.room, disk.truncates = room, truncates
    todo = [record(number) for number in range(5)]
    done, problem = audit.append(todo)
    assert problem is not None
    assert done < 5
    disk.room = 1 << 30
    assert (5 - done, None) == audit.append(todo[done:])
    assert audit.close() is None
    assert [*range(5)] == numbers_of_whole_lines(tmp_path)
    torn = [checked for checked in verify([tmp_path]) if checked.torn]
    assert (len(torn), 0 if truncates else len(torn)) == (len([*tmp_path.iterdir()]) - 1, len(torn))


def numbers_of_whole_lines(folder: Path) -> list[int]:
    assert [] == problems(folder)
    whole = [line for path in folder.iterdir() for line in path.read_bytes().splitlines(keepends=True)]
    lines = [json.loads(line) for line in whole if line.endswith(b"\n")]
    return [line["number"] for line in sorted(lines, key=lambda line: line["seq"]) if "number" in line]


def test_no_room_for_a_file(tmp_path: Path, disk: Disk) -> None:
    """None is left behind each time that it is tried."""
    disk.room = 10
    audit = AuditFile(tmp_path, MIB)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            audit.open()
    assert [] == [*tmp_path.iterdir()]
    disk.room = 1 << 30
    audit.open()
    audit.close()
    assert [] == problems(tmp_path)


def test_a_disk_that_does_not_sync(tmp_path: Path, disk: Disk) -> None:
    """Nobody knows what of that file is on it: another one goes on."""
    audit = AuditFile(tmp_path, MIB)
    audit.open()
    audit.append([record(0)])
    disk.syncs = False
    assert audit.sync() is not None
    assert audit.append([record(1)])[1] is not None  # a file has to have a name that outlives a power cut
    disk.syncs = True
    assert (1, None) == audit.append([record(1)])
    audit.close()
    assert [0, 1] == numbers(tmp_path)


def removed(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_file_that_was_removed(tmp_path: Path, all_of_it: bool) -> None:
    """Nothing is written to it that could still be written elsewhere; another file goes on, and says after which."""
    folder = tmp_path / "audit"
    audit = AuditFile(folder, MIB)
    audit.open()
    audit.append([record(0)])
    gone = audit.name
    removed(folder)
    if all_of_it:
        folder.rmdir()
    done, problem = audit.append([record(1)])
    assert (0, "the file was removed while it was written") == (done, problem.strerror)
    assert (1, None) == audit.append([record(1)])
    removed(folder)
    assert isinstance(audit.sync(), FileNotFoundError)
    assert (1, None) == audit.append([record(2)])
    audit.close()
    assert [2] == numbers(folder)
    [path] = folder.iterdir()
    assert check(path).after not in (None, gone)


@pytest.mark.usefixtures("quick")
async def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    """Whoever asks while it is found out is refused; the log tells of it."""
    lent = Lent()
    audit = Audit(folder=tmp_path / "audit")
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        await asyncio.to_thread(shutil.rmtree, tmp_path / "audit")
        assert await chain.ask()
        told = await chain.says("audit records cannot be written")
        assert "the file was removed while it was written" == told["reason"]
        await chain.says("audit records are written again")
    assert 1 == await asyncio.to_thread(exchanges, tmp_path / "audit")


class Chain:
    """The plugin as it is served, with requests that end when they are told to."""

    def __init__(self, audit: Audit, lent: Lent) -> None:
        self.audit = audit
        self.lent = lent

    async def ask(self) -> bool:
        """Whether one more request is served. It ends, and is put, at once."""
        ex, served = exchange(), False
        with suppress(Unavailable):
            await self.audit.on_request(ex)
            served = True
        if not served:
            return False
        ex.outcome = Outcome("completed")
        ex.tells(lambda: Told("POST", 200, ex.started, None))
        await self.audit.on_end(ex)
        return True

    async def says(self, event: str) -> dict:
        """Wait until the log has a line of it; the last one."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [line for line in self.lent.lines if line["event"] == event]):
                await asyncio.sleep(0.001)
        return found[-1]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second until it is tried again."""
    monkeypatch.setattr(writer, "RETRY_S", 0.001)


@pytest.mark.usefixtures("quick")
async def test_closed_while_nothing_can_be_written(tmp_path: Path, disk: Disk) -> None:
    """Requests are refused from the first record that fails until it is written; none is lost."""
    lent = Lent()
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        assert await chain.ask()
        disk.room = 0
        assert await chain.ask()
        told = await chain.says("audit records cannot be written")
        with pytest.raises(Unavailable, match="cannot be now; ask again later") as caught:
            await audit.on_request(exchange())
        assert (503, "audit_unavailable") == (caught.value.status, caught.value.code)
        assert ("No space left on device", "error") == (told["reason"], told["level"])
        disk.room = 1 << 30
        await chain.says("audit records are written again")
        assert await chain.ask()
    found = await asyncio.to_thread(verify, [tmp_path])
    assert [""] == [checked.problem for checked in found]
    assert 0 == sum(checked.lost for checked in found)
    assert "audit records lost" not in [line["event"] for line in lent.lines]


@pytest.mark.usefixtures("quick")
async def test_open_while_nothing_can_be_written(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are served; what does not fit into memory is counted in a line of its own where it would stand."""
    monkeypatch.setattr(writer.Writer.__init__, "__kwdefaults__", {"max_bytes": 3000})
    lent = Lent()
    audit = Audit(folder=tmp_path, on_failure="open")
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        disk.room = 0
        for _ in range(50):
            assert await chain.ask()
        await chain.says("audit records cannot be written")
        disk.room = 1 << 30
        lost = (await chain.says("audit records lost"))["count"]
        await chain.says("audit records are written again")
        assert await chain.ask()
    lines = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert 51 == kinds.count("exchange") + lost
    [line] = [line for line in lines if line["kind"] == "lost"]
    assert lost == line["count"]
    assert line["since"] <= line["until"]
    [checked] = await asyncio.to_thread(verify, [tmp_path])
    assert ("", lost) == (checked.problem, checked.lost)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("where", ["write", "fsync", "append"])
@pytest.mark.usefixtures("quick")
async def test_any_error_is_one_of_writing(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, where: str, error: type[Exception]
) -> None:
    """The task that writes does not die of it: it is told once, requests are refused, and it is tried again."""
    lent = Lent()
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)

        def fails(*_: object) -> None:
            raise error(CANARY)

        with monkeypatch.context() as patch:
            patch.setattr(*(AuditFile, "append") if where == "append" else (disk, where), fails, raising=False)
            patch.setattr(writer, "SYNC_S", 0.001)
            assert await chain.ask()
            told = await chain.says("audit records cannot be written")
            assert error.__name__ == told["reason"]
            assert not await chain.ask()
        await chain.says("audit records are written again")
        assert await chain.ask()
    assert 2 == await asyncio.to_thread(exchanges, tmp_path)
    assert CANARY not in str(lent.lines)
    assert 1 == sum(line["event"] == "audit records cannot be written" for line in lent.lines)


CANARY = "canary"


def exchanges(folder: Path) -> int:
    """How many records are there, in files that are sound."""
    assert [] == problems(folder)
    lines = [json.loads(line) for path in folder.iterdir() for line in path.read_bytes().splitlines()]
    return sum(line["kind"] == "exchange" for line in lines)


async def test_nobody_is_served_when_nobody_writes(tmp_path: Path) -> None:
    """Whatever has ended the task."""
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(Lent().services):
        task = audit._writer._task
        audit._writer._closing.set()
        audit._writer._wake.set()
        await task
        with pytest.raises(Unavailable):
            await audit.on_request(exchange())


async def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path, disk: Disk) -> None:
    """In the log, which is all that there is then."""
    lent = Lent()
    audit = Audit(folder=tmp_path, on_failure="open")
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        disk.room = 0
        for _ in range(3):
            await chain.ask()
    assert 3 == (await chain.says("audit records lost"))["count"]
    await chain.ask()  # of one that outlived it, too
    assert 1 == (await chain.says("audit records lost"))["count"]


async def test_a_disk_that_hangs(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up nobody's loop; when it has hung for long, nobody is served behind its back."""
    lent = Lent()
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        disk.held.clear()
        assert await chain.ask()
        await asyncio.sleep(0)
        assert await chain.ask()
        monkeypatch.setattr(writer, "STUCK_S", -1.0)
        assert not await chain.ask()
        disk.held.set()
    assert 2 == sum("exchange" in line for path in tmp_path.iterdir() for line in path.read_text().splitlines())


async def test_a_disk_that_hangs_at_the_end(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it: not who closes, not the loop, not the process. The log has what is lost."""
    monkeypatch.setattr(writer, "CLOSE_S", 0.01)
    lent = Lent()
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(lent.services):
        chain = Chain(audit, lent)
        disk.held.clear()
        assert await chain.ask()
        await asyncio.sleep(0)
        assert await chain.ask()
    assert 2 == (await chain.says("audit records lost"))["count"]
    assert "the disk hangs" in (await chain.says("audit file not ended"))["reason"]
    threads = [thread for thread in threading.enumerate() if thread.name == "audit"]
    assert {True} == {thread.daemon for thread in threads}
    disk.held.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE_S)
    [checked] = await asyncio.to_thread(verify, [tmp_path])
    assert ("", True) == (checked.problem, checked.ended)  # as soon as it goes on


async def test_the_log_has_the_hash_of_the_last_line(tmp_path: Path) -> None:
    """So that somebody who can only change the files cannot cut off their ends."""
    lent = Lent()
    async with Audit(folder=tmp_path).lifespan(lent.services):
        pass
    [path] = tmp_path.iterdir()
    [told] = [line for line in lent.lines if line["event"] == "audit file ended"]
    checked = await asyncio.to_thread(check, path)
    assert (path.name, checked.next, checked.last) == (told["file"], told["lines"], told["last"])


async def test_all_that_is_put_is_written(tmp_path: Path) -> None:
    """By several at once in one folder, each in files of its own that grow until they are ended; in the order of each."""

    async def write(name: str) -> None:
        audit = Writer(AuditFile(tmp_path, 5000), Lent().services.log)
        await audit.open()
        async with audit:
            for number in range(300):
                audit.put({"kind": "exchange", "writer": name, "number": number})
                if number % 7 == 0:
                    await asyncio.sleep(0)

    await asyncio.gather(*map(write, "abc"))
    found = await asyncio.to_thread(verify, [tmp_path])
    assert {""} == {checked.problem for checked in found}
    assert {True} == {checked.ended for checked in found}
    lines = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    for name in "abc":
        own = sorted((line for line in lines if line.get("writer") == name), key=lambda line: line["seq"])
        assert [*range(300)] == [line["number"] for line in own]
