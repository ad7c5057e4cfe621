"""Whether an expression shows a fault: by what it gave while all was well, and what it gave then."""

from dataclasses import dataclass, field

# Times the spread while all was well, and of the value itself: what is farther off is no noise.
SPREADS = 1.5
SHARE = 0.1
# A rate goes on to fall for its window after a fault; what is asked of a phase is asked until then.
AFTER_S = 2.0
LEAST_CALM = 3


@dataclass
class Evidence:
    """Of one expression about one relay. calm: whether there was data while all was well. moved: fault → by how many spreads a
    series was off. come: the faults in which a series came that was not there before."""

    job: str
    calm: bool = False
    moved: dict[str, float] = field(default_factory=dict)
    come: list[str] = field(default_factory=list)

    @property
    def by(self):
        """Where it moved most: (fault, how far)."""
        return max(self.moved.items(), key=lambda item: item[1]) if self.moved else (None, 0.0)


def evidence(prometheus, query, timeline):
    """What an expression shows of one relay."""
    found = Evidence(timeline.job)
    series = prometheus.between(query, timeline.calm.start, timeline.end + AFTER_S)
    for labels, values in series.items():
        if dict(labels).get("job", timeline.job) != timeline.job:
            continue
        before = [value for at, value in values if timeline.calm.start <= at <= timeline.calm.over]
        found.calm |= len(before) >= LEAST_CALM
        for fault in timeline.faults:
            during = [value for at, value in values if fault.start + 1 <= at <= fault.over + AFTER_S]
            if during and len(before) < LEAST_CALM:
                found.come.append(fault.name)
            elif during:
                off = _off(before, during)
                if off > 1:
                    found.moved[fault.name] = max(off, found.moved.get(fault.name, 0.0))
    return found


def _off(before, during):
    """How far the farthest value is off what was before, in margins."""
    low, high = min(before), max(before)
    margin = max(SPREADS * (high - low), SHARE * max(abs(low), abs(high)), 1e-9)
    return max(max(during) - high, low - min(during)) / margin
