"""A fake of Tencent Cloud's text moderation, so that anyone can try the relay without an account.

It takes what the service takes, refuses what it refuses, in its words and codes, and answers in its shapes; what it finds
are the words it was given. The official SDK cannot tell it from the service (`tests/plugins/test_tencent_fake.py`).

    async with Fake(words=[{"word": "forbidden", "label": "Porn"}], p50_ms=60, p99_ms=400) as fake:
        ...  # point the relay, or the SDK, at fake.endpoint
        fake.change(outage="black_hole")

On its own it is `python -m relay_plugins.tencent.fake --help`.

What it does not know: the meaning of a text (a word is found where it stands, exactly as written), what the service
remembers of a session, and what the service says where its documentation is silent.
"""

from relay_plugins.tencent.fake.ask import Ask
from relay_plugins.tencent.fake.server import SECRET_ID, SECRET_KEY, Fake
from relay_plugins.tencent.fake.settings import Settings, Word

__all__ = ["SECRET_ID", "SECRET_KEY", "Ask", "Fake", "Settings", "Word"]
