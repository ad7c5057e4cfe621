"""Debian's Redis with an append-only file is killed and started again while a relay serves; what the books say then."""

import asyncio

import pytest
from lives import audit_of_survivor, charges, outlive_its_store
from servers import redis_single

from relay.serve import allow_many_files

allow_many_files()


async def kill_redis(folder, appendfsync, *, times, seed, audit, **options):
    def again():
        running.main.kill()
        running.main.start()

    async def kill(life):
        await asyncio.to_thread(again)

    with redis_single(appendonly="yes", appendfsync=appendfsync) as running:
        return await outlive_its_store(folder, kill, times=times, seed=seed, store=running.url, audit=audit, **options)


async def audit_of_some(ledger, clients):
    """Some of the last bookings before a death may be lost; nothing is wrong with the others, and nobody pays more."""
    lost = 0
    for account, all_asked in clients.asked.items():
        found = await charges(ledger, account)
        for asked in all_asked:
            taken, _ = found.pop(asked.id, (0, []))
            assert taken <= asked.prompt + asked.got
            lost += bool(asked.got) and taken < asked.prompt + asked.got
        assert {} == found
    print(f"lost {lost} bookings of {sum(map(len, clients.asked.values()))}")


TIMES = [pytest.param(5, marks=pytest.mark.system), pytest.param(50, marks=pytest.mark.long)]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("on_store_failure", ["closed", "open"])
async def test_killed(tmp_path, times, on_store_failure):
    """With `appendfsync always` nothing is lost: every request is charged to the character."""
    audit = audit_of_survivor
    _, clients = await kill_redis(
        tmp_path, "always", times=times, seed=times, audit=audit, on_store_failure=on_store_failure
    )
    if on_store_failure == "open":
        assert all(asked.whole for all_asked in clients.asked.values() for asked in all_asked)


@pytest.mark.parametrize("times", TIMES)
async def test_killed_as_it_is_configured_by_default(tmp_path, times):
    """With `appendfsync everysec` what it answered while the disk was at work may be lost, and never a balance's sum."""
    await kill_redis(tmp_path, "everysec", times=times, seed=times, audit=audit_of_some)
