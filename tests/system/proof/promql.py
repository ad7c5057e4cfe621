"""Queries as text: what Grafana and a time lapse make of them, and what an alert compares.

Read are the queries of this project, not all of PromQL.
"""

import re

LAPSE = 60
"""A minute of a rule is a second of the test: a window of 5 m becomes one of 5 s, which Prometheus, that scrapes once a second
here and not every fifteen, fills as well."""

LEAST_S = 4
"""Of any window, which is what $__rate_interval is at least: four scrapes."""

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_WINDOW = re.compile(rf"\[\s*({_DURATION})\s*(:?)\s*({_DURATION})?\s*\]")
_OFFSET = re.compile(rf"\boffset\s+({_DURATION})")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?::\w+)?\}?")  # $1 is a part of a label_replace

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>\#[^\n]*)|(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<open>[({\[])|(?P<close>[)}\]])
    |(?P<compare>==|!=(?!~)|>=|<=|>|<)|(?P<word>[A-Za-z_:][\w:]*)|(?P<rest>=~|!~|[^\s"'(){}\[\]A-Za-z_:<>=!\#]+|.)""",
    re.VERBOSE,
)
_SETS = ("and", "or", "unless")
_MATCHING = ("on", "ignoring", "group_left", "group_right")


def seconds(duration):
    """`1h30m` → 5400."""
    return sum(int(count) * _SECONDS[unit] for count, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def lapsed(query):
    """The query with its windows and offsets in the time of the lapse."""

    def window(found):
        length, colon, step = found.groups()
        return f"[{_lapsed(length, LEAST_S)}{colon}{_lapsed(step, 1) if step else '1s' if colon else ''}]"

    query = _WINDOW.sub(window, query)
    return _OFFSET.sub(lambda found: f"offset {_lapsed(found[1], 1)}", query)


def _lapsed(duration, least_s):
    return f"{max(least_s, round(seconds(duration) / LAPSE))}s"


def filled(query, **variables):
    """The query with Grafana's variables in. KeyError names one that is not known."""
    known = {"__rate_interval": f"{LEAST_S}s", "__interval": "1s", "__range": "60s", "__range_s": "60", **variables}
    return _VARIABLE.sub(lambda found: known[found[1]], query)


def unfiltered(query):
    """The query with what it leaves out where there is none of it."""
    return re.sub(r"\s*>\s*0(?![\d.])", "", query)


def compared(query):
    """What is compared in an alert: the two sides of every comparison between `and`, `or` and `unless`; numbers are no side."""
    tokens = [(kind, found[kind]) for found in _TOKEN.finditer(query) if (kind := found.lastgroup) != "comment"]
    return list(dict.fromkeys(_compared(tokens)))


def _compared(tokens):
    tokens = _bare(tokens)
    parts = _split(tokens, lambda kind, text: kind == "word" and text in _SETS)
    if len(parts) > 1:
        return [side for part in parts for side in _compared(part)]
    sides = _split(tokens, lambda kind, _: kind == "compare")
    if len(sides) > 1:
        return [side for part in sides for side in _compared(part)]
    text = "".join(text for _, text in tokens).strip()
    return [] if _is_number(text) else [text]


def _bare(tokens):
    """Without the space and the parentheses around all of it, and without how a side is matched with the other one."""
    while True:
        while tokens and tokens[0][0] == "space":
            tokens = tokens[1:]
        while tokens and tokens[-1][0] == "space":
            tokens = tokens[:-1]
        if tokens and tokens[0] == ("word", "bool"):
            tokens = tokens[1:]
        elif len(tokens) > 1 and tokens[0][0] == "word" and tokens[0][1] in _MATCHING:
            after = next((at for at, (kind, _) in enumerate(tokens[1:], 1) if kind != "space"), len(tokens))
            tokens = tokens[_end(tokens, after) + 1 :] if tokens[after][1] == "(" else tokens[1:]
        elif tokens and tokens[0][1] == "(" and _end(tokens, 0) == len(tokens) - 1:
            tokens = tokens[1:-1]
        else:
            return tokens


def _end(tokens, start):
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += {"open": 1, "close": -1}.get(tokens[at][0], 0)
        if depth == 0:
            return at
    raise ValueError(f"a bracket is not closed in {''.join(text for _, text in tokens)}")


def _split(tokens, separates):
    parts, depth = [[]], 0
    for kind, text in tokens:
        depth += {"open": 1, "close": -1}.get(kind, 0)
        if depth == 0 and separates(kind, text):
            parts.append([])
        else:
            parts[-1].append((kind, text))
    return parts


def _is_number(text):
    return re.fullmatch(r"[\s\d.eE+*/()-]*", text) is not None
