"""One run of text: when its windows are cut, what they show, and how far they clear it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.surfaces import Kind
from relay.pure.window import ALL, MAX_NOTHING, MAX_WINDOW_CHARS, Cutting, Hit, Run, Window

# Nothing ripens by itself unless a test makes it.
PATIENT = Cutting(holdback_chars=4, first_chars=10_000, sentence_chars=10_000, max_chars=10_000, max_wait_s=1000.0)


def patient(**settings: float) -> Cutting:
    return Cutting(**{name: getattr(PATIENT, name) for name in Cutting.__slots__} | settings)  # type: ignore[arg-type]


def a_run(text: str = "", cutting: Cutting = PATIENT, **options: object) -> Run:
    """A run for remote moderators that has read `text`."""
    run = Run(0, "content", cutting, remote=True, **options)  # type: ignore[arg-type]
    if text:
        run.append(text, Kind.PLAIN, 0.0)
    return run


def taken(run: Run, now: float = 0.0) -> Window:
    """The next window, seen by somebody: it grows no more."""
    window = run.take(now)
    assert window is not None
    run.show(window, now)
    return window


class Holding:
    """A scanner that holds what it is told to, and finds what it is told to."""

    def __init__(self, held: int, *hits: Hit) -> None:
        self.held = held
        self.hits = hits
        self.read = ""

    def feed(self, text: str) -> Sequence[Hit]:
        self.read += text
        return self.hits

    def finish(self) -> Sequence[Hit]:
        self.held = 0
        return self.hits


def test_the_defaults_are_those_of_the_documentation() -> None:
    """Fast first words, some sixteen calls per 1,000 characters."""
    documented = {"holdback_chars": 16, "first_chars": 32, "sentence_chars": 64, "max_chars": 400, "max_wait_s": 1.2}
    assert Cutting(**documented, context_chars=0) == Cutting()
    assert 10_000 == MAX_WINDOW_CHARS  # Tencent's limit


# When a window is cut


@pytest.mark.parametrize(
    ("cutting", "before", "last"),
    [
        pytest.param(patient(max_chars=5), "abcd", "e", id="max_chars new characters"),
        pytest.param(patient(first_chars=5), "abcdefg", "h", id="first_chars beyond the holdback, at first"),
        pytest.param(patient(sentence_chars=3), "ab", "。", id="a sentence end with sentence_chars behind it"),
        pytest.param(patient(sentence_chars=3), "a.b", "\n", id="of sentence ends the last one counts"),
    ],
)
def test_a_window_is_ripe_at_the_first_of_its_limits_and_not_before(cutting: Cutting, before: str, last: str) -> None:
    """The character that reaches a limit makes the window ripe; none before it does."""
    run = a_run(cutting=cutting)
    for char in before:
        run.append(char, Kind.PLAIN, 0.0)
        assert not run.ripe(0.0)
    run.append(last, Kind.PLAIN, 0.0)
    assert run.ripe(0.0)


@pytest.mark.parametrize("end", [*"。！？；…!?.;\n"])
def test_sentences_end_at_these_characters(end: str) -> None:
    """Of both scripts, in canonical text: … is three full stops there."""
    cutting = patient(sentence_chars=2)
    assert a_run("a" + end, cutting).ripe(0.0)
    assert not a_run("ab,", cutting).ripe(0.0)


def test_without_a_sentence_end_no_sentence_is_long_enough() -> None:
    """Not even one of one character."""
    assert not a_run("ab", patient(sentence_chars=1)).ripe(0.0)


def test_limits_count_canonical_characters() -> None:
    """What folds to nothing fills no window; what folds to several counts as several."""
    cutting = patient(max_chars=3)
    assert not a_run("\u200ba\u0301\u200bb\u200b", cutting).ripe(0.0)
    assert a_run("…", cutting).ripe(0.0)


def test_the_first_window_is_the_first_of_its_surface() -> None:
    """Neither later windows nor the windows of a later run are as short."""
    run = a_run("abcdefgh", patient(first_chars=5))
    taken(run)
    run.append("abcdefgh", Kind.PLAIN, 0.0)
    assert not run.ripe(0.0)
    run.finish(0.0)
    assert not a_run("abcdefgh", patient(first_chars=5), resumes=run).ripe(0.0)


def test_a_window_is_ripe_when_its_oldest_character_has_waited() -> None:
    """The wait counts from the first character that is in no window, and `deadline` says when it is over."""
    run = a_run(cutting=patient(max_wait_s=0.3))
    assert run.deadline() is None
    run.append("a", Kind.PLAIN, 0.1)
    run.append("b", Kind.PLAIN, 0.2)
    assert 0.4 == run.deadline()
    assert not run.ripe(0.39)
    assert run.ripe(0.1 + 0.3)  # not a bit later than `deadline` says
    taken(run, 0.5)
    assert run.deadline() is None
    run.append("c", Kind.PLAIN, 0.6)
    assert 0.6 + 0.3 == run.deadline()


def test_what_a_sentence_end_leaves_behind_has_waited_since_it_came() -> None:
    """A cut at a sentence end does not set back the wait of the characters behind it; if that is over they go too."""
    for now, end, deadline in ((2.9, 3, 3.0), (3.0, 5, None)):
        run = a_run(cutting=patient(sentence_chars=2, max_wait_s=1.0))
        run.append("a", Kind.PLAIN, 1.0)
        run.append("b.c", Kind.PLAIN, 2.0)
        run.append("d", Kind.PLAIN, 2.5)
        assert end == taken(run, now).end
        assert deadline == run.deadline()


def test_the_end_of_a_run_makes_its_last_window_ripe() -> None:
    """However short it is; and there is none if nothing new stands in it."""
    run = a_run("a")
    assert not run.ripe(0.0)
    run.finish(0.0)
    assert run.ripe(0.0)
    assert run.uncut
    taken(run)
    assert not run.ripe(0.0)
    assert not run.uncut
    assert run.take(0.0) is None


def test_a_violation_ends_all_cutting() -> None:
    """A run that is stopped has no more windows and waits for none."""
    run = a_run("abcdef", patient(max_chars=1, max_wait_s=1.0))
    run.stop(2)
    assert not run.ripe(9.0)
    assert run.deadline() is None
    assert run.take(9.0) is None
    assert not run.uncut


# What a window shows


def test_a_window_shows_what_is_new_and_the_overlap_before_it() -> None:
    """The last K - 1 characters before it, or as many as there are."""
    run = a_run("ab")
    assert (0, 2, "ab") == _shown(taken(run))
    run.append("cdef", Kind.PLAIN, 0.0)
    assert (0, 6, "abcdef") == _shown(taken(run))
    run.append("gh", Kind.PLAIN, 0.0)
    assert (3, 8, "defgh") == _shown(taken(run))


def test_more_context_is_shown_if_it_is_asked_for_and_never_less_than_the_overlap() -> None:
    """`context_chars` counts from the cut, like the overlap."""
    for context, expected in ((5, "bcdefgh"), (1, "defgh"), (3, "defgh"), (4, "cdefgh")):
        run = a_run("abcdef", patient(context_chars=context))
        taken(run)
        run.append("gh", Kind.PLAIN, 0.0)
        assert expected == taken(run).passage.copy


def test_a_window_ends_at_the_last_sentence_end_if_that_is_long_enough() -> None:
    """What stands behind it goes into the next window; a run that has ended, or is forced, is cut whole."""
    cutting = patient(sentence_chars=3)
    run = a_run("ab.cd。efg", cutting)
    assert (0, 6, "ab.cd。") == _shown(taken(run))
    assert (3, 9, "cd。efg") == _shown(taken(run))
    ended = a_run("ab.cd", cutting)
    ended.finish(0.0)
    assert "ab.cd" == taken(ended).passage.copy
    assert "a.bcd" == taken(a_run("a.bcd", cutting)).passage.copy


def test_no_window_is_longer_than_a_service_takes() -> None:
    """Overlap and context count."""
    run = a_run("a" * 12_000, patient(context_chars=100))
    assert MAX_WINDOW_CHARS - 100 == taken(run).end
    second = taken(run)
    assert (9_800, 12_000) == (second.start, second.end)
    run = a_run("a" * 20_000)
    taken(run)
    assert MAX_WINDOW_CHARS == len(taken(run).passage.copy)


@given(
    pieces=st.lists(st.text("ab.", min_size=1, max_size=9), max_size=12),
    holdback=st.integers(1, 6),
    context=st.integers(0, 9),
    sentence=st.integers(1, 4),
    cuts=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_windows_follow_one_another_without_a_gap(
    pieces: list[str], holdback: int, context: int, sentence: int, cuts: list[bool]
) -> None:
    """Window i is text[e(i-1) - max(K-1, context) : e(i)], and what is cleared is text[: e(i) - (K-1)]."""
    run = a_run(cutting=patient(holdback_chars=holdback, context_chars=context, sentence_chars=sentence))
    text, end = "", 0
    for piece, cut in zip(pieces, cuts, strict=False):
        run.append(piece, Kind.PLAIN, 0.0)
        text += piece
        while cut and (window := run.take(0.0)) is not None:
            start = max(0, end - max(holdback - 1, context))
            assert (start, text[start : window.end]) == (window.start, window.passage.copy)
            assert end < window.end
            end = window.end
            run.passed(window)
            assert max(0, end - (holdback - 1)) == run.horizon


def _shown(window: Window) -> tuple[int, int, str]:
    return window.start, window.end, window.passage.copy


# How far a run is cleared


def test_windows_clear_in_order_whenever_their_verdicts_come() -> None:
    """A later window's pass waits for those before it."""
    run = a_run()
    windows = []
    for piece in ("abcde", "fghij", "klmno"):
        run.append(piece, Kind.PLAIN, 0.0)
        windows.append(taken(run))
    first, second, third = windows
    run.passed(third)
    assert 0 == run.horizon
    run.passed(first)
    assert 5 - 3 == run.horizon
    run.passed(second)
    assert 15 - 3 == run.horizon


def test_all_is_cleared_when_a_run_has_ended_and_its_last_window_has_passed() -> None:
    """At once if nothing new stands in it; not while a window is open or has yet to be cut."""
    run = a_run("abcde")
    window = taken(run)
    run.passed(window)
    run.finish(0.0)
    assert ALL == run.horizon
    run = a_run("abcde")
    window = taken(run)
    run.append("f", Kind.PLAIN, 0.0)
    run.finish(0.0)
    assert 0 == run.horizon
    last = taken(run)
    run.passed(window)
    assert 2 == run.horizon
    run.passed(last)
    assert ALL == run.horizon


def test_nothing_is_cleared_after_a_violation() -> None:
    """And what it would have cleared is taken back; a later violation may take back more, none gives."""
    run = a_run("abcdefgh")
    first = taken(run)
    run.passed(first)
    assert 5 == run.horizon
    run.append("ijkl", Kind.PLAIN, 0.0)
    second = taken(run)
    run.stop(4)
    assert 4 == run.horizon
    run.passed(second)
    run.finish(0.0)
    assert 4 == run.horizon
    run.stop(6)
    assert 4 == run.horizon
    run.stop(1)
    assert 1 == run.horizon


def test_a_surface_that_resumes_is_shown_the_end_of_its_last_run() -> None:
    """Positions go on counting, and that text is context: it is not cleared again."""
    run = a_run("abcdef")
    run.finish(0.0)
    resumed = a_run("gh", resumes=run)
    assert 6 == resumed.horizon
    assert (3, 8, "defgh") == _shown(taken(resumed))
    resumed.append("i", Kind.PLAIN, 0.0)
    resumed.finish(0.0)
    third = a_run("j", resumes=resumed)
    assert (6, 10, "ghij") == _shown(taken(third))
    with_context = a_run("gh", patient(context_chars=5), resumes=a_run("abcdef", patient(context_chars=5)))
    assert "bcdefgh" == taken(with_context).passage.copy


def test_a_run_with_scanners_alone_is_cleared_up_to_what_the_slowest_holds() -> None:
    """And cuts no windows; all is cleared with its end."""
    slow, quick = Holding(3), Holding(1)
    run = Run(0, "content", PATIENT, [slow, quick])
    run.append("ABＣde", Kind.PLAIN, 0.0)
    assert "abcde" == slow.read == quick.read
    assert 2 == run.horizon
    slow.held = 0
    run.append("f", Kind.PLAIN, 0.0)
    assert 5 == run.horizon
    quick.held = 4
    run.append("g", Kind.PLAIN, 0.0)
    assert 5 == run.horizon  # what is cleared stays cleared
    run.finish(0.0)
    assert ALL == run.horizon


@pytest.mark.parametrize("scanners", [1, 2])
def test_what_is_cleared_stays_cleared_and_what_is_stopped_stays_stopped(scanners: int) -> None:
    """Also if a scanner holds more than it has just read."""
    scanner = Holding(1)
    run = Run(0, "content", PATIENT, [scanner] * scanners)
    run.append("abcd", Kind.PLAIN, 0.0)
    assert 3 == run.horizon
    scanner.held = 3
    run.append("e", Kind.PLAIN, 0.0)
    assert 3 == run.horizon
    run.stop(3)
    scanner.held = 0
    run.append("f", Kind.PLAIN, 0.0)
    assert 3 == run.horizon


def test_scanners_and_remote_moderators_both_have_to_clear() -> None:
    """The one that has cleared less counts."""
    scanner = Holding(5)
    run = a_run("abcdefghij", scanners=[scanner])
    run.passed(taken(run))
    assert 5 == run.horizon
    scanner.held = 1
    run.append("k", Kind.PLAIN, 0.0)
    assert 10 - 3 == run.horizon


def test_hits_of_all_scanners_are_told() -> None:
    """As they come and at the end."""
    first, second = Hit(0, 1, "a", "block", "x"), Hit(1, 2, "b", "review", "y")
    run = Run(0, "content", PATIENT, [Holding(0, first), Holding(0), Holding(0, second)])
    assert (first, second) == run.append("ab", Kind.PLAIN, 0.0)
    assert (first, second) == run.finish(0.0)
    assert () == run.finish(0.0)  # only once


# Originals and their copies


def test_what_folds_to_nothing_waits_for_the_character_it_belongs_to() -> None:
    """The frame that ends with it leaves when the next character does."""
    run = a_run()
    for text, needs in (("a\u200b", 2), ("\u0301", 2), ("b", 2), ("\u200b", 3), ("c\u200bd", 4)):
        run.append(text, Kind.PLAIN, 0.0)
        assert needs == run.needs


@pytest.mark.parametrize(
    ("pieces", "evasive"),
    [
        pytest.param(["\u200b" * 64, "a"], False, id="64 are allowed"),
        pytest.param(["\u200b" * 65], True, id="65 are not"),
        pytest.param(["a" + "\u200b" * 65 + "a"], True, id="inside a text"),
        pytest.param(["a" + "\u200b" * 60, "\u200b" * 4, "a"], False, id="64 in pieces"),
        pytest.param(["a" + "\u200b" * 60, "\u200b" * 5], True, id="65 in pieces"),
        pytest.param(["a" + "\u200b" * 40, "\u200b" * 24 + "a", "\u200b" * 64 + "a"], False, id="each row by itself"),
        pytest.param(["\u200b" * 60, "\u200b", "\u200b", "\u200b", "\u200b", "\u200b"], True, id="one by one"),
        pytest.param(["\u200b" * 40 + "a" + "\u200b" * 40], False, id="two rows in one text"),
        pytest.param(["a\u200b" * 100], False, id="many short rows"),
        pytest.param(["\u200b" * 40 + "a", "\u200b" * 40 + "a"], False, id="a row that a character ended"),
    ],
)
def test_a_row_of_nothings_that_is_too_long_is_noticed(pieces: list[str], evasive: bool) -> None:
    """More than 64 originals in a row that fold to nothing, however they are cut."""
    assert 64 == MAX_NOTHING
    run = a_run()
    for piece in pieces:
        run.append(piece, Kind.PLAIN, 0.0)
    assert evasive is (run.evasion is not None)


def test_halves_of_a_pair_in_two_pieces_are_one_character() -> None:
    """The frame with the first half waits for the second; without it the half is no character."""
    run = a_run()
    run.append("a\ud835", Kind.PLAIN, 0.0, lenient=True)
    assert (1, 2) == (run.end, run.needs)
    run.append("\udc1a", Kind.PLAIN, 0.0, lenient=True)
    assert (2, 2) == (run.end, run.needs)
    assert "aa" == taken(run).passage.copy  # 𝐚 is an a
    run.append("\ud835", Kind.PLAIN, 0.0, lenient=True)
    run.append("b", Kind.PLAIN, 0.0)
    run.append("\ud835", Kind.PLAIN, 0.0, lenient=True)
    run.finish(0.0)
    assert "aa\ufffdb\ufffd" == taken(run).passage.copy


def test_the_escapes_in_a_tools_arguments_are_decoded() -> None:
    """However they are cut; the name is a line of its own; the frame with half an escape waits for the rest."""
    run = a_run()
    run.append("get_", Kind.NAME, 0.0)
    run.append("weather", Kind.NAME, 0.0)
    run.append('{"\\u4f', Kind.ESCAPED, 0.0)
    assert run.needs == run.end + 1
    run.append("60\\ud835", Kind.ESCAPED, 0.0)
    run.append("\\udc1a", Kind.ESCAPED, 0.0)
    assert run.needs == run.end
    run.append("\\", Kind.ESCAPED, 0.0)
    run.finish(0.0)
    assert 'get_weather\n{"你a\\' == taken(run).passage.copy


def test_escapes_in_any_other_text_are_no_escapes() -> None:
    """A reader is shown them as they stand, and nothing waits for their rest."""
    run = a_run("\\u4f60\\")
    assert run.needs == run.end
    assert "\\u4f60\\" == taken(run).passage.copy


def test_a_half_that_an_escape_spells_meets_one_that_a_chunk_brings() -> None:
    """Both kinds of halves are joined at the end of a run too."""
    run = a_run()
    run.append("\\ud835", Kind.ESCAPED, 0.0)
    run.append("\udc1a\ud835\\u", Kind.ESCAPED, 0.0, lenient=True)
    run.finish(0.0)
    assert "a\ufffd\\u" == taken(run).passage.copy


def test_what_is_cut_between_two_runs_is_joined_in_the_second() -> None:
    """Half an escape and half a pair; they do not keep back the run that ended."""
    run = a_run()
    run.append("a\\u4f", Kind.ESCAPED, 0.0)
    run.finish(0.0, resumable=True)
    run.passed(taken(run))
    assert ALL == run.horizon
    resumed = a_run(resumes=run)
    resumed.append("60\ud835", Kind.ESCAPED, 0.0, lenient=True)
    resumed.finish(0.0, resumable=True)
    last = a_run(resumes=resumed)
    last.append("\udc1a", Kind.ESCAPED, 0.0, lenient=True)
    assert "a你a" == taken(last).passage.copy


def test_a_run_knows_when_a_tools_arguments_have_begun() -> None:
    """Its name is what came before; both hold for the runs that resume it."""
    run = a_run()
    run.append("get_", Kind.NAME, 0.0)
    run.append("weather", Kind.NAME, 0.0)
    assert ("get_weather", False) == (run.name, run.arguing)
    assert not a_run(resumes=run).arguing
    run.append("{", Kind.ESCAPED, 0.0)
    assert run.arguing
    resumed = a_run(resumes=run)
    assert ("get_weather", True) == (resumed.name, resumed.arguing)
    assert ("", False) == (a_run().name, a_run().arguing)


@pytest.mark.parametrize(
    ("surface", "beside"),
    [("content", False), ("tool_calls.0", False), ("?vendor.note", True), ("logprobs.content", True)],
)
def test_unknown_fields_and_logprobs_stand_beside_the_text(surface: str, beside: bool) -> None:
    """They come and go while the text goes on."""
    assert beside is Run(0, surface, PATIENT).beside
