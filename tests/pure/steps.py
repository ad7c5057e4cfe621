"""How much work something is, so that it can be told whether it grows faster than what it is given."""

import sys


def steps(work):
    """The lines of Python that run while `work()` does."""
    count = 0

    def counted(frame, event, arg):
        nonlocal count
        count += 1
        return counted

    sys.settrace(counted)
    try:
        work()
    finally:
        sys.settrace(None)
    return count
