"""A word list to measure with: 5,000 phrases of 2 to 6 characters, drawn with a fixed seed.

4,500 are made of the 3,500 commonest Han characters (GB 2312's first level stands in for the frequency list), 500 are
made-up Latin words. A list with one common prefix would measure the best case only.
"""

import random

_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwz"


def phrases(count: int = 5000) -> list[str]:
    """The list, the same every time."""
    draw = random.Random(7)
    rows = range(0xB0, 0xD8)
    han = [
        bytes((row, cell)).decode("gb2312")
        for row in rows
        for cell in range(0xA1, 0xFF)
        if (row, cell) < (rows[-1], 0xFA)
    ][:3500]
    found: set[str] = set()
    while len(found) < count // 10:
        found.add("".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(draw.randint(1, 3))))
    while len(found) < count:
        found.add("".join(draw.choices(han, k=draw.randint(2, 6))))
    return sorted(found)
