import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.labels import LabelPolicy, Thresholds, strictest
from relay.moderator import PASS, Finding, Verdict
from relay.pure.ruling import STRICTNESS, Action, Ruling, Span

HERE = Span(2, 4, "ab")
THERE = Span(0, 1)
PLAIN = LabelPolicy()
ACTIONS = st.sampled_from(list(STRICTNESS))
LABELS = st.sampled_from(["", "Porn", "Ad"])
SCORES = st.integers(0, 100)
SPANS = st.lists(st.builds(Span, st.integers(0, 5), st.integers(6, 9)), max_size=2).map(tuple)
FINDINGS = st.lists(st.builds(Finding, ACTIONS, LABELS, SCORES, SPANS), max_size=4).map(tuple)
VERDICTS = st.builds(Verdict, ACTIONS, LABELS, SCORES, FINDINGS, st.just("id-1"))
LEVELS = st.integers(0, 101)
POLICIES = st.builds(
    LabelPolicy,
    st.dictionaries(LABELS, st.builds(Thresholds, LEVELS, LEVELS, LEVELS)),
    st.sampled_from(["pass", "block"]),
)


def action(verdict: Verdict, policy: LabelPolicy = PLAIN) -> Action:
    return policy.rule(verdict, "m").action


def test_what_a_moderator_suggests() -> None:
    """Without a policy it is what is done, with its reasons."""
    assert Ruling("pass", "", 0, "m", "") == PLAIN.rule(PASS, "m")
    verdict = Verdict("block", "Porn", 90, reference="id-1")
    assert Ruling("block", "Porn", 90, "m", "id-1") == PLAIN.rule(verdict, "m")


@pytest.mark.parametrize(
    ("score", "expected"), [(0, "pass"), (49, "pass"), (50, "review"), (69, "review"), (70, "mask"), (80, "block")]
)
def test_thresholds(score: int, expected: Action) -> None:
    """Each is the score from which it holds; the strictest that does counts."""
    assert expected == Thresholds(block=80, mask=70, review=50).action(score)


def test_a_label_of_the_policy_replaces_the_suggestion() -> None:
    """To either side; another label keeps it."""
    policy = LabelPolicy({"Porn": Thresholds(block=80, review=50)})
    assert "block" == action(Verdict("pass", "Porn", 80), policy)
    assert "review" == action(Verdict("block", "Porn", 79), policy)
    assert "pass" == action(Verdict("block", "Porn", 20), policy)
    assert "block" == action(Verdict("block", "Ad", 20), policy)


def test_a_label_that_never_matters() -> None:
    policy = LabelPolicy({"Ad": Thresholds()})
    assert "pass" == action(Verdict("block", "Ad", 100, (Finding("block", "Ad", 100),)), policy)


def test_every_finding_counts() -> None:
    """The verdict names one label only; what it found beside that may be worse."""
    verdict = Verdict("review", "Ad", 60, (Finding("review", "Ad", 60), Finding("pass", "Abuse", 88)))
    assert Ruling("review", "Ad", 60, "m") == PLAIN.rule(verdict, "m")
    strict = LabelPolicy({"Abuse": Thresholds(block=80)})
    assert Ruling("block", "Abuse", 88, "m") == strict.rule(verdict, "m")


def test_the_verdict_counts_too() -> None:
    """Its findings need not say all."""
    assert "block" == action(Verdict("block", "Porn", 90, (Finding("pass", "Ad", 10),)))


def test_a_reason_has_a_name() -> None:
    """Of two that are as strict, the one with a label is told."""
    verdict = Verdict("block", "", 0, (Finding("block", "Porn", 90), Finding("block", "Ad", 99)), "id-1")
    assert Ruling("block", "Porn", 90, "m", "id-1") == PLAIN.rule(verdict, "m")


def test_reviews() -> None:
    """They pass or block, as the operator says, and then are stricter than a mask."""
    policy = LabelPolicy(on_review="block")
    assert "review" == action(Verdict("review"))
    assert "block" == action(Verdict("review"), policy)
    assert "block" == action(Verdict("mask", "", 0, (Finding("mask", spans=(HERE,)), Finding("review"))), policy)


def test_masks() -> None:
    """All places of all findings that are masked, in order; not those of what passes."""
    findings = (
        Finding("mask", "Ad", 60, (HERE,)),
        Finding("mask", "Abuse", 60, (THERE, HERE)),
        Finding("pass", "Other", 60, (Span(7, 8),)),
    )
    verdict = Verdict("mask", "Ad", 60, findings, "id-1")
    assert Ruling("mask", "Ad", 60, "m", "id-1", (THERE, HERE)) == PLAIN.rule(verdict, "m")


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict("mask", "Ad"),
        Verdict("mask", "Ad", 0, (Finding("mask", "Ad"),)),
        Verdict("mask", "Ad", 0, (Finding("mask", "Ad", spans=(HERE,)), Finding("mask", "Ad"))),
        Verdict("mask", "Ad", 0, (Finding("pass", "Abuse", spans=(HERE,)),)),
        Verdict("mask", "Ad", 0, (Finding("mask", "Abuse", spans=(HERE,)), Finding("mask", "Ad"))),
    ],
)
def test_a_mask_without_a_place_blocks(verdict: Verdict) -> None:
    assert "block" == action(verdict)


def test_a_mask_by_the_policy() -> None:
    """The verdict's own place is that of the findings with its label."""
    policy = LabelPolicy({"Ad": Thresholds(mask=50)})
    named = Verdict("pass", "Ad", 60, (Finding("pass", "Ad", 60, (HERE,)), Finding("mask", "Abuse", 60, (THERE,))))
    assert Ruling("mask", "Ad", 60, "m", "", (THERE, HERE)) == policy.rule(named, "m")
    elsewhere = Verdict("pass", "Ad", 60, (Finding("mask", "Abuse", 60, (THERE,)),))
    assert "block" == action(elsewhere, policy)


def test_a_verdict_that_sums_up() -> None:
    """A mask under a name of its own means what it wants masked."""
    verdict = Verdict("mask", "Keyword", 0, (Finding("mask", "Ad", 60, (HERE,)),))
    assert Ruling("mask", "Keyword", 0, "m", "", (HERE,)) == PLAIN.rule(verdict, "m")


def test_the_strictest_of_several() -> None:
    """The first of those that are as strict; the masks of all."""
    passing, review = Ruling("pass", moderator="a"), Ruling("review", "Ad", 50, "b")
    one, two = Ruling("mask", "Ad", 60, "c", "id", (HERE,)), Ruling("mask", "Porn", 99, "d", "di", (THERE, HERE))
    block = Ruling("block", "Porn", 90, "e")
    assert review == strictest([passing, review])
    assert Ruling("mask", "Ad", 60, "c", "id", (THERE, HERE)) == strictest([passing, one, two, review])
    assert block == strictest([one, block, two])
    assert Ruling("pass") == strictest([])


@given(VERDICTS, POLICIES)
def test_nothing_is_weaker_than_any_of_its_parts(verdict: Verdict, policy: LabelPolicy) -> None:
    """Whatever a moderator says and an operator wants."""
    ruling = policy.rule(verdict, "m")

    def wanted(said: Verdict | Finding) -> Action:
        thresholds = policy.thresholds.get(said.label)
        alone = said.action if thresholds is None else thresholds.action(said.score)
        return "block" if alone == "review" and policy.on_review == "block" else alone

    parts = [wanted(verdict), *map(wanted, verdict.findings)]
    assert STRICTNESS[ruling.action] >= max(STRICTNESS[part] for part in parts)
    assert "id-1" == ruling.reference
    if ruling.action == "mask":
        places = {span for each in verdict.findings if wanted(each) == "mask" for span in each.spans}
        assert places <= set(ruling.masks)
        assert ruling.masks
    else:
        assert not ruling.masks
        assert ruling.action in parts or "mask" in parts


def test_no_score_is_no_low_score() -> None:
    """A moderator that gives none is taken at its word, whatever the thresholds of the label."""
    policy = LabelPolicy({"Ad": Thresholds(block=60)})
    assert policy.rule(Verdict("block", "Ad"), "a").action == "block"
    assert policy.rule(Verdict("pass", findings=(Finding("review", "Ad"),)), "a").action == "review"
    assert policy.rule(Verdict("block", "Ad", 0), "a").action == "pass"
