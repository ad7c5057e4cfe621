"""A word list to measure with: 5,000 phrases of 2 to 6 characters, drawn with a fixed seed.

4,500 are made of the 3,500 commonest Han characters (GB 2312's first level stands in for the frequency list), 500 are
made-up Latin words. A list with one common prefix would measure the best case only.
"""

import random
from collections.abc import Iterable, Sequence

_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwz"


def phrases(count: int = 5000, unheard: str = "") -> list[str]:
    """The list, the same every time. Not one of its phrases begins with a character of `unheard`."""
    draw = random.Random(7)
    rows = range(0xB0, 0xD8)
    han = [
        bytes((row, cell)).decode("gb2312")
        for row in rows
        for cell in range(0xA1, 0xFF)
        if (row, cell) < (rows[-1], 0xFA)
    ][:3500]
    found: set[str] = set()

    def keep(phrase: str) -> None:
        if phrase[0] not in unheard.lower():
            found.add(phrase)

    while len(found) < count // 10:
        keep("".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(draw.randint(1, 3))))
    while len(found) < count:
        keep("".join(draw.choices(han, k=draw.randint(2, 6))))
    return sorted(found)


def held(tokens: Sequence[str], listed: Iterable[str]) -> float:
    """The share of the tokens, said again and again, that end where a phrase may have begun: they wait for the next one."""
    heads = {phrase[:size] for phrase in listed for size in range(1, len(phrase))}
    longest = max(map(len, heads))
    said = "".join(tokens).lower()[-longest:]
    waiting = 0
    for token in tokens:
        said = (said + token.lower())[-longest:]
        waiting += any(said[-size:] in heads for size in range(1, longest + 1))
    return waiting / len(tokens)
