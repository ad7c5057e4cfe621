"""The options of the lexicon, its lists and their files, and how a changed file comes into force."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from relay.config import ConfigError
from relay.log import configure
from relay.metrics import Metrics, ModerationTally
from relay.moderator import Context
from relay.options import Context as Sources
from relay.options import build
from relay.plugin import Services
from relay.pure.window import Hit
from relay.watch import Watch
from relay_plugins.lexicon import Lexicon, moderator
from relay_plugins.lexicon.lists import WordList, read


def found(lexicon: Lexicon, text: str) -> list[str]:
    hits = lexicon.find(text)
    assert hits == lexicon.recall(text)
    return [text[hit.start : hit.end] for hit in hits]


# Files


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("敏感\nporn\n".encode(), id="lines"),
        pytest.param("敏感\r\nporn".encode(), id="CRLF, no last line end"),
        pytest.param("敏感\rporn\r".encode(), id="CR"),
        pytest.param("\ufeff敏感\nporn\n".encode(), id="byte order mark"),
        pytest.param("# a list\n\n  敏感  \n\t\n#porn\nporn\n  # indented\nporn\n".encode(), id="comments and blanks"),
        pytest.param("敏感  # politics\nporn\t\t#since May\n".encode(), id="comments behind phrases"),
    ],
)
def test_files(tmp_path: Path, content: bytes) -> None:
    """A file has a phrase a line; comments, blank lines, doubles and a byte order mark count for nothing."""
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    lexicon = Lexicon(files=(path,), words=("敏感",))
    assert ["敏感", "porn"] == found(lexicon, "敏感 porn,")
    assert 2 == len(lexicon._phrases)


@pytest.mark.parametrize(
    ("line", "phrase"),
    [("c#", "c#"), ("topic #1", "topic #1"), ("\\#tag", "#tag"), ("  \\#tag  # a tag", "#tag"), ("a\\#b", "a\\#b")],
)
def test_number_signs(tmp_path: Path, line: str, phrase: str) -> None:
    """A number sign is a comment's only at the beginning or behind two spaces; a backslash takes that from it."""
    path = tmp_path / "words.txt"
    path.write_text(line)
    assert [phrase] == read(path)


def test_several_files(tmp_path: Path) -> None:
    """Words and all files are one list."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 3)
    lexicon = Lexicon(files=(tmp_path / "a", tmp_path / "b"), words=("ccc",))
    assert 3 == len(lexicon.find("aaa bbb ccc"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, ": cannot be read (No such file or directory); check the path in `files`", id="missing"),
        pytest.param("敏感\n".encode("gb18030"), ", line 1: not UTF-8; save the file as UTF-8", id="GB 18030"),
        pytest.param(b"ok\n\n\xff", ", line 3: not UTF-8; save the file as UTF-8", id="a byte"),
        pytest.param(
            "ok\n# \n\u200b\n".encode(),
            ", line 3: the phrase '\\u200b' has no visible character; remove it",
            id="a phrase of nothing",
        ),
        *(
            pytest.param(
                content, ": there is no phrase in it; write one a line, or remove the file from `files`", id=name
            )
            for name, content in (("empty", b""), ("comments", b"# nothing\n\n"))
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """The start is refused with the path, the line, the reason and the remedy."""
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        Lexicon(files=(path,), words=("other",))
    assert f"{path}{problem}" == str(caught.value)


# Lists


def test_a_lexicon_without_phrases() -> None:
    """A lexicon that finds nothing is a mistake, and so is a list."""
    with pytest.raises(ValueError, match=r"there are no phrases; give words = \[...\] or files = \[...\]"):
        Lexicon()
    with pytest.raises(ValueError, match=r"lists\[1\] has no phrases; give it words"):
        Lexicon(lists=(WordList(words=("a",)), WordList(label="b")))


def test_every_list_has_its_own_label_and_action() -> None:
    """One lexicon reads for all its lists."""
    lexicon = Lexicon(
        words=("赌博",),
        lists=(
            WordList(words=("敏感",), label="politics", action="mask"),
            WordList(words=("ass",), label="abuse", action="review", whole_words=False),
        ),
    )
    hits = [
        Hit(0, 2, "lexicon", "block", "lexicon"),
        Hit(3, 5, "politics", "mask", "lexicon"),
        Hit(8, 11, "abuse", "review", "lexicon"),
    ]
    assert hits == sorted(lexicon.find("赌博 敏感 class"))


def test_the_strictest_list_has_a_phrase() -> None:
    """In whatever order lists and ways to write a phrase come, its strictest action and that list's label hold."""
    lists = [
        WordList(words=("國語",), label="a", action="review"),
        WordList(words=("国语",), label="b", action="block"),
        WordList(words=("国\u200b语",), label="c", action="mask"),
    ]
    for order in (lists, lists[::-1]):
        assert [Hit(0, 2, "b", "block", "lexicon")] == Lexicon(lists=tuple(order)).find("国语")


def test_a_phrase_in_words_and_as_a_word() -> None:
    """A list that looks inside words is not silenced by a stricter one that does not."""
    lexicon = Lexicon(words=("ass",), lists=(WordList(words=("ass",), label="b", action="review", whole_words=False),))
    assert [("b", "review")] == [(hit.label, hit.action) for hit in lexicon.find("class")]
    assert {("lexicon", "block"), ("b", "review")} == {(hit.label, hit.action) for hit in lexicon.find("ass")}


def configured(tmp_path: Path, **table: Any) -> Lexicon:
    return build(Lexicon, {"use": "lexicon", **table}, "m[0]", context=Sources(folder=tmp_path, environ={}))


def test_lists_in_the_configuration(tmp_path: Path) -> None:
    """Lists are tables of the options a lexicon has itself; paths start at the configuration's folder."""
    (tmp_path / "words.txt").write_text("敏感")
    lexicon = configured(tmp_path, words=["a"], lists=[{"files": ["words.txt"], "label": "politics", "action": "mask"}])
    assert [("politics", "mask")] == [(hit.label, hit.action) for hit in lexicon.find("敏感")]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"words": ["a"], "lists": [{"word": ["b"]}]}, "m[0].lists[0].word: unknown key; did you mean 'words'?"),
        ({"lists": [{"words": ["b"], "action": "blok"}]}, "unknown value 'blok'; did you mean 'block'?"),
        ({"lists": [{"words": ["b"], "label": ""}]}, "m[0].lists[0].label: Expected `str` of length >= 1"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, table: dict[str, Any], problem: str) -> None:
    """A mistake in a list is found at the start and named with its place."""
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, **table)
    assert problem in str(caught.value)


async def test_every_label_is_a_metric(tmp_path: Path) -> None:
    """What is found is counted under its list's label."""
    metrics = Metrics([], [])
    lexicon = Lexicon(words=("a",), label="politics", lists=(WordList(words=("b",), label="abuse"),))
    async with lexicon.lifespan(Services(configure(), metrics, tmp_path, tmp_path)):
        metrics.moderated(ModerationTally(violations={("lexicon", "politics"): 2, ("lexicon", "abuse"): 3}))
    exposition, _ = await asyncio.to_thread(metrics.render)
    counted = [line for line in exposition.decode().splitlines() if 'moderator="lexicon"' in line]
    assert any('label="politics"' in line and line.endswith(" 2.0") for line in counted)
    assert any('label="abuse"' in line and line.endswith(" 3.0") for line in counted)


async def test_a_lexicon_can_be_asked() -> None:
    """Asked about a text as it was written, it says what it would find in its copy."""
    context = Context("req-1", "request", "messages[0]")
    assert "block" == (await Lexicon(words=("敏感",)).check("很敏\u200b感", context)).action
    assert "pass" == (await Lexicon(words=("敏感",)).check("很敏锐", context)).action


# Files that change


def replace(path: Path, content: str | bytes) -> None:
    """Another file in the place of this one, as editors and deployments do."""
    other = path.with_name("other")
    other.write_bytes(content.encode() if isinstance(content, str) else content)
    other.replace(path)


def rewrite(path: Path, content: str) -> None:
    """The same file with another content and a later time, however coarse the clock of the file system."""
    later = path.stat().st_mtime_ns + 1_000_000
    path.write_text(content)
    os.utime(path, ns=(later, later))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("aaa")
    return path


@pytest.fixture
def lexicon(path: Path) -> Lexicon:
    return Lexicon(files=(path,), words=("zzz",))


@pytest.mark.parametrize("write", [replace, rewrite])
def test_a_change_counts_when_it_rests(path: Path, write: Any) -> None:
    """A change is told once, at the second look that sees the same; a file that keeps changing is waited for."""
    watch = Watch([path])
    assert not watch.changed()
    write(path, "bbb")
    assert not watch.changed()
    write(path, "cccc")
    assert [False, True, False] == [watch.changed() for _ in range(3)]
    assert watch.still()
    write(path, "ddddd")
    assert not watch.still()


def test_a_file_that_comes_back(path: Path) -> None:
    """A file that is gone has changed, and so has one that is there again."""
    watch = Watch([path])
    path.unlink()
    assert [False, True, False] == [watch.changed() for _ in range(3)]
    path.write_text("aaa")
    assert [False, True, False] == [watch.changed() for _ in range(3)]


def test_a_look_that_is_soon_undone(path: Path) -> None:
    """What was changed and changed back before it rested has not changed."""
    watch = Watch([path])
    before = path.stat().st_mtime_ns
    rewrite(path, "bbb")
    assert not watch.changed()
    path.write_text("aaa")
    os.utime(path, ns=(before, before))
    assert [False, False] == [watch.changed() for _ in range(2)]


def test_a_file_that_changes_while_it_is_read(lexicon: Lexicon, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a list nor a warning about one: it is read when the change is over."""
    for half in ("half", "\u200b"):
        rewrite(path, half)
        assert lexicon._reread() is None
        with monkeypatch.context() as patch:
            patch.setattr(moderator.Watch, "still", lambda watch: False)
            assert lexicon._reread() is None
    rewrite(path, "whole")
    assert lexicon._reread() is None
    assert 2 == len(lexicon._reread() or ())


class Lines:
    """A log whose lines are waited for."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[tuple[str, str, dict[str, object]]] = asyncio.Queue()

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.put_nowait((level, event, fields))


async def test_files_are_watched(lexicon: Lexicon, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is in force for what begins afterwards; a bad one is warned about once and changes nothing."""
    monkeypatch.setattr(moderator, "LOOK_S", 0.001)
    log = Lines()
    async with asyncio.timeout(30), lexicon.lifespan(Services(log, Metrics([], []), tmp_path, tmp_path)):
        old = lexicon.scanner()
        assert not old.feed("aa")
        assert ["aaa", "zzz"] == found(lexicon, "aaa bbb zzz")

        await asyncio.to_thread(replace, path, "bbb\nccc")
        assert ("info", "lexicon_replaced", {"phrases": 3}) == await log.lines.get()
        assert ["bbb", "zzz"] == found(lexicon, "aaa bbb zzz")
        assert [(0, 3)] == [(hit.start, hit.end) for hit in old.feed("a bbb ")]

        await asyncio.to_thread(replace, path, b"ddd\n\xff")
        warning = {"problem": f"{path}, line 2: not UTF-8; save the file as UTF-8"}
        assert ("warning", "lexicon_kept", warning) == await log.lines.get()
        assert ["bbb"] == found(lexicon, "aaa bbb ddd")

        await asyncio.to_thread(path.unlink)
        level, event, fields = await log.lines.get()
        assert ("warning", "lexicon_kept") == (level, event)
        assert "cannot be read" in str(fields["problem"])

        await asyncio.to_thread(replace, path, "eee")
        assert ("info", "lexicon_replaced", {"phrases": 2}) == await log.lines.get()
        assert ["eee"] == found(lexicon, "bbb eee")
    assert log.lines.empty()


async def test_a_fault_is_no_end_of_watching(lexicon: Lexicon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is logged, and the old list stays."""
    monkeypatch.setattr(moderator, "LOOK_S", 0.001)
    log = Lines()
    with monkeypatch.context() as patch:
        patch.setattr(Lexicon, "_reread", lambda lexicon: 1 / 0)
        async with asyncio.timeout(30), lexicon.lifespan(Services(log, Metrics([], []), tmp_path, tmp_path)):
            for _ in range(2):
                assert ("exception", "lexicon_kept", {}) == await log.lines.get()
    assert ["aaa"] == found(lexicon, "aaa")


async def test_nothing_to_watch(lexicon: Lexicon, tmp_path: Path) -> None:
    """A lexicon without files starts no task; one with files leaves none behind."""
    services = Services(configure(), Metrics([], []), tmp_path, tmp_path)
    before = asyncio.all_tasks()
    async with Lexicon(words=("a",)).lifespan(services):
        assert before == asyncio.all_tasks()
    async with lexicon.lifespan(services):
        assert 1 == len(asyncio.all_tasks() - before)
    assert before == asyncio.all_tasks()
