"""The curve of `bench.moderation` as a picture: an SVG, and bars for a terminal."""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """What one setting costs, in calls per 1,000 characters, and how late the text is, in seconds."""

    name: str
    calls: float
    p50_s: float
    p99_s: float


_BAR = 40


def bars(points: Sequence[Point]) -> str:
    """Calls and delays side by side."""
    most_calls = max(point.calls for point in points)
    most_s = max(point.p99_s for point in points)
    lines = []
    for point in points:
        calls = round(_BAR * point.calls / most_calls)
        half, rest = round(_BAR * point.p50_s / most_s), round(_BAR * point.p99_s / most_s)
        lines += [
            f"{point.name:>12}  calls {'█' * calls:{_BAR}} {point.calls:.1f} per 1,000",
            f"{'':>12}  delay {'█' * half + '░' * (rest - half):{_BAR}} p50 {point.p50_s:.2f} s, p99 {point.p99_s:.2f} s",
        ]
    return "\n".join(lines)


_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 30, 50
_MIDDLE = 'text-anchor="middle"'
_END = 'text-anchor="end"'


def svg(points: Sequence[Point], title: str) -> str:
    """Delays over calls: the further left the cheaper, the lower the sooner."""
    calls_step = 10
    most_calls = calls_step * -(-int(max(point.calls for point in points) + 5) // calls_step)
    most_s = float(-(-int(10 * max(point.p99_s for point in points) + 3) // 5)) / 2

    def x(calls: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * calls / most_calls, 1)

    def y(seconds: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * seconds / most_s, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">{title}</text>',
    ]
    for calls in range(0, most_calls + 1, calls_step):
        parts += [
            f'<path d="M{x(calls)} {y(0)}V{y(most_s)}" stroke="#eee"/>',
            f'<text x="{x(calls)}" y="{y(0) + 16}" {_MIDDLE}>{calls}</text>',
        ]
    for halves in range(round(2 * most_s) + 1):
        parts += [
            f'<path d="M{_LEFT} {y(halves / 2)}H{_WIDTH - _RIGHT}" stroke="#eee"/>',
            f'<text x="{_LEFT - 6}" y="{y(halves / 2) + 4}" {_END}>{halves / 2:g}</text>',
        ]
    parts += [
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" {_MIDDLE}>calls per 1,000 characters</text>',
        f'<text transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" {_MIDDLE}>delay, seconds</text>',
    ]
    for colour, label, seconds in (
        ("#1f6fb2", "half of all characters", [point.p50_s for point in points]),
        ("#c2571a", "99 of 100", [point.p99_s for point in points]),
    ):
        places = [(x(point.calls), y(late)) for point, late in zip(points, seconds, strict=True)]
        line = "L".join(f"{left} {top}" for left, top in places)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{left}" cy="{top}" r="4" fill="{colour}"/>' for left, top in places]
        left, top = places[0]
        parts.append(f'<text x="{left + 4}" y="{top + 18}" {_END} fill="{colour}">{label}</text>')
    for point in points:
        parts.append(f'<text x="{x(point.calls) + 7}" y="{y(point.p99_s) - 7}">{point.name}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)
