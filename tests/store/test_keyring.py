"""Keys in a real store: what a change leaves, what it tells others, and that two at the same time lose nothing."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.audit import AuditLog
from relay.errors import Reject
from relay.keyring import MAX_SECRETS, Keyring, digest, is_issued, version_key
from relay.keys import MAX_LABELS, KeyChange, Limits, LimitsChange, NewKey
from relay.store.port import Script

WHO = "cli:tester"
SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


@pytest.fixture
async def store(another):
    return await another()


@pytest.fixture
def keyring(store):
    return Keyring(store)


def everything(client):
    """Every byte that the server holds."""
    return b"".join(client.dump(name) + name for name in client.scan_iter())


async def found(keyring, issued):
    return (await keyring.find(digest(issued.secret.reveal()))).admitted


async def code_of(work):
    with pytest.raises(Reject) as caught:
        await work
    return caught.value.code


async def test_a_new_key_is_found_by_its_secret(keyring):
    """With all that was said of it; the secret is as long and as random as promised."""
    limits = Limits(requests_per_minute=10, tokens_per_minute=2**53 - 1)
    new = NewKey(name="ann", models=("gpt-4", "gpt-3"), limits=limits, labels={"team": "shop"}, expires_at=SOON)
    issued = await keyring.create(new, WHO)
    assert is_issued(issued.secret.reveal())
    admitted = await found(keyring, issued)
    assert ("ann", ("gpt-4", "gpt-3"), limits, {"team": "shop"}) == (
        admitted.key.name,
        admitted.key.models,
        admitted.key.limits,
        admitted.key.labels,
    )
    assert (False, SOON.timestamp()) == (admitted.disabled, admitted.ends)
    assert issued.key == await keyring.show("ann")
    assert ("active", SOON, 1) == (issued.key.state, issued.key.expires_at, len(issued.key.secrets))


async def test_the_secret_is_nowhere_in_the_store(keyring, outside):
    """Neither whole nor its middle: its digest is, and a head and a tail that are also shown of a wrong one."""
    issued = await keyring.create(NewKey(name="ann"), WHO)
    rotated = await keyring.rotate("ann", 60, WHO)
    held = everything(outside)
    for secret in (issued.secret.reveal(), rotated.secret.reveal()):
        assert secret.encode() not in held
        assert secret[8:-4].encode() not in held
        assert secret[8:-4] not in repr(issued) + repr(rotated)
        assert digest(secret).hex().encode() in held


async def test_secrets_differ(keyring):
    """Each is its own."""
    issued = [await keyring.create(NewKey(name=f"k{number}"), WHO) for number in range(20)]
    assert 20 == len({one.secret.reveal() for one in issued})


@pytest.mark.parametrize("secret", ["", "sk-", "sk-" + "x" * 42, "sk-" + "x" * 44, "sk-" + "ä" * 43, "x" * 60_000])
def test_what_was_never_issued(secret):
    """It is seen at once that no store has it."""
    assert not is_issued(secret)


async def test_an_unknown_secret(keyring):
    """Nothing is found, and the version is told."""
    assert (0, None) == (await keyring.find(digest("sk-none")))[::2]


async def test_a_name_is_taken_once(keyring):
    """A second key of that name is refused, the first one works on."""
    issued = await keyring.create(NewKey(name="ann"), WHO)
    assert "key_exists" == await code_of(keyring.create(NewKey(name="ann"), WHO))
    assert "ann" == (await found(keyring, issued)).key.name


async def test_one_of_many_at_the_same_time_gets_the_name(keyring):
    """And nothing of the others is left."""
    made = await asyncio.gather(*(keyring.create(NewKey(name="ann"), WHO) for _ in range(20)), return_exceptions=True)
    assert 1 == sum(not isinstance(one, Reject) for one in made)
    assert 1 == len((await keyring.show("ann")).secrets)


@pytest.mark.parametrize("act", ["show", "change", "rotate", "delete"])
async def test_an_unknown_name_is_told_with_the_one_meant(keyring, act):
    """404, with a suggestion where one is near."""
    await keyring.create(NewKey(name="shop-frontend"), WHO)
    work = {
        "show": keyring.show,
        "change": lambda name: keyring.change(name, KeyChange(disabled=True), WHO),
        "rotate": lambda name: keyring.rotate(name, 0, WHO),
        "delete": lambda name: keyring.delete(name, WHO),
    }[act]
    with pytest.raises(Reject, match=r"did you mean 'shop-frontend'\?") as caught:
        await work("shop-fronted")
    assert (404, "key_not_found") == (caught.value.status, caught.value.code)
    with pytest.raises(Reject, match="relay keys list"):
        await work("zzz")


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x00", "\u202eabc", " a", "a ", ".", "..", "a\u200b"])
def test_names_that_are_none(name):
    """They would spoil a path, a table or a terminal."""
    with pytest.raises(ValueError, match="a name"):
        NewKey(name=name)


async def test_changes_are_by_field(keyring):
    """What is not named stays; null takes away; limits and labels change one by one."""
    new = NewKey(name="ann", models=("a",), limits=Limits(burst=5, requests_per_minute=7), labels={"x": "1", "y": "2"})
    issued = await keyring.create(new, WHO)
    change = KeyChange(
        disabled=True,
        expires_at=SOON,
        limits=LimitsChange(burst=None, concurrent_streams=3),
        labels={"x": None, "z": "3"},
    )
    view = await keyring.change("ann", change, WHO)
    assert ("disabled", SOON, ("a",)) == (view.state, view.expires_at, view.models)
    assert Limits(requests_per_minute=7, concurrent_streams=3) == view.limits
    assert {"y": "2", "z": "3"} == view.labels
    assert (await found(keyring, issued)).disabled
    view = await keyring.change(
        "ann", KeyChange(disabled=False, expires_at=None, models=None, limits=None, labels=None), WHO
    )
    assert ("active", None, None, Limits(), {}) == (view.state, view.expires_at, view.models, view.limits, view.labels)


async def test_changes_at_the_same_time_lose_nothing(keyring):
    """Thirty-two operators each set one label, while others set limits and the end."""
    await keyring.create(NewKey(name="ann"), WHO)
    labels = [KeyChange(labels={f"l{number}": "x"}) for number in range(MAX_LABELS)]
    others = [KeyChange(limits=LimitsChange(burst=4)), KeyChange(limits=LimitsChange(concurrent_streams=5))]
    await asyncio.gather(
        *(keyring.change("ann", change, WHO) for change in [*labels, *others, KeyChange(expires_at=SOON)])
    )
    view = await keyring.show("ann")
    assert (MAX_LABELS, Limits(burst=4, concurrent_streams=5), SOON) == (len(view.labels), view.limits, view.expires_at)
    assert "too_many_labels" == await code_of(keyring.change("ann", KeyChange(labels={"one more": "x"}), WHO))
    assert MAX_LABELS == len((await keyring.show("ann")).labels)


async def test_rotation_overlaps(keyring):
    """Both secrets work; the old one says when it ends, by the server's clock."""
    old = await keyring.create(NewKey(name="ann"), WHO)
    new = await keyring.rotate("ann", 100, WHO)
    assert (await found(keyring, new)).ends is None
    before = await keyring.find(digest(old.secret.reveal()))
    assert before.now + 90 < before.admitted.ends <= before.now + 100
    assert [None, True] == [secret.ends_at and True for secret in new.key.secrets]
    assert ["ann", "ann"] == [(await found(keyring, one)).key.name for one in (old, new)]


async def test_a_later_rotation_gives_no_old_secret_more_time(keyring):
    """An end that was said before stays; a nearer one takes its place."""
    old = await keyring.create(NewKey(name="ann"), WHO)
    await keyring.rotate("ann", 100, WHO)
    was = (await found(keyring, old)).ends
    await keyring.rotate("ann", 10_000, WHO)
    assert was == (await found(keyring, old)).ends
    await keyring.rotate("ann", 10, WHO)
    assert was > (await found(keyring, old)).ends


async def test_rotation_without_overlap(keyring):
    """All old secrets are gone at once."""
    olds = [await keyring.create(NewKey(name="ann"), WHO), await keyring.rotate("ann", 100, WHO)]
    new = await keyring.rotate("ann", 0, WHO)
    assert [None, None] == [await found(keyring, old) for old in olds]
    assert 1 == len(new.key.secrets)
    assert (await found(keyring, new)) is not None


async def test_secrets_of_a_key_are_bounded(keyring):
    """One more that overlaps is refused, and changes nothing; without overlap there is room."""
    await keyring.create(NewKey(name="ann"), WHO)
    for _ in range(MAX_SECRETS - 1):
        await keyring.rotate("ann", 1000, WHO)
    assert "too_many_secrets" == await code_of(keyring.rotate("ann", 1000, WHO))
    assert MAX_SECRETS == len((await keyring.show("ann")).secrets)
    assert 1 == len((await keyring.rotate("ann", 0, WHO)).key.secrets)


@pytest.mark.parametrize("overlap_s", [-1, 366 * 86_400 + 1])
async def test_overlaps_that_cannot_be_meant(keyring, overlap_s):
    """They are refused before the store is asked."""
    assert "invalid_overlap_s" == await code_of(keyring.rotate("ann", overlap_s, WHO))


async def test_deletion_leaves_nothing(keyring, outside, store):
    """No record, no name, no digest; the name may be used again, and the old secrets are not its."""
    old = await keyring.create(NewKey(name="ann"), WHO)
    rotated = await keyring.rotate("ann", 100, WHO)
    await keyring.delete("ann", WHO)
    assert {version_key(store), store.key("keys", "audit")} == {name.decode() for name in outside.scan_iter()}
    await keyring.create(NewKey(name="ann"), WHO)
    assert [None, None] == [await found(keyring, one) for one in (old, rotated)]


async def test_an_end_in_the_past_is_refused(keyring):
    """For a new key and for one that there is."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    assert "invalid_expires_at" == await code_of(keyring.create(NewKey(name="ann", expires_at=past), WHO))
    await keyring.create(NewKey(name="ann"), WHO)
    assert "invalid_expires_at" == await code_of(keyring.change("ann", KeyChange(expires_at=past), WHO))


async def test_a_key_that_has_expired_says_so(store):
    """By the server's clock, whatever ours is."""
    keyring = Keyring(store, now=lambda: 0.0)
    issued = await keyring.create(NewKey(name="ann", expires_at=datetime(2020, 1, 1, tzinfo=UTC)), WHO)
    assert "expired" == issued.key.state
    assert (await found(keyring, issued)).ends < datetime.now(UTC).timestamp()


async def test_pages_go_by_name(keyring):
    """Every key once, in the order of the names as bytes."""
    names = ["b", "a/b", "ключ", "a b", "Z", "{keys}", "钥", "a:b", "%41"]
    for name in names:
        await keyring.create(NewKey(name=name), WHO)
    seen, after = [], ""
    while after is not None:
        page = await keyring.page(after, 2)
        assert len(page.keys) <= 2
        seen += [key.name for key in page.keys]
        after = page.next
    assert sorted(names, key=str.encode) == seen


async def test_every_change_is_told(keyring, store):
    """The version goes up with each, and the audit log says who did what, without a secret."""

    async def version():
        return (await keyring.find(b"")).version

    issued = await keyring.create(NewKey(name="ann", labels={"a": "b"}), "admin:127.0.0.1")
    await keyring.change("ann", KeyChange(disabled=True), WHO)
    rotated = await keyring.rotate("ann", 60, WHO)
    await keyring.delete("ann", WHO)
    assert 4 == await version()
    entries = (await AuditLog(store).page()).entries
    assert ["key.delete", "key.rotate", "key.change", "key.create"] == [entry.what for entry in entries]
    assert [WHO, WHO, WHO, "admin:127.0.0.1"] == [entry.who for entry in entries]
    assert {"ann"} == {entry.name for entry in entries}
    details = [entry.details for entry in entries]
    secret, other = issued.secret.reveal(), rotated.secret.reveal()
    assert {"labels": {"a": "b"}, "hint": f"{secret[:8]}…{secret[-4:]}"} == details[3]
    assert [{}, {"hint": f"{other[:8]}…{other[-4:]}", "overlap_s": 60}, {"disabled": True}] == details[:3]
    assert all(abs(entry.at - datetime.now(UTC)) < timedelta(minutes=1) for entry in entries)


async def test_what_changes_nothing_is_not_told(keyring, store):
    """A change that stands already raises no version: no process has to ask again."""
    await keyring.create(NewKey(name="ann", labels={"a": "b"}), WHO)
    for _ in range(2):
        await keyring.change("ann", KeyChange(disabled=False, labels={"a": "b", "c": None}, limits=None), WHO)
    await keyring.change("ann", KeyChange(), WHO)
    assert 1 == (await keyring.find(b"")).version
    assert 1 == len((await AuditLog(store).page()).entries)


async def test_the_audit_log_goes_page_by_page(store):
    """The latest first; each once; a cursor that is none is refused."""
    log = AuditLog(store)
    for number in range(7):
        await log.note(WHO, "quota.top_up", "ann", {"number": number})
    seen, before = [], ""
    while before is not None:
        page = await log.page(before, 3)
        seen += [entry.details["number"] for entry in page.entries]
        before = page.next
    assert [6, 5, 4, 3, 2, 1, 0] == seen
    for cursor in ("-", "+", "1", "1-", "$", "(1-1", "1-1 "):
        assert "invalid_before" == await code_of(log.page(cursor))


class Twice:
    """A store whose answers get lost: every script runs twice, and the second answer is the one that is told."""

    def __init__(self, store):
        self._store = store
        self.key = store.key

    async def run(self, script: Script, keys, args=()):
        await self._store.run(script, keys, args)
        return await self._store.run(script, keys, args)


async def test_a_repeat_has_the_same_effect(store):
    """What a lost answer makes somebody do again does no more than once."""
    keyring, plain = Keyring(Twice(store)), Keyring(store)
    issued = await keyring.create(NewKey(name="ann"), WHO)
    rotated = await keyring.rotate("ann", 60, WHO)
    assert 2 == len(rotated.key.secrets)
    await keyring.change("ann", KeyChange(labels={"a": "b"}), WHO)
    assert ["ann", "ann"] == [(await found(plain, one)).key.name for one in (issued, rotated)]
    assert 3 == (await plain.find(b"")).version
    assert 3 == len((await AuditLog(store).page()).entries)
    assert "key_not_found" == await code_of(keyring.delete("ann", WHO))  # it was there once
    assert 4 == (await plain.find(b"")).version


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
COUNTS = st.none() | st.integers(1, 2**53 - 1)
NEW = st.builds(
    NewKey,
    name=WORDS.filter(lambda word: word not in (".", "..") and word.isprintable()),
    models=st.none() | st.lists(WORDS.filter(str.isprintable), min_size=1, max_size=5, unique=True).map(tuple),
    limits=st.builds(Limits, requests_per_minute=COUNTS, burst=COUNTS, tokens_per_minute=COUNTS),
    labels=st.dictionaries(WORDS.filter(str.isprintable), WORDS.filter(str.isprintable), max_size=5),
    expires_at=st.none()
    | st.datetimes(datetime(2031, 1, 1), datetime(9999, 1, 1)).map(
        lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000, tzinfo=UTC)
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(NEW)
async def test_what_was_said_is_what_is_kept(keyring, outside, new):
    """Whatever the words and numbers: Lua's JSON rounds none of them, and no name is taken for structure."""
    outside.flushall()
    issued = await keyring.create(new, WHO)
    view = await keyring.show(new.name)
    assert (new.name, new.models, new.limits, new.labels, new.expires_at) == (
        view.name,
        view.models,
        view.limits,
        view.labels,
        view.expires_at,
    )
    assert new.name == (await found(keyring, issued)).key.name
    assert json.loads(outside.hget("relay:{keys}:records", new.name))["created"].isdigit()


NAMES = st.sampled_from(["ann", "bob", "a:b"])
STEPS = st.one_of(
    st.tuples(st.just("create"), NAMES),
    st.tuples(st.just("rotate"), NAMES, st.sampled_from([0, 60, 600])),
    st.tuples(st.just("disable"), NAMES, st.booleans()),
    st.tuples(st.just("label"), NAMES, st.sampled_from("xyz"), st.none() | st.sampled_from("123")),
    st.tuples(st.just("delete"), NAMES),
)


class Model:
    """What should be there: by name its secrets that work, whether it is disabled, its labels; and how many changes."""

    def __init__(self):
        self.keys = {}
        self.changes = 0

    async def step(self, keyring, act, name, *rest):
        if (act == "create") is (name in self.keys):
            return await self._refused(keyring, act, name)
        if act == "create":
            issued = await keyring.create(NewKey(name=name), WHO)
            self.keys[name] = {"secrets": [issued.secret.reveal()], "disabled": False, "labels": {}}
        elif act == "rotate":
            secrets = self.keys[name]["secrets"]
            if rest[0] and len(secrets) == MAX_SECRETS:
                assert "too_many_secrets" == await code_of(keyring.rotate(name, rest[0], WHO))
                return None
            issued = await keyring.rotate(name, rest[0], WHO)
            self.keys[name]["secrets"] = [*(secrets if rest[0] else []), issued.secret.reveal()]
        elif act == "delete":
            await keyring.delete(name, WHO)
            del self.keys[name]
        else:
            before = json.dumps(self.keys[name])
            if act == "disable":
                self.keys[name]["disabled"] = rest[0]
                change = KeyChange(disabled=rest[0])
            else:
                self.keys[name]["labels"] = {**self.keys[name]["labels"], rest[0]: rest[1]}
                self.keys[name]["labels"] = {k: v for k, v in sorted(self.keys[name]["labels"].items()) if v}
                change = KeyChange(labels=dict([rest]))
            await keyring.change(name, change, WHO)
            self.changes -= before == json.dumps(self.keys[name])
        self.changes += 1
        return None

    async def _refused(self, keyring, act, name):
        work = {
            "create": lambda: keyring.create(NewKey(name=name), WHO),
            "rotate": lambda: keyring.rotate(name, 60, WHO),
            "disable": lambda: keyring.change(name, KeyChange(disabled=True), WHO),
            "label": lambda: keyring.change(name, KeyChange(labels={"x": "1"}), WHO),
            "delete": lambda: keyring.delete(name, WHO),
        }[act]
        assert ("key_exists" if act == "create" else "key_not_found") == await code_of(work())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=30))
async def test_any_changes_in_any_order(keyring, outside, store, steps):
    """Every secret ever made opens its key exactly as long as it should; the version and the log count every change."""
    outside.flushall()
    model, ever = Model(), {}
    for step in steps:
        await model.step(keyring, *step)
        ever.update((secret, name) for name, key in model.keys.items() for secret in key["secrets"])
    working = {secret: name for name, key in model.keys.items() for secret in key["secrets"]}
    for secret in ever:
        admitted = (await keyring.find(digest(secret))).admitted
        assert (secret in working) is (admitted is not None)
        if admitted is not None:
            key = model.keys[working[secret]]
            assert (working[secret], key["disabled"], key["labels"]) == (
                admitted.key.name,
                admitted.disabled,
                dict(sorted(admitted.key.labels.items())),
            )
    assert sorted(model.keys) == [key.name for key in (await keyring.page()).keys]
    assert model.changes == (await keyring.find(b"")).version
    assert model.changes == len((await AuditLog(store).page(limit=500)).entries)
    assert len(working) == outside.hlen("relay:{keys}:digests")
