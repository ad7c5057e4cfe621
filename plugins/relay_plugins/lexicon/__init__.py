"""`lexicon`: a moderator that knows its phrases.

It reads along, so it does better than windows: it holds back the longest tail that begins some phrase, and nothing more.
"""

from relay_plugins.lexicon.moderator import Lexicon
from relay_plugins.lexicon.phrases import Manner, Phrases
from relay_plugins.lexicon.scanner import PhraseScanner

__all__ = ["Lexicon", "Manner", "PhraseScanner", "Phrases"]
