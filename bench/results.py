"""What a run of the benches measured, read back from its JSON, and the ratios that are made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from work import OURS


@dataclass(frozen=True)
class Measurement:
    """One implementation of one case.

    Attributes:
        who: `ours`, or what it is compared with.
        seconds: of one call doing the whole work, from the median round.
        rounds: that were timed.
        share: of the work that was done; `seconds` was scaled up by it.
        work: bytes and operations, as in `measuring.Work`.
        limits: as in `limits.Limits`, measured around it.
    """

    who: str
    seconds: float
    rounds: int
    share: float
    work: dict
    limits: dict

    @property
    def roof_seconds(self) -> float:
        """What the limits allow at best; 0 where there is none."""
        return max(self._reading, self._computing)

    @property
    def roof_name(self) -> str:
        """The limit that counts."""
        if not self.roof_seconds:
            return ""
        return "read" if self._reading >= self._computing else "float32"

    @property
    def of_limit(self) -> float | None:
        """How close to the limit: 1 is as fast as it allows."""
        return self.roof_seconds / self.seconds if self.roof_seconds else None

    @property
    def bytes_per_second(self) -> float:
        """Of what the rate is given in; 0 where operations count."""
        moved = self.work["rate_bytes"] or (self.work["size_bytes"] if self.roof_name == "read" else 0)
        return moved / self.seconds

    @property
    def _reading(self) -> float:
        return self.work["size_bytes"] / self.limits["read_per_second"]

    @property
    def _computing(self) -> float:
        return self.work["operations"] / self.limits["float_per_second"]


@dataclass(frozen=True)
class Case:
    """Ours, and what it was compared with in the same run."""

    op: str
    case: str
    dtype: str
    ours: Measurement
    others: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        """Unique in a run."""
        return " | ".join(part for part in (self.op, self.case, self.dtype) if part)

    def ratios(self) -> dict[str, float]:
        """Share of the limit, and how many times as fast as each of the others; larger is better."""
        found = {} if self.ours.of_limit is None else {"of the limit": self.ours.of_limit}
        return found | {f"over {other.who}": other.seconds / self.ours.seconds for other in self.others}


def read_run(path: Path) -> tuple[dict, list[Case]]:
    """Return the machine and the cases of a run, in the order of measuring.

    Raises:
        SystemExit: the file is no such run.
    """
    try:
        document = json.loads(path.read_text())
        machine, benchmarks = document["machine_info"], document["benchmarks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"need the JSON of a bench run, got {error!r} from `{path}`") from error
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for benchmark in benchmarks:
        stats = benchmark["stats"]
        measurement = measurement_of(benchmark["extra_info"], stats["median"], stats["rounds"])
        work = measurement.work
        found.setdefault((work["op"], work["case"], work["dtype"]), []).append(measurement)
    cases = []
    for key, measurements in found.items():
        ours = [each for each in measurements if each.who == OURS]
        others = tuple(each for each in measurements if each.who != OURS)
        if ours:
            cases.append(Case(*key, ours[0], others))
    return machine, cases


def measurement_of(info: dict, median_seconds: float, rounds: int) -> Measurement:
    """A measurement from what `measuring.Measure` notes and the rounds that it times."""
    return Measurement(
        who=info["who"],
        seconds=median_seconds / info["calls"] / info["share"],
        rounds=rounds,
        share=info["share"],
        work={key: info[key] for key in ("op", "case", "dtype", "size_bytes", "operations", "rate_bytes")},
        limits={key: info[key] for key in ("read_per_second", "float_per_second", "int8_per_second")},
    )
