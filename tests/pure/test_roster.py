"""The roster: from any workers to the wanted ones, and never fewer that serve on the way."""

from hypothesis import given
from hypothesis import strategies as st

from relay.pure.roster import Member, Plan, free_number, outstayed, plan, wait_s

STATES = ("starting", "serving", "leaving")


@st.composite
def rosters(draw):
    numbers = draw(st.lists(st.integers(0, 20), unique=True, max_size=8))
    return [Member(number, draw(st.integers(0, 2)), draw(st.sampled_from(STATES))) for number in numbers]


def carried_out(members, told, generation):
    """The members when the plan has been acted on: who starts is starting, who is dismissed leaves."""
    members = [
        member._replace(state="leaving") if member.number in told.dismiss else member
        for member in members
        if not (member.number in told.dismiss and member.state == "starting")
    ]
    for _ in range(told.start):
        members.append(Member(free_number(members), generation, "starting"))
    return members


def serving(members):
    return sum(member.state == "serving" for member in members)


@given(rosters(), st.integers(1, 5))
def test_a_plan_takes_nobody_away_who_is_needed(members, wanted):
    """Of those that serve as many stay as are wanted, or all of them; who is dismissed had not been told before."""
    told = plan(members, 2, wanted)
    assert min(wanted, serving(members)) <= serving(carried_out(members, told, 2))
    assert set(told.dismiss) <= {member.number for member in members if member.state != "leaving"}
    assert len(set(told.dismiss)) == len(told.dismiss)


@given(rosters(), st.integers(1, 5), st.data())
def test_it_comes_to_an_end(members, wanted, data):
    """Whichever worker starts or ends next: as many of the wanted generation serve in the end as are wanted, and no others."""
    for _ in range(200):
        members = carried_out(members, plan(members, 2, wanted), 2)
        before = serving(members)
        moving = [member for member in members if member.state != "serving"]
        if not moving:
            break
        chosen = data.draw(st.sampled_from(moving))
        members.remove(chosen)
        if chosen.state == "starting":
            members.append(chosen._replace(state="serving"))
        assert min(before, wanted) <= serving(members)
        assert [m for m in members if m.generation != 2 and m.state == "starting"] == []
    assert [2] * wanted == [member.generation for member in members]
    assert Plan() == plan(members, 2, wanted)


def test_one_by_one():
    """While there are old ones to replace, one new one is started at a time."""
    old = [Member(number, 0, "serving") for number in range(3)]
    assert Plan(1) == plan(old, 1, 3)
    assert Plan() == plan([*old, Member(3, 1, "starting")], 1, 3)
    assert Plan(1, (0,)) == plan([*old, Member(3, 1, "serving")], 1, 3)


@given(rosters())
def test_a_free_number_is_the_lowest(members):
    """All below it are taken."""
    taken = {member.number for member in members}
    free = free_number(members)
    assert free not in taken
    assert set(range(free)) <= taken


@given(st.integers(0, 10_000))
def test_the_wait_grows_to_a_bound(deaths):
    """The first death is followed at once; then each wait is as long as the one before, or longer."""
    assert 0.0 == wait_s(1, 0.2, 10.0)
    assert wait_s(deaths, 0.2, 10.0) <= wait_s(deaths + 1, 0.2, 10.0) <= 10.0


def test_who_has_outstayed():
    """Whoever leaves and is not of the latest four reloads, however many those are of each."""
    leaving = [Member(number, number // 3, "leaving") for number in range(18)]
    assert outstayed(leaving) == [0, 1, 2, 3, 4, 5]
    assert outstayed([*leaving[6:], Member(20, 0, "serving")]) == []
    assert outstayed([]) == []
