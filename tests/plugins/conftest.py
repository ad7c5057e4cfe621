"""What the tests of several plugins share."""

from collections.abc import AsyncIterator

import pytest

from relay_plugins.tencent.fake import Fake


@pytest.fixture
async def tms() -> AsyncIterator[Fake]:
    """A fake of Tencent Cloud's text moderation that remembers its calls; what it finds, a test adds by `change`."""
    async with Fake(keep_calls=10_000) as fake:
        yield fake
