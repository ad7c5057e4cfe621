"""A change that makes a request or an event dearer is seen here, whatever the machine."""

from dataclasses import astuple

import pytest

from bench.instructions import ROOM, counted, kept

pytestmark = pytest.mark.system


def test_a_request_and_an_event_cost_what_they_did() -> None:
    """Within what another build of Python or of a library may change."""
    now, before = counted(), kept()
    shares = [new / old for new, old in zip(astuple(now), astuple(before), strict=True)]
    assert max(shares) <= 1 + ROOM, (
        f"{now} instead of {before}: look with `python -m bench.inside plain 2000 --profile FILE`"
    )
    assert min(shares) >= 1 - ROOM, (
        f"{now} instead of {before}: keep what was gained, `python -m bench.instructions --write`"
    )
