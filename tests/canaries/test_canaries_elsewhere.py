"""What is secret stays secret on other ways to fail: of a start, a command, a worker; and in what is shown of processes."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import servers
from click.testing import CliRunner

from canaries import CONFIG, FORBIDDEN, PATIENCE_S, Canaries, search
from relay.assembly import assemble
from relay.cli import main
from relay.config import parse

# Other ways to fail


SECRETS = (
    "admin_token",
    "redis_password",
    "upstream_key",
    "second_upstream_key",
    "client_key",
    "tencent_id",
    "tencent_key",
)

# What is wrong in a relay.toml that has its secrets in place: a piece of it, and what stands there instead.
BROKEN = {
    "no TOML behind a secret": ('token = "{admin_token}"', 'token = "{admin_token}'),
    "a secret without quotes": ('api_key = "{upstream_key}"', "api_key = {upstream_key}"),
    "a secret as a list": ('api_key = "{upstream_key}"', 'api_key = ["{upstream_key}"]'),
    "a secret as another table": ('api_key = "{upstream_key}"', 'api_key = {{ evn = "{upstream_key}" }}'),
    "a secret twice": ('token = "{admin_token}"', 'token = "{admin_token}"\ntoken = "{admin_token}"'),
    "a misspelt name of a secret": ('api_key = "{upstream_key}"', 'api_kye = "{upstream_key}"'),
    "a field beside a secret": ('token = "{admin_token}"', 'token = "{admin_token}"\nprot = 1'),
    "a type beside a secret": ("port = 0\ntoken", 'port = "x"\ntoken'),
    "a password of no store": ("redis://", "reddis://"),
    "a password of a store that is none": ("@127.0.0.1:9/0", "@127.0.0.1:port/0"),
    "a password in an upstream's address": ('base_url = "{base_url}', 'base_url = "http://u:{upstream_key}@h/v1'),
    "a password and another scheme": ('base_url = "{base_url}', 'base_url = "ftp://u:{upstream_key}@h/v1'),
    "a key in an upstream's query": ("{upstream_path}", "{upstream_path}?key={upstream_key}"),
    "the same key twice": (
        'key = "sk-{client_key}" }}',
        'key = "sk-{client_key}" }}, {{ name = "l", key = "sk-{client_key}" }}',
    ),
    "a key with a space": ('key = "sk-{client_key}"', 'key = "sk-{client_key} "'),
    "a key for a list": ('[{{ name = "k", key = "sk-{client_key}" }}]', '"sk-{client_key}"'),
    "a key without a name": ('{{ name = "k", key = "sk-{client_key}" }}', '{{ key = "sk-{client_key}" }}'),
    "a misspelt name beside a key": ('name = "k", key', 'nmae = "k", key'),
    "credentials that are none": ("AKID{tencent_id}", "AK ID/{tencent_id}"),
    "a secret of the service as a number": ('secret_key = "{tencent_key}"', 'secret_key = 7, token = "{tencent_key}"'),
    "a password in the service's address": ('endpoint = "{tencent}"', 'endpoint = "http://u:{tencent_key}@h"'),
    "a password and another scheme of it": ('endpoint = "{tencent}"', 'endpoint = "ftp://u:{tencent_key}@h"'),
    "a key in the service's query": ('endpoint = "{tencent}"', 'endpoint = "http://h/?key={tencent_key}"'),
    "a misspelt option beside secrets": ('endpoint = "{tencent}"', 'endpiont = "{tencent}"'),
    "a plugin that is none": ('use = "history"', 'use = "histroy"'),
}


def configured(canaries, **changed):
    """The values that stand in relay.toml, of nothing that runs."""
    values = {name: canaries[name] for name in (*SECRETS, "upstream_path", "lexicon_word")}
    values |= {"base_url": "http://127.0.0.1:9", "tencent": "http://127.0.0.1:9", "workers": 1, "short_s": 1}
    values |= {"store": f"redis://:{canaries['redis_password']}@127.0.0.1:9/0", "forbidden": FORBIDDEN}
    return {**values, **changed}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_configuration_is_refused_without_its_secrets(broken, tmp_path):
    """`relay check` names what is wrong, and shows none of the secrets that stand beside it."""
    canaries = Canaries()
    before, after = BROKEN[broken]
    values = configured(canaries)
    text, before, after = CONFIG.format(**values), before.format(**values), after.format(**values)
    assert before in text
    text = text.replace(before, after, 1)
    (tmp_path / "relay.toml").write_text(text)
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    done = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "relay.toml")])
    assert (2, SystemExit) == (done.exit_code, type(done.exception)), done.output
    assert set() == canaries.in_(done.output), done.output
    assert "Traceback" not in done.output


def test_no_object_shows_a_secret(tmp_path):
    """Neither the configuration nor what is built of it; nor does `relay check`, which says what would run."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    path = tmp_path / "relay.toml"
    path.write_text(CONFIG.format(**configured(canaries)))
    config = parse(path.read_text(), path)
    chain = assemble(config)
    shown = [repr(config), str(config), *(f"{link.plugin!r} {link}" for link in chain.links)]
    assert "api_key=Secret(…)" in shown[0]
    # Where an upstream is, and what words are looked for, are no secrets.
    assert set() == canaries.in_("".join(shown)) - {"lexicon_word", "upstream_path"}
    done = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert 0 == done.exit_code, done.output
    assert set() == canaries.in_(done.output) - {"upstream_path"}


@pytest.mark.parametrize("command", ["serve", "keys list", "audit", "quota show k"])
def test_a_store_that_is_away_is_named_without_its_password(command, tmp_path):
    """Commands say where it is, and not what opens it."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    (tmp_path / "relay.toml").write_text(
        CONFIG.format(**configured(canaries, store=f"redis://u:{canaries['redis_password']}@127.0.0.1:9/x"))
    )
    done = _relay(tmp_path, *command.split())
    assert 0 != done.returncode
    assert set() == canaries.in_(done.stdout + done.stderr), done
    assert b"Traceback" not in done.stderr


def _relay(folder, *arguments, **environ):
    """A command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **environ},
    )


def test_a_key_is_shown_once(tmp_path, monkeypatch):
    """`relay keys create` and `rotate` print the secret that they make; nothing prints it again, not even the store."""
    can = Canaries()
    monkeypatch.setattr(servers, "PASSWORD", can["redis_password"])
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    with servers.valkey_tcp() as redis:
        (tmp_path / "relay.toml").write_text(CONFIG.format(**configured(can, store=redis.url)))
        _make_keys(tmp_path, can)
        with redis.main.connect(db=1) as store:
            kept = b"".join(store.dump(name) + name for name in store.keys("*"))
    assert len(kept) > 100
    assert set() == can.in_(kept)


def _make_keys(folder, can):
    def relay(*arguments):
        done = CliRunner().invoke(main, [*arguments, "--config", str(folder / "relay.toml")])
        return done.exit_code, done.output.encode()

    said = b""
    for arguments in (("keys", "create", "shop"), ("keys", "rotate", "shop", "--overlap", "1h")):
        status, output = relay(*arguments)
        assert 0 == status, output
        [secret] = set(re.findall(r"sk-[\w-]{20,}", output.decode()))
        assert 1 == output.decode().count(secret)
        can[f"made by {arguments[1]}"] = secret[8:-4]
        said += output.replace(secret.encode(), b"")
    for arguments in (
        *(("keys", "list"), ("keys", "show", "shop"), ("keys", "show", "shop", "--json"), ("keys", "create", "shop")),
        *(
            ("keys", "disable", "shop"),
            ("keys", "create", "k"),
            ("keys", "rotate", "nobody"),
            ("audit",),
            ("audit", "--json"),
        ),
        *(
            ("quota", "show", "shop"),
            ("quota", "top-up", "shop", "5"),
            ("quota", "entries", "shop"),
            ("keys", "nothing"),
        ),
        *(("quota", "top-up", "shop", can["value"]), ("keys", "create", "x", "--label", can["value"])),
        *(("keys", "delete", "shop", "--yes"),),
    ):
        said += relay(*arguments)[1]
    assert set() == can.in_(said) - {"value"}, said


@pytest.mark.parametrize("workers", [1, 2])
async def test_processes_show_no_secret(world, workers):
    """Not in their arguments, nor in an environment that was not given to the first of them; nor in the names of files."""
    world = await world(workers=workers)
    await world.post()
    pids = [world.process.pid]
    for pid in pids:
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(pids) >= (1 if workers == 1 else 1 + workers)
    said = b"".join(Path(f"/proc/{pid}/{what}").read_bytes() for pid in pids for what in ("cmdline", "environ", "comm"))
    assert set() == world.canaries.in_(said)
    assert set() == world.canaries.in_("".join(map(str, world.folder.rglob("*"))))


async def test_a_worker_that_is_killed(world):
    """What it was doing leaves no line, and what is said of its end holds nothing of it; a reload that is refused neither."""
    world = await world(workers=2)
    text = (world.folder / "relay.toml").read_text()
    before = world.upstream.received
    live = asyncio.create_task(world.post("upstream:mutters", stream=True))
    await world.upstream.until(lambda: world.upstream.received > before)
    for line in world.events("worker serves")[:2]:
        os.kill(line["pid"], signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await live
    await world.until(lambda: len(world.events("worker serves")) >= 4)
    (world.folder / "relay.toml").write_text(text.replace('use = "history"', 'use = "histroy"'))
    world.process.send_signal(signal.SIGHUP)
    await world.until(lambda: world.events("not reloaded"))
    (world.folder / "relay.toml").write_text(
        text.replace(
            'use = "talkative:Talkative"',
            f'use = "talkative:Talkative"\nstarted = "break:lifespan {world.canaries["value"]}"',
        )
    )
    world.process.send_signal(signal.SIGHUP)
    await world.until(lambda: len(world.events("not reloaded")) >= 2)
    await world.post()
    await world.until(lambda: world.requests)
    assert ["completed"] == [line["outcome"] for line in world.requests]
    search(world)


async def test_a_reload_that_is_refused(world):
    """Of one process: what a plugin raises when it is opened is named without what it holds."""
    world = await world()
    text = (world.folder / "relay.toml").read_text()
    for old, new in (
        ('use = "history"', 'use = "histroy"'),
        (
            'use = "talkative:Talkative"',
            f'use = "talkative:Talkative"\nstarted = "break:lifespan {world.canaries["value"]}"',
        ),
    ):
        refused = len(world.events("not reloaded"))
        (world.folder / "relay.toml").write_text(text.replace(old, new))
        world.process.send_signal(signal.SIGHUP)
        await world.until(lambda refused=refused: len(world.events("not reloaded")) > refused)
    await world.post()
    await world.until(lambda: world.requests)
    assert ["completed"] == [line["outcome"] for line in world.requests]
    search(world)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_the_loop_in_debug_mode(world, tmp_path, loop):
    """asyncio then tells of callbacks that took long, and of whatever was left; nothing of what they were given."""
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError")  # as on a platform that has none
    world = await world(environ={"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}.items())
    for words in (
        "break:slow",
        "break:callback",
        "break:task",
        "break:future",
        "break:spawn",
        "break:on_end",
        "upstream:half",
    ):
        answer = await world.post(words, stream=True)
        world.answers.append((words, answer.said, frozenset({"reply"})))
    await world.until(lambda: len(world.requests) == world.asked)
    world.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        assert 0 == await world.process.wait()
        await world._reading
    search(world)


async def test_a_start_that_breaks(tmp_path):
    """A plugin that cannot be opened ends the start; what it says of that is not repeated."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    started = f'use = "talkative:Talkative"\nstarted = "break:lifespan {canaries["client_key"]}"'
    text = CONFIG.replace('use = "talkative:Talkative"', started).replace('url = "{store}"', 'url = "embedded:"')
    (tmp_path / "relay.toml").write_text(text.format(**configured(canaries)))
    done = await asyncio.to_thread(_relay, tmp_path, "serve")
    assert 0 != done.returncode
    assert set() == canaries.in_(done.stdout + done.stderr), done
