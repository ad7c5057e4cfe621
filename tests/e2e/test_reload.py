"""relay.toml is read again under traffic: who asks from then on is served by the new one, whoever is being served by the old."""

import asyncio
import copy
import gc
import re
import statistics
import sys
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from relay.options import ConfigError
from relay.testing import Gate, Head, Script, Send, frames, streamed, whole

EVENT_STREAM = (("Content-Type", "text/event-stream"),)
KEY = "sk-canary-client-2f6b1c90d7e84a53"
MODEL = "gpt-3.5-turbo-1106"
AUTH = {"use": "auth", "keys": [{"name": "tester", "key": KEY}]}
OTHER_KEY = "sk-canary-other-4471aa02"

PLUGINS = '''
import asyncio
import threading
from contextlib import asynccontextmanager
from relay.plugin import Plugin

BUILD = threading.Event()

TOLD = []

class Told(Plugin):
    """Writes down its life, and those of the requests that it saw."""

    name: str = "first"

    @asynccontextmanager
    async def lifespan(self, services):
        TOLD.append(("opened", self.name))
        try:
            async with asyncio.TaskGroup():  # which only the task can leave that has entered it
                yield
        finally:
            TOLD.append(("closed", self.name))

    async def on_request(self, ex):
        TOLD.append(("begun", self.name))
        ex.reply_headers["x-told"] = self.name

    async def on_end(self, ex):
        TOLD.append(("ended", self.name))

class RaisesWhenOpened(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        raise RuntimeError("sk-secret")
        yield

class RaisesWhenBuilt(Plugin):
    def __post_init__(self):
        raise KeyError("sk-secret")

class IsNeverBuilt(Plugin):
    def __post_init__(self):
        BUILD.wait()

class IsCancelledWhenOpened(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        raise asyncio.CancelledError
        yield

class EndsTheProcess(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        raise SystemExit(3)
        yield

class DoesNotHear(Plugin):
    """Does not hear once that it is cancelled while it is opened."""

    @asynccontextmanager
    async def lifespan(self, services):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        yield

class GivesUp(Plugin):
    """What it does beside breaks, and ends its lifespan."""

    @asynccontextmanager
    async def lifespan(self, services):
        async with asyncio.TaskGroup() as group:
            group.create_task(self.work())
            yield

    async def work(self):
        await asyncio.sleep(0.05)
        raise RuntimeError

class NeverCloses(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        yield
        await asyncio.Event().wait()

class NeverOpens(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        await asyncio.Event().wait()
        yield

class RaisesWhenClosed(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        yield
        raise RuntimeError
'''


@pytest.fixture
def folder(tmp_path, request):
    """Where relay.toml lies, with plugins beside it in a module that no other test has."""
    name = f"told_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PLUGINS)
    request.node.module_name = name
    return tmp_path


@pytest.fixture
def told(folder, request):
    """`told("Told", …)`: the table of a plugin beside relay.toml; `told.lives()`: what they have told."""

    def table(plugin, **options):
        return {"use": f"{request.node.module_name}:{plugin}", **options}

    table.module = lambda: sys.modules[request.node.module_name]
    table.lives = lambda: table.module().TOLD
    return table


def moderating(*words):
    return {"use": "moderation", "moderators": [{"use": "lexicon", "words": list(words)}]}


def in_two(first, second, gate):
    """A stream that waits in its midst."""
    events = [*frames.stream([first, second])]
    return Script(Head(headers=EVENT_STREAM), Send(b"".join(events[:2])), Gate(gate), Send(b"".join(events[2:])))


async def begun(rig, **asked):
    """A reply that has begun, to be ended by the caller."""
    response = await rig.post(**asked)
    await response.content.readuntil(b"\n\n")
    return response


async def test_streams_end_on_the_chain_on_which_they_began(serve, folder, told):
    """A word that is forbidden from now on is forbidden to those who ask from now on; a plugin closes after its last reply."""
    gate = asyncio.Event()
    scripts = iter([in_two("Hel", " cherry", gate), streamed(frames.stream(["a", " cherry"]))])
    rig = await serve(lambda _: next(scripts), folder=folder, chain=[AUTH, told("Told"), moderating("apple")])
    old = await begun(rig)
    rig.document["plugins"] = [AUTH, told("Told", name="second"), moderating("cherry")]
    await rig.reload()
    new = await rig.ask()
    assert "second" == new.headers["x-told"]
    assert b"cherry" not in new.data
    assert b'"finish_reason":"content_filter"' in new.data
    await rig.until(lambda: ("ended", "second") in told.lives())
    assert ("closed", "first") not in told.lives()
    gate.set()
    rest = await old.content.read()
    assert b"cherry" in rest
    assert rest.endswith(frames.done())
    assert "first" == old.headers["x-told"]
    await rig.until(lambda: ("closed", "first") in told.lives())
    assert [
        ("opened", "first"), ("begun", "first"),
        ("opened", "second"), ("begun", "second"), ("ended", "second"),
        ("ended", "first"), ("closed", "first"),
    ] == told.lives()  # fmt: skip
    assert {"done": 1.0} == await reloads(rig)


async def reloads(rig):
    counted = await rig.metrics()
    name = "relay_reloads_total"
    return {key[len(name) + 9 : -2]: value for key, value in counted.items() if key.startswith(name)}


async def test_what_nobody_uses_closes_at_once(serve, folder, told):
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=[AUTH, told("Told")])
    for number in range(5):
        rig.document["plugins"] = [AUTH, told("Told", name=str(number))]
        await rig.reload()
    await rig.until(lambda: ("closed", "3") in told.lives())
    await rig.stop()
    assert ("closed", "4") == told.lives()[-1]
    assert Counter({"opened": 6, "closed": 6}) == Counter(what for what, _ in told.lives())


async def test_keys_and_limits(serve, folder):
    """A key that is not there any more is refused from now on, and so is what is above a new limit."""
    rig = await serve(whole(frames.body("Hi")), folder=folder, chain=[AUTH])
    assert 200 == (await rig.ask(stream=False)).status
    rig.document["plugins"] = [{"use": "auth", "keys": [{"name": "other", "key": OTHER_KEY}]}]
    await rig.reload()
    assert 401 == (await rig.ask(stream=False)).status
    other = {"Authorization": f"Bearer {OTHER_KEY}"}
    assert 200 == (await rig.ask(stream=False, headers=other)).status
    rig.document["server"] = {"port": 0, "max_body_bytes": 10}
    await rig.reload()
    assert 413 == (await rig.ask(stream=False, headers=other)).status
    assert [] == [line for line in rig.log if line["event"] == "takes a restart"]


async def test_upstreams(serve, folder):
    """Who asks is sent to the new upstream; a stream of the old one goes on; models are listed as they are now served."""
    gate = asyncio.Event()
    rig = await serve(
        in_two("old", " end", gate), streamed(frames.stream(["new"])), folder=folder, upstream={"models": [MODEL]}
    )
    first, second = rig.document["upstreams"]
    rig.document["upstreams"] = [first]
    await rig.reload()
    old = await begun(rig)
    rig.document["upstreams"] = [{**second, "models": [MODEL, "fresh"]}]
    await rig.reload()
    assert b'"new"' in (await rig.ask(model="fresh")).data
    async with rig.session.get(f"{rig.url}/v1/models") as response:
        assert [MODEL, "fresh"] == [each["id"] for each in (await response.json())["data"]]
    gate.set()
    assert b" end" in await old.content.read()
    counted = await rig.metrics()
    assert any("duration_seconds_count" in name and '"fresh"' in name for name in counted)


async def test_an_ejected_upstream_stays_ejected(serve, folder):
    """What is known of an upstream that stays is not forgotten; one that has moved begins anew."""
    rig = await serve(whole(b"", status=500), whole(frames.body("Hi")), folder=folder, upstream={"retry_on": ["500"]})
    rig.loudest = "warning"
    for _ in range(20):
        await rig.ask(stream=False)
        if "upstream ejected" in [line["event"] for line in rig.log]:
            break
    assert 1 == (await rig.metrics())['relay_upstream_ejected{upstream="u0"}']
    await rig.reload()
    assert 1 == (await rig.metrics())['relay_upstream_ejected{upstream="u0"}']
    rig.document["upstreams"][0]["base_url"] += "/"  # slashes at the end say nothing
    await rig.reload()
    assert 1 == (await rig.metrics())['relay_upstream_ejected{upstream="u0"}']
    rig.document["upstreams"][0]["base_url"] = rig.upstreams[1].base_url
    await rig.reload()
    assert 'relay_upstream_ejected{upstream="u0"}' not in await rig.metrics()


def broken(rig, told):
    """Texts of relay.toml, each with an error, and what is said of it."""

    def with_(change):
        changed = copy.deepcopy(rig.document)
        change(changed)
        return rig.text(changed)

    def plugins(*tables):
        return with_(lambda each: each["plugins"].extend(tables))

    sound = rig.text(rig.document)
    return [
        ("", "upstreams: there are none"),
        ("[server", "not TOML"),
        (sound + "\nx = \n", "not TOML"),
        (sound + "\n[servre]\nport = 1\n", "servre"),
        (with_(lambda each: each["server"].update(port="80")), "server.port: Expected `int`, got `str`"),
        (with_(lambda each: each["server"].update(body_timeout_s=-1)), "server.body_timeout_s"),
        (with_(lambda each: each["store"].update(url="sqlite:x")), "store: url: unknown scheme"),
        (with_(lambda each: each["upstreams"][0].update(base_url="ftp://h")), "is not an http or https URL"),
        (with_(lambda each: each["upstreams"][0].update(models=[])), "models is empty"),
        (with_(lambda each: each["upstreams"].append(each["upstreams"][0])), "is taken by upstreams[0]"),
        (with_(lambda each: each["upstreams"][0].update(api_key={"env": "RELAY_TEST_NOT_SET"})), "RELAY_TEST_NOT_SET"),
        (plugins({"use": "moderatoin"}), "did you mean 'moderation'?"),
        (plugins({"use": "nowhere:Nothing"}), "nowhere"),
        (plugins({"use": "moderation", "moderators": []}), "moderators is empty"),
        (plugins({"use": "auth", "kyes": []}), "unknown option 'kyes'; did you mean 'keys'?"),
        (
            plugins({"use": "moderation", "moderators": [{"use": "lexicon", "files": ["not-there.txt"]}]}),
            "not-there.txt",
        ),
        (plugins({"use": "quota"}), "store.url is memory:"),
        (plugins(told("RaisesWhenBuilt")), "RaisesWhenBuilt' cannot be built (KeyError)"),
        (plugins(told("RaisesWhenOpened")), "plugin 'RaisesWhenOpened' cannot be opened (RuntimeError)"),
        (plugins(told("IsCancelledWhenOpened")), "cannot be opened (NotOpenedError)"),
        (plugins(told("EndsTheProcess")), "cannot be opened (NotOpenedError)"),
        (sound + f"\nx = {'[' * 3000}{']' * 3000}\n", "cannot be read: RecursionError"),
        (sound + f"\nx = {'1' * 5000}\n", "cannot be read: ValueError"),
        (plugins({"use": "ends_the_process:Plugin"}), "ends the process"),
        (plugins(told("DoesNotHear")), "cannot be opened (it takes longer than 1 s)"),
        (plugins(told("NeverOpens")), "plugin 'NeverOpens' cannot be opened (it takes longer than 1 s)"),
    ]


async def test_an_error_changes_nothing(serve, folder, told, monkeypatch):
    """Whoever asked is told what is wrong and on which line, as are the log and the events; what was served is served on."""
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=[AUTH, told("Told")])
    rig.loudest = "error"
    (folder / "ends_the_process.py").write_text("raise SystemExit(5)")
    texts = broken(rig, told)
    for text, says in texts:
        with monkeypatch.context() as patch:
            patch.setattr("relay.generations.OPEN_TIMEOUT_S", 1.0 if "takes longer" in says else 60.0)
            with pytest.raises(ConfigError) as caught:
                await rig.reload(text)
        assert says in str(caught.value)
        assert re.match(rf"{re.escape(str(rig.file))}(:\d+)?: ", str(caught.value))
        assert "sk-secret" not in str(caught.value)
        assert list(caught.value.problems) == rig.log[-1]["problems"]
        assert "not reloaded" == rig.log[-1]["event"]
        assert "first" == (await rig.ask()).headers["x-told"]
    assert {"refused": len(texts)} == await reloads(rig)
    # Some were opened as far as they could be, and closed again.
    assert {"opened": 6, "closed": 5} == {what: told.lives().count((what, "first")) for what in ("opened", "closed")}


async def test_the_line_is_named(serve, folder):
    rig = await serve(streamed(frames.stream(["a"])), folder=folder)
    rig.loudest = "error"
    text = rig.text(rig.document) + '\n\n[[plugins]]\nuse = "history"\nmax_token = 3\n'
    with pytest.raises(ConfigError) as caught:
        await rig.reload(text)
    line = text.splitlines().index("max_token = 3") + 1
    assert f"{rig.file}:{line}: plugins[2] (history): unknown option 'max_token'; did you mean 'max_tokens'?" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ("RaisesWhenBuilt", "plugins[2]: plugin '{use}' cannot be built (KeyError); the log says more"),
        (
            "RaisesWhenOpened",
            "plugins[2]: plugin 'RaisesWhenOpened' cannot be opened (RuntimeError); the log says more",
        ),
    ],
)
async def test_the_line_is_named_of_a_plugin_that_raises(serve, folder, told, plugin, says):
    rig = await serve(streamed(frames.stream(["a"])), folder=folder)
    rig.loudest = "error"
    use = told(plugin)["use"]
    text = rig.text(rig.document) + f'\n\n[[plugins]]\nuse = "{use}"\n'
    with pytest.raises(ConfigError) as caught:
        await rig.reload(text)
    line = text.splitlines().index(f'use = "{use}"')
    assert f"{rig.file}:{line}: {says.format(use=use)}" == str(caught.value)


async def test_what_takes_a_restart(serve, folder):
    """The listeners and the store stay as they are, which is said; the rest is served."""
    rig = await serve(whole(frames.body("Hi")), folder=folder)
    rig.loudest = "warning"
    rig.document["server"] = {"port": 1, "max_body_bytes": 10, "workers": 2}
    rig.document["store"] = {"url": "embedded:", "timeout_ms": 5000}
    await rig.reload()
    [line] = [line for line in rig.log if line["event"] == "takes a restart"]
    assert ["server.port", "store.url", "server.workers", "store.timeout_ms"] == line["what"]
    assert 413 == (await rig.ask(stream=False)).status


async def test_those_who_ask_at_once_share_a_reading(serve, folder):
    """The one that is to begin, not the one that has begun: the file may have been changed since."""
    rig = await serve(streamed(frames.stream(["a"])), folder=folder)
    await asyncio.gather(*(rig.reload() for _ in range(50)))
    first = asyncio.create_task(rig.relay.reloader.reload())
    await rig.until(lambda: 2 == sum(line["event"] == "reloading" for line in rig.log))
    await asyncio.gather(first, *(rig.relay.reloader.reload() for _ in range(50)))
    assert {"done": 3.0} == await reloads(rig)


async def test_one_that_does_not_close_well(serve, folder, told):
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=[AUTH, told("RaisesWhenClosed")])
    rig.loudest = "error"
    rig.document["plugins"] = [AUTH]
    await rig.reload()
    await rig.until(lambda: "a former configuration did not close well" in [line["event"] for line in rig.log])
    assert 200 == (await rig.ask()).status


TENCENT = {"use": "tencent", "secret_id": "AKIDaa", "secret_key": "aa", "endpoint": "http://127.0.0.1:9"}


async def test_one_that_breaks_while_it_is_served(serve, folder, told):
    """What it had opened is closed under those who use it, so the process ends, as it does when it breaks at the start."""
    rig = await serve(streamed(frames.stream(["a"])), folder=folder)
    rig.document["plugins"] = [AUTH, told("GivesUp")]
    await rig.reload()
    with pytest.raises(ExceptionGroup):
        await rig.relay.until(asyncio.Event())
    await rig.metrics()
    rig.stopped = True
    with pytest.raises(ExceptionGroup):
        await rig._running.aclose()


async def test_one_that_is_never_built(serve, folder, told, monkeypatch):
    """Is refused, and keeps no thread that others need, nor the process from ending."""
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=[AUTH, told("Told")])
    rig.loudest = "error"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    rig.document["plugins"] = [AUTH, told("IsNeverBuilt")]
    try:
        with monkeypatch.context() as patch:
            patch.setattr("relay.generations.OPEN_TIMEOUT_S", 0.05)
            with pytest.raises(ConfigError, match="the chain cannot be built \\(it takes longer than"):
                await rig.reload()
        rig.document["plugins"] = [AUTH, told("Told", name="second")]
        async with asyncio.timeout(10):
            await rig.reload()
        assert "second" == (await rig.ask()).headers["x-told"]
        assert [True] == [thread.daemon for thread in threading.enumerate() if thread.name == "relay-build"]
    finally:
        told.module().BUILD.set()


def held_up(rig):
    """The plugins that the log names for that."""
    return [line["plugin"] for line in rig.log if line["event"] == "a plugin does not close"]


async def test_one_that_never_closes(serve, folder, told, monkeypatch):
    """Is named and left behind, when its chain is served no more, and keeps nobody from closing."""
    monkeypatch.setattr("relay.generation.CLOSE_TIMEOUT_S", 0.05)
    chain = [AUTH, told("Told"), told("NeverCloses"), told("Told", name="second")]
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=chain)
    rig.loudest = "error"
    rig.document["plugins"] = [AUTH]
    await rig.reload()
    await rig.until(lambda: held_up(rig))
    await rig.until(lambda: not rig.relay._generations._former)
    assert ["NeverCloses"] == held_up(rig)
    assert [("closed", "second"), ("closed", "first")] == told.lives()[-2:]
    await rig.stop()


async def test_one_that_never_closes_keeps_nobody_from_ending(serve, folder, told, monkeypatch):
    """Neither when it is served, nor when it was, by a request that has not ended."""
    monkeypatch.setattr("relay.generation.CLOSE_TIMEOUT_S", 0.05)
    rig = await serve(streamed(frames.stream(["a"])), folder=folder, chain=[AUTH, told("NeverCloses"), told("Told")])
    rig.loudest = "error"
    rig.app.generation.requests += 1
    await rig.reload()
    await rig.stop()
    assert ["NeverCloses", "NeverCloses"] == held_up(rig)
    assert 2 == told.lives().count(("closed", "first"))


async def test_after_the_end(serve, folder):
    """Nothing is read any more."""
    rig = await serve(streamed(frames.stream(["a"])), folder=folder)
    await rig.relay.reloader.close()
    rig.relay.reloader.ask()
    with pytest.raises(ConfigError, match="stopping"):
        await rig.reload()
    assert {} == await reloads(rig)


async def test_what_was_served_is_forgotten(serve, folder):
    """Of a former chain nothing stays in memory, and at once: the collector is spared what was there at the start."""
    moderation = moderating("forbidden fruit")
    moderation["moderators"].append(TENCENT)
    limit = {"use": "rate_limit", "requests_per_minute": 600}
    chain = [AUTH, limit, {"use": "parameters"}, moderation, {"use": "history", "max_turns": 3}]
    rig = await serve(streamed(frames.stream([])), folder=folder, chain=[*chain, moderating("cherry")])
    await rig.ended(0)
    links = rig.app.generation.chain.links
    plugins = [weakref.ref(link.plugin) for link in links]
    del links
    gc.disable()
    try:
        await rig.reload()
        await rig.until(lambda: not rig.relay._generations._former)
        assert [None] * 6 == [plugin() for plugin in plugins]
    finally:
        gc.enable()


async def test_stopped_with_streams_of_both(serve, folder, told):
    """A stream of a former chain is drained like any other, and the chain is closed."""
    gate = asyncio.Event()
    rig = await serve(in_two("a", "b", gate), folder=folder, chain=[AUTH, told("Told")])
    old = await begun(rig)
    rig.document["plugins"] = [AUTH, told("Told", name="second")]
    await rig.reload()
    new = await begun(rig)
    await rig.relay.drain(0, 0)
    for response in (old, new):
        assert b'"code":"draining"' in await response.content.read()
    await rig.stop()
    assert {"closed"} == {what for what, _ in told.lives()[-2:]}
    assert KEY not in str(told.lives())
    gate.set()


STREAMS = 200
RELOADS = 100


@pytest.mark.parametrize("reader", ["push"])  # it takes its time
async def test_a_hundred_reloads_under_two_hundred_streams(serve, folder, told, monkeypatch):
    """With twenty broken configurations among them: no stream is lost, or has another byte than the upstream has sent."""
    events = frames.stream([f"word {number} " for number in range(20)])
    chain = [AUTH, told("Told"), moderating("forbidden fruit")]
    rig = await serve(streamed(events, pace_s=0.05), folder=folder, chain=chain)
    rig.loudest = "error"
    sound, texts = copy.deepcopy(rig.document), broken(rig, told)[:20]
    ended, stopped, names, live = Counter(), False, set(), []

    async def client():
        while not stopped:
            reply = await rig.ask()
            names.add(reply.headers["x-told"])
            ended["whole" if (reply.status, reply.data) == (200, b"".join(events)) else "altered"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(client())
        await rig.until(lambda: len(rig.replies) == STREAMS)
        for number in range(RELOADS):
            live.append(len(rig.replies))
            if number % 5 == 4:
                text, says = texts[number // 5]
                with monkeypatch.context() as patch:
                    patch.setattr("relay.generations.OPEN_TIMEOUT_S", 1.0 if "takes longer" in says else 60.0)
                    with pytest.raises(ConfigError):
                        await rig.reload(text)
            else:
                rig.document = copy.deepcopy(sound)
                rig.document["plugins"][1]["name"] = f"chain {number}"
                rig.document["plugins"][2]["moderators"][0]["words"].append(f"unheard of {number}")
                await rig.reload()
            seen = ended.total()
            await rig.until(lambda seen=seen: ended.total() > seen)
        stopped = True
    assert {"done": 80.0, "refused": 20.0} == await reloads(rig)
    assert {"whole"} == set(ended)
    assert ended["whole"] > 2 * STREAMS
    assert len(names) > 20
    assert statistics.median(live) > STREAMS / 2
    await rig.until(lambda: not rig.relay._generations._former)
    counted = Counter(what for what, _ in told.lives())
    assert counted["opened"] == counted["closed"] + 1
    assert counted["begun"] == counted["ended"] == ended["whole"]


async def test_a_watched_file(serve, folder, monkeypatch):
    """It is read again when it has changed and rests; one with an error is refused, and one without is served."""
    monkeypatch.setattr("relay.reloading.LOOK_S", 0.01)
    rig = await serve(whole(frames.body("Hi")), folder=folder)
    rig.loudest = "error"

    def replace(text):
        """As an editor does."""
        other = rig.file.with_suffix(".new")
        other.write_text(text)
        other.rename(rig.file)

    def told():
        return [line["event"] for line in rig.log if line["event"] in ("reloaded", "not reloaded")]

    replace(rig.text(rig.document) + "\n[nonsense]\n")  # while it started
    async with rig.relay.reloader.watching():
        await rig.until(lambda: told() == ["not reloaded"])
        rig.document["server"] = {"port": 0, "max_body_bytes": 10}
        replace(rig.text(rig.document))
        await rig.until(lambda: told() == ["not reloaded", "reloaded"])
        assert 413 == (await rig.ask(stream=False)).status
        rig.file.unlink()
        await rig.until(lambda: told() == ["not reloaded", "reloaded", "not reloaded"])
        assert "cannot be read" in rig.log[-1]["problems"][0]
