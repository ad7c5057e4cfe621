"""Verdicts that processes share: asked for once, by their options, with nothing of a text in the store."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from relay.consultant import Consultant, Unjudged
from relay.moderator import PASS, Context, Finding, Moderator, NoVerdict, Span, Verdict
from relay.secret import Secret
from relay.store.port import Arg, Script, Store, StoreError
from relay.testing.reply import Lent, exchange
from relay_plugins.moderation import Moderation

HERE = Context(exchange="request-1", direction="request", surface="messages[0]")
TEXT = "canary 你好, is this all right? \ud83d"
BLOCK = Verdict(
    "block", "Porn", 90, (Finding("block", "Porn", 90, (Span(0, 6, "canary"), Span(9, 12))),), reference="ref-1"
)
KEPT = Verdict("block", "Porn", 90, (Finding("block", "Porn", 90, (Span(0, 0),)),), reference="ref-1")


class Service(Moderator):
    """Costs something."""

    policy: str = ""
    calls_per_second: float = 1000.0
    session: bool = False
    owner: Secret = dataclasses.field(default_factory=lambda: Secret("one"))

    def __post_init__(self) -> None:
        self.asked: list[str] = []
        self.says: Verdict | Exception = BLOCK

    @property
    def in_order(self) -> bool:
        return self.session

    @property
    def account(self) -> str:
        return f"service {self.owner.reveal()}"

    async def check(self, text: str, context: Context) -> Verdict:
        self.asked.append(text)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Flaky:
    """A store that forgets how to answer. kinds: of which scripts."""

    def __init__(self, store: Store, kinds: str) -> None:
        self._store = store
        self._kinds = kinds
        self.asked: list[str] = []

    def key(self, tag: str, *parts: str) -> str:
        return self._store.key(tag, *parts)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Any:
        self.asked.append(script.name)
        if not script.name.startswith(self._kinds):
            return self._store.run(script, keys, args)

        async def fail() -> None:
            raise StoreError("slow", acted=True)

        return fail()


def consultant(service: Moderator, store: Store | None, **options: Any) -> Consultant:
    lent = Lent()
    lent.metrics.add_moderator("service", ())
    return Consultant(
        *("service", service),
        **{"deadline_s": 2.0, "cache_s": 300.0, "store": store, **options},
        log=lent.services.log,
        metrics=lent.metrics,
    )


async def closed(*consultants: Consultant) -> None:
    for each in consultants:
        await each.close()


def kept(server: str) -> dict[bytes, bytes]:
    with redis.Redis(unix_socket_path=server) as client:
        return {key: client.get(key) for key in client.scan_iter("*verdict*")}


async def test_asked_once(store: Store, server: str) -> None:
    """By the first process; the others know it from the store, and then by themselves."""
    services = [Service(), Service()]
    first, second = (consultant(service, store) for service in services)
    assert (BLOCK, False) == await first.ask_text(TEXT, HERE)
    await first.close()
    assert (KEPT, True) == await second.ask_text(TEXT, HERE)
    with redis.Redis(unix_socket_path=server) as client:
        [key] = kept(server)
        assert 290_000 < client.pttl(key) <= 300_000
        client.flushall()
    assert (KEPT, True) == await second.ask_text(TEXT, HERE)
    assert ([TEXT], []) == (services[0].asked, services[1].asked)
    await second.close()


async def test_no_text_in_the_store(store: Store, server: str) -> None:
    """Neither the text nor a keyword of it nor an option of the moderator's."""
    asking = consultant(Service(policy="canary-policy"), store)
    await asking.ask_text(TEXT, HERE)
    await asking.close()
    with redis.Redis(unix_socket_path=server) as client:
        everything = b"".join(part for key, value in kept(server).items() for part in (key, value))
        everything += b"".join(client.scan_iter())
    assert b"canary" not in everything
    assert "你好".encode() not in everything


@pytest.mark.parametrize("other", [Service(policy="b"), Service(owner=Secret("another"))], ids=["policy", "account"])
async def test_another_policy_has_other_verdicts(store: Store, other: Service) -> None:
    """What a moderator says depends on its options, and on what the owner of its account has set up."""
    one = Service()
    other.says = PASS
    asking = [consultant(one, store), consultant(other, store)]
    assert (BLOCK, False) == await asking[0].ask_text(TEXT, HERE)
    await asking[0].close()
    assert (PASS, False) == await asking[1].ask_text(TEXT, HERE)
    await asking[1].close()


@pytest.mark.parametrize(
    ("service", "options"),
    [
        pytest.param({"session": True}, {}, id="not cacheable"),
        pytest.param({"calls_per_second": float("inf")}, {}, id="free"),
        pytest.param({}, {"cache_s": 0}, id="no cache"),
        pytest.param({}, {"share_verdicts": False}, id="not wanted"),
    ],
)
async def test_what_is_not_shared(store: Store, server: str, service: dict[str, Any], options: dict[str, Any]) -> None:
    """Verdicts that depend on more than the text, that cost nothing, or that the operator keeps to himself."""
    asking = consultant(Service(**service), store, **options)
    assert BLOCK == (await asking.ask_text(TEXT, HERE))[0]
    await asking.close()
    assert not kept(server)


async def test_failures_are_not_kept(store: Store, server: str) -> None:
    service = Service()
    service.says = NoVerdict("cannot say")
    asking = consultant(service, store)
    assert isinstance((await asking.ask_text(TEXT, HERE))[0], Unjudged)
    await asking.close()
    assert not kept(server)


@pytest.mark.parametrize("kinds", ["verdicts", "verdicts_keep", "budget", ""])
async def test_a_store_that_does_not_answer(store: Store, kinds: str) -> None:
    """Is as if it knew nothing."""
    flaky, service = Flaky(store, kinds), Service()
    asking = consultant(service, flaky)
    assert (BLOCK, False) == await asking.ask_text(TEXT, HERE)
    assert (KEPT, True) == await asking.ask_text(TEXT, HERE)
    assert [TEXT] == service.asked
    assert asking.degraded is (kinds in ("budget", ""))
    assert flaky.asked.count("verdicts_get") == 1
    await asking.close()


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"\x00", b"\xc1\xc1", b"\x81\xa6action\xa5burst"),
        b"\x82\xa6action\xa4pass\xa5label\xa1\xff",
        b"\x82\xa6action\xa4pass\xa3new" + b"\x91" * 10_000 + b"\xc0",
    ],
    ids=["empty", "a number", "none", "unknown", "no UTF-8", "deep"],
)
async def test_what_cannot_be_read_is_not_known(store: Store, server: str, value: bytes) -> None:
    """Also what a later version has written."""
    asking = consultant(Service(), store)
    await asking.ask_text(TEXT, HERE)
    await asking.close()
    with redis.Redis(unix_socket_path=server) as client:
        [key] = kept(server)
        client.set(key, value)
    asking = consultant(Service(), store)
    assert (BLOCK, False) == await asking.ask_text(TEXT, HERE)
    await asking.close()


async def test_several_processes_at_once(store: Store) -> None:
    """Calls go out at once, and no slot is left waiting."""
    services = [Service() for _ in range(4)]
    asking = [consultant(service, store) for service in services]
    said = await asyncio.gather(*(each.ask_text(f"text {i}", HERE) for each in asking for i in range(5)))
    assert {"block"} == {answer.action for answer, _ in said if isinstance(answer, Verdict)}
    assert all(each.budget.waiting == 0 for each in asking)
    await closed(*asking)


@pytest.mark.parametrize("kinds", ["budget", "none"])
async def test_replies_say_so(store: Store, kinds: str) -> None:
    """A request whose checks this process counts alone has it in its header, and in the metric."""
    lent, ex = Lent(store=Flaky(store, kinds)), exchange()
    service = Service()
    service.says = PASS
    plugin = Moderation(moderators=(service,))
    async with plugin.lifespan(lent.services):
        await plugin.on_request(ex)
    away = kinds == "budget"
    assert ("moderation" if away else None) == ex.reply_headers.get("x-relay-degraded")
    assert away == await lent.count('relay_degraded_requests_total{concern="moderation"}')
