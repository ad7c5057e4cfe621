"""Cost against streams, as a picture: a PNG."""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

Curve = Sequence[tuple[int, float]]

# Drawn so many times larger than it is kept, which smooths its lines.
_SCALE: Final = 4
_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 110, 48, 56
_COLOURS: Final = ("#1f6fb2", "#4a4a4a", "#c2571a")
_LINE = 16
_GRID, _INK = "#e4e4e4", "#222222"


class Plot:
    """A drawing with streams along it, on a logarithmic scale, and µs up it. Places are in points of the kept picture."""

    def __init__(self, streams: Sequence[int], most_us: float) -> None:
        self._image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "#ffffff")
        self._draw = ImageDraw.Draw(self._image)
        self._least, self._most = log(min(streams)), log(max(streams))
        self._most_us = most_us

    def place(self, streams: int, us: float) -> tuple[float, float]:
        along = (log(streams) - self._least) / max(1e-9, self._most - self._least)
        return (
            _LEFT + along * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - us / self._most_us * (_HEIGHT - _TOP - _BOTTOM),
        )

    def line(self, places: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in places]
        self._draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")

    def dot(self, place: tuple[float, float], colour: str) -> None:
        self._draw.circle((place[0] * _SCALE, place[1] * _SCALE), 4 * _SCALE, fill=colour)

    def text(self, place: tuple[float, float], words: str, *, anchor: str, size: int = 13, colour: str = _INK) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self._draw.text((place[0] * _SCALE, place[1] * _SCALE), words, fill=colour, font=font, anchor=anchor)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).quantize(64).save(path, optimize=True)


def plot(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """One line for each of what is measured: (streams, µs for an event)."""
    streams = sorted({point[0] for curve in curves.values() for point in curve})
    highest = max(point[1] for curve in curves.values() for point in curve)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000) if highest / step <= 8)
    most_us = step * (int(highest / step) + 1)
    drawing = Plot(streams, most_us)
    drawing.text((_LEFT, 20), title, anchor="lm", size=15)
    for us in range(0, most_us + 1, step):
        drawing.line([drawing.place(streams[0], us), drawing.place(streams[-1], us)], _GRID, 1)
        drawing.text((_LEFT - 8, drawing.place(streams[0], us)[1]), str(us), anchor="rm")
    for count in streams:
        foot = drawing.place(count, 0)
        drawing.line([foot, drawing.place(count, most_us)], _GRID, 1)
        drawing.text((foot[0], foot[1] + 14), f"{count:,}", anchor="mm")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    drawing.text((middle, _HEIGHT - 16), "streams at a time", anchor="mm")
    last: dict[str, float] = {}
    for (name, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        places = [drawing.place(*point) for point in sorted(curve)]
        drawing.line(places, colour, 2)
        for place in places:
            drawing.dot(place, colour)
        last[name] = places[-1][1]
    for name, height in _apart(last).items():
        colour = _COLOURS[list(curves).index(name)]
        drawing.text((_WIDTH - _RIGHT + 10, height), name, anchor="lm", colour=colour)
    drawing.save(path)


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Where names stand that would stand on one another: from the lowest up, each a line above the one before."""
    placed: dict[str, float] = {}
    free = float(_HEIGHT)
    for name in sorted(heights, key=lambda each: heights[each], reverse=True):
        placed[name] = min(heights[name], free)
        free = placed[name] - _LINE
    return placed
