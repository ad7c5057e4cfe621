"""The bus of events: what is said on it, who hears it, and what of it is lost."""

import asyncio
import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import forwarding
from relay.control import TO_SUPERVISOR, News
from relay.events import FIELDS, FILTERS, KEPT, KINDS, MAX_LISTENERS, NOWHERE, Event, Events, Filter, plain
from relay.forwarding import MAX_BACKLOG_BYTES, MOST, Forwarding
from relay.secret import Secret

ROOT = Path(__file__).parents[2]
AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def read(written):
    """(id, kind, data) of each event."""
    events = []
    for block in written:
        found = re.fullmatch(rb"id: (\S+)\nevent: (\S+)\ndata: (.*)\n\n", block)
        data = json.loads(found[3])
        assert AT.fullmatch(data.pop("at"))
        events.append((found[1].decode(), found[2].decode(), data))
    return events


def said(written):
    return [(kind, data) for _, kind, data in read(written)]


@pytest.fixture
def events():
    return Events()


class TestListening:
    async def test_what_is_published_is_heard(self, events):
        """By all, each once, in order, with ids that count."""
        with events.listen(Filter()) as one, events.listen(Filter()) as other:
            events.publish("start", workers=1)
            events.publish("ejection", upstream="u", reason="heads")
            for listener in (one, other):
                heard = read(listener.news())
                assert [("start", {"workers": 1}), ("ejection", {"upstream": "u", "reason": "heads"})] == [
                    (kind, data) for _, kind, data in heard
                ]
                epoch, _, number = heard[0][0].partition("-")
                assert [f"{epoch}-{number}", f"{epoch}-{int(number) + 1}"] == [each[0] for each in heard]
                assert [] == listener.news()

    async def test_what_was_before_is_not(self, events):
        """Unless it is asked for."""
        events.publish("start", workers=1)
        events.publish("drain", grace_s=1)
        with events.listen(Filter()) as listener:
            assert [] == listener.news()
        with events.listen(Filter(), last=1) as listener:
            assert [("drain", {"grace_s": 1})] == said(listener.news())
        with events.listen(Filter(frozenset({"start"})), last=9) as listener:
            assert [("start", {"workers": 1})] == said(listener.news())

    async def test_waiting(self, events):
        """Ends when something comes that is wanted, and not for what is not."""
        with events.listen(Filter(frozenset({"cut"}))) as listener:
            listener.news()
            waiting = asyncio.create_task(listener.wait(60))
            await asyncio.sleep(0)
            events.publish("refusal", code="a")
            await asyncio.sleep(0)
            assert not waiting.done()
            events.publish("cut", code="b")
            await waiting
            assert [("cut", {"code": "b"})] == said(listener.news())
            await listener.wait(0.001)
            assert [] == listener.news()

    async def test_the_end(self, events):
        """Wakes who waits; what was said last is still to be had."""
        with events.listen(Filter()) as listener:
            listener.news()
            waiting = asyncio.create_task(listener.wait(60))
            await asyncio.sleep(0)
            events.publish("drain", grace_s=1)
            events.close()
            await waiting
            assert listener.over
            assert ["drain"] == [kind for kind, _ in said(listener.news())]
            await listener.wait(60)

    async def test_so_many_may_listen(self, events):
        """And when one has gone another may."""
        listening = [events.listen(Filter()) for _ in range(MAX_LISTENERS)]
        for each in listening:
            assert not events.full
            each.__enter__()
        assert events.full
        listening[0].__exit__(None, None, None)
        assert not events.full

    async def test_a_slow_one_loses_the_oldest_and_is_told_how_many(self, events):
        """Of the kind that there were too many of; its place is the one before what follows."""
        with events.listen(Filter()) as listener:
            events.publish("ejection", upstream="u", reason="heads")
            position = listener.position
            for number in range(KEPT + 7):
                events.publish("refusal", status=number)
            heard = read(listener.news())
            assert (position, "missed", {"count": 7, "reason": "late"}) == heard[0]
            assert "ejection" == heard[1][1]
            assert list(range(7, KEPT + 7)) == [data["status"] for _, _, data in heard[2:]]

    async def test_who_does_not_want_the_flood_loses_nothing(self, events):
        """And is told of nothing."""
        with events.listen(Filter(frozenset({"ejection"}))) as listener:
            for number in range(3 * KEPT):
                events.publish("refusal", status=number)
            events.publish("ejection", upstream="u", reason="slow")
            assert ["ejection"] == [kind for kind, _ in said(listener.news())]


class TestResuming:
    async def test_with_the_last_id(self, events):
        """What has come since, and nothing twice."""
        with events.listen(Filter()) as listener:
            for number in range(3):
                events.publish("refusal", status=number)
            ids = [each[0] for each in read(listener.news())]
        for position, last in enumerate(ids):
            with events.listen(Filter(), after=last) as listener:
                assert list(range(position + 1, 3)) == [data["status"] for _, data in said(listener.news())]

    async def test_with_the_position(self, events):
        """Which moves on with what is not wanted, so that a flood of that is not told as missed."""
        wanted = Filter(fields={"model": "m"})
        with events.listen(wanted) as listener:
            for number in range(2 * KEPT):
                events.publish("refusal", status=number)
            assert ["missed"] == [kind for kind, _ in said(listener.news())]  # one of those may have been wanted
            position = listener.position
        with events.listen(wanted, after=position) as listener:
            assert [] == listener.news()

    async def test_with_one_that_is_too_old(self, events):
        """What is gone is counted, what is kept is told."""
        with events.listen(Filter()) as listener:
            first = listener.position
        for number in range(KEPT + 3):
            events.publish("cut", status=number)
        with events.listen(Filter(), after=first) as listener:
            heard = said(listener.news())
            assert ("missed", {"count": 3, "reason": "late"}) == heard[0]
            assert KEPT == len(heard) - 1

    @pytest.mark.parametrize("last", ["00000000-1", "nonsense", "5", "-", "a" * 10_000, "é", "0-0\n"])
    async def test_with_one_of_another_life(self, events, last):
        """All that is kept, after an event that says so; and whoever breaks off then is not told so again."""
        events.publish("start", workers=1)
        with events.listen(Filter(frozenset({"start"})), after=last) as listener:
            (position, kind, data), *others = read(listener.news())
            assert ("missed", {"reason": "restarted"}) == (kind, data)
            assert ["start"] == [kind for _, kind, _ in others]
        with events.listen(Filter(), after=position) as listener:
            assert ["start"] == [kind for kind, _ in said(listener.news())]

    async def test_with_one_that_was_not_yet(self, events):
        """Nothing is told twice, and nothing is lost."""
        with events.listen(Filter()) as listener:
            epoch = listener.position.partition("-")[0]
        with events.listen(Filter(), after=f"{epoch}-99") as listener:
            events.publish("cut", status=1)
            assert ["cut"] == [kind for kind, _ in said(listener.news())]


class TestFilter:
    @pytest.mark.parametrize(
        ("wanted", "passes"),
        [
            (Filter(), ["cut", "refusal", "ejection"]),
            (Filter(frozenset({"cut", "ejection"})), ["cut", "ejection"]),
            (Filter(fields={"upstream": "a"}), ["cut", "ejection"]),
            (Filter(fields={"upstream": "a", "model": "m"}), ["cut"]),
            (Filter(frozenset({"refusal"}), {"model": "m"}), []),
            (Filter(fields={"caller": "ann"}), ["refusal"]),
        ],
    )
    async def test_what_passes(self, events, wanted, passes):
        """All of it holds together; a field that is not there is not the one that is wanted."""
        with events.listen(wanted) as listener:
            events.publish("cut", model="m", upstream="a")
            events.publish("refusal", model="n", caller="ann")
            events.publish("ejection", upstream="a")
            assert passes == [kind for kind, _ in said(listener.news())]

    async def test_what_was_missed_passes_always(self, events):
        """Who misses events has to know."""
        with events.listen(Filter(frozenset({"cut"}), {"model": "m"})) as listener:
            events.publish("missed", count=4, reason="flood", worker=1)
            assert [("missed", {"count": 4, "reason": "flood", "worker": 1})] == said(listener.news())


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
    max_leaves=5,
)


class TestPublishing:
    @given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), ANY))
    def test_it_takes_anything(self, fields):
        """And says what JSON can say of it, in bounds; also on its way from a worker."""
        del_at = {name: value for name, value in fields.items() if name != "at"}
        events = Events()
        with events.listen(Filter()) as listener:
            events.publish("cut", **del_at)
            [block] = listener.news()
            assert len(block) < 500 * 6 * (len(del_at) + 1) + 200
            assert b"\n" not in block[:-2].partition(b"\ndata: ")[2]
            [(_, _, data)] = read([block])
            assert set(data) == {name for name, value in del_at.items() if value is not None}
        news = News((Event(0.0, "cut", plain(del_at)),))
        told = TO_SUPERVISOR.decode(msgspec.json.encode(news))
        assert set(told.events[0].fields) == set(data)

    def test_what_is_no_plain_data_is_named_and_not_shown(self):
        """A secret handed over by mistake shows nothing of itself."""
        shown = plain({"code": Secret("sk-canary"), "label": b"sk-canary", "caller": ["sk-canary"], "model": None})
        assert {"code": "<Secret>", "label": "<bytes>", "caller": "<list>"} == shown

    def test_long_texts_are_cut(self):
        assert 500 == len(plain({"model": "m" * 10**6})["model"])

    def test_a_kind_that_is_none(self):
        """Nothing happens, least of all an exception."""
        events = Events()
        with events.listen(Filter()) as listener:
            events.publish("nonsense", code="x")
            assert [] == listener.news()
        NOWHERE.publish("cut", code="x")


class TestForwarding:
    @pytest.fixture
    def sent(self):
        return []

    @pytest.fixture
    def waits(self):
        return [0]

    @pytest.fixture
    async def way(self, sent, waits):
        return Forwarding(lambda news: sent.append(news.events), lambda: waits[0])

    async def test_what_is_published_in_one_span_goes_together(self, way, sent, monkeypatch):
        """By itself, soon; and when nothing is published nothing is done."""
        monkeypatch.setattr(forwarding, "SPAN_S", 0.001)
        way.publish("cut", code="a", model=None)
        way.publish("refusal", code="b")
        assert [] == sent
        async with asyncio.timeout(10):
            while not sent:
                await asyncio.sleep(0.001)
        [events] = sent
        assert [("cut", {"code": "a"}), ("refusal", {"code": "b"})] == [each[1:] for each in events]
        assert way._timer is None

    async def test_a_flood_is_cut(self, way, sent):
        """Of each kind for itself, and what does not go is told; the next span is another one."""
        for number in range(MOST + 30):
            way.publish("refusal", status=number)
        way.publish("ejection", upstream="u")
        way.flush()
        way.publish("refusal", status=-1)
        way.flush()
        way.flush()
        first, second = sent
        assert list(range(MOST)) == [each.fields["status"] for each in first[:MOST]]
        assert [("ejection", {"upstream": "u"}), ("missed", {"count": 30, "reason": "flood"})] == [
            each[1:] for each in first[MOST:]
        ]
        assert [{"status": -1}] == [each.fields for each in second]

    async def test_a_supervisor_that_does_not_read(self, way, sent, waits):
        """Costs no memory, and hears how much it has missed."""
        waits[0] = MAX_BACKLOG_BYTES + 1
        for _ in range(5):
            way.publish("cut", code="a")
            way.flush()
        assert [] == sent
        waits[0] = 0
        way.publish("cut", code="b")
        way.flush()
        assert way._timer is None
        assert [[("cut", {"code": "b"}), ("missed", {"count": 5, "reason": "flood"})]] == [
            [each[1:] for each in events] for events in sent
        ]

    async def test_the_last_loss_is_told_too(self, way, sent, waits, monkeypatch):
        """Also if nothing happens any more."""
        monkeypatch.setattr(forwarding, "SPAN_S", 0.001)
        waits[0] = MAX_BACKLOG_BYTES + 1
        way.publish("cut", code="a")
        way.flush()
        waits[0] = 0
        async with asyncio.timeout(10):
            while not sent:
                await asyncio.sleep(0.001)
        assert [[("missed", {"count": 1, "reason": "flood"})]] == [[each[1:] for each in events] for events in sent]
        assert way._timer is None


class TestTheReference:
    def test_every_field_has_its_meaning(self):
        """And every meaning its field."""
        named = {name for meaning in KINDS.values() for name in meaning.fields}
        assert named | {"at", "worker"} == set(FIELDS)
        assert named.issuperset(FILTERS)

    def test_the_page_says_the_same(self):
        """docs/events.md: each kind with its meaning and fields, each field with its meaning; and the numbers."""
        page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:3] == "| `"
        ]
        kinds = [
            [f"`{kind}`", meaning.text, ", ".join(f"`{name}`" for name in meaning.fields)]
            for kind, meaning in KINDS.items()
        ]
        fields = [[f"`{name}`", text] for name, text in FIELDS.items()]
        assert kinds == [row for row in rows if len(row) == 3]
        assert fields == [row for row in rows if len(row) == 2]
        assert f"{KEPT} of each kind" in page
        assert f"{MAX_LISTENERS} clients" in page
