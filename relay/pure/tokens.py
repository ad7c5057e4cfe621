"""How many tokens a text has, estimated: nothing exact is needed where this is used, and nothing is loaded.

Fitted to o200k on mixed Chinese and English: +22 % on Chinese, +54 % on plain English prose, -22 % on code.
"""

from __future__ import annotations


def estimate(text: str) -> float:
    """Tokens, about. A character of more than one byte counts 0.68 for every two bytes beyond its first; others 0.24."""
    wide = (len(text.encode("utf-8", "replace")) - len(text)) / 2
    return 0.68 * wide + 0.24 * (len(text) - wide)
