"""What an upstream and a client get to see of personal data, over sockets."""

from relay.testing import answers, frames

TEXT = "电话13812345678，zhang@example.com。"
LEFT = "电话[phone]，[email]。"


async def test_masked_both_ways(serve):
    """The upstream gets the masked prompt; the client the masked reply, in events that end as they did."""
    chain = [{"use": "auth", "keys": [{"name": "tester", "key": "sk-canary-client-2f6b1c90d7e84a53"}]}, {"use": "pii"}]
    rig = await serve(answers([*TEXT]), chain=chain)
    reply = await rig.ask(messages=[{"role": "user", "content": TEXT}])
    assert {0: LEFT} == reply.texts()
    assert reply.data.endswith(frames.finish() + frames.done())
    assert [{"role": "user", "content": LEFT}] == (await rig.upstream.request()).json["messages"]


async def test_twice_around_moderation(serve):
    """As docs/operating.md has it: neither the prompt nor the reply is shown to moderators with what was masked."""
    chain = [
        {"use": "auth", "keys": [{"name": "tester", "key": "sk-canary-client-2f6b1c90d7e84a53"}]},
        {"use": "pii", "replies": False},
        {"use": "moderation", "moderators": [{"use": "lexicon", "words": ["13812345678"]}]},
        {"use": "pii", "requests": False},
    ]
    rig = await serve(answers([TEXT[:6], TEXT[6:]]), chain=chain)
    reply = await rig.ask(messages=[{"role": "user", "content": TEXT}])
    assert {0: LEFT} == reply.texts()
    assert [{"role": "user", "content": LEFT}] == (await rig.upstream.request()).json["messages"]
