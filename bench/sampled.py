"""`relay` with a sampler inside: `python -m bench.sampled FILE serve --config relay.toml`.

Five hundred times for each second of processor time it is noted whether the relay was counting: whether a function of
`relay.metrics`, or of prometheus-client, was running. At SIGUSR1 the two sums (in there, all) are written to FILE as JSON
and begun anew.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from relay.cli import main

PERIOD_S = 0.002
_COUNTING = ("/relay/metrics/", "/prometheus_client/")


class Sampler:
    """Counts samples."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counting = self._all = 0

    def sample(self, signum: int, frame: FrameType | None) -> None:
        self._all += 1
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in _COUNTING):
                self._counting += 1
                return
            frame = frame.f_back

    def write(self, signum: int, frame: FrameType | None) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps([self._counting, self._all]))
        part.replace(self._file)
        self._counting = self._all = 0


if __name__ == "__main__":
    sampler = Sampler(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR1, sampler.write)
    signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)
    main()
