"""Compares the ratios of a bench run with the committed ones; no absolute time is ever compared.

A ratio is a share of the limit or a factor over stock MLX, each measured within one run. Of several runs the
best ratio of each case counts, so that a disturbance has to strike twice. Baselines are kept per instruction
set. Exit code 1 and one line per regression where a ratio fell by more than its tolerance.

Usage: ``python bench/check.py RUN.json... [--baseline bench/baseline.json] [--write]``
``--write`` puts the medians of the runs' ratios into the baseline instead: one lucky run is no yardstick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

from results import Case, read_run

BASELINE = Path(__file__).with_name("baseline.json")
# A ratio may fall by this share: the limit is steady, other code and short runs are less so.
LIMIT_TOLERANCE = 0.15
OTHER_TOLERANCE = 0.30
# Below, something else than the limit bounds a case; above, its data are found in caches.
COMPARED_OF_LIMIT = (0.1, 1.0)

Ratios = dict[str, dict[str, float]]


def ratios_of(runs: list[list[Case]], choose: Callable[[list[float]], float]) -> Ratios:
    """Of each ratio the one that `choose` takes from those of all runs."""
    found: dict[str, dict[str, list[float]]] = {}
    for cases in runs:
        for case in cases:
            known = found.setdefault(case.name, {})
            for key, value in case.ratios().items():
                known.setdefault(key, []).append(value)
    return {name: {key: choose(values) for key, values in known.items()} for name, known in found.items()}


def tolerance(key: str) -> float:
    """The share by which a ratio may fall."""
    return LIMIT_TOLERANCE if key == "of the limit" else OTHER_TOLERANCE


def compare(baseline: Ratios, measured: Ratios) -> list[str]:
    """One line per regression, and per ratio that was not measured again."""
    lines = []
    for name, expected in baseline.items():
        for key, value in expected.items():
            if key == "of the limit" and not COMPARED_OF_LIMIT[0] <= value <= COMPARED_OF_LIMIT[1]:
                continue
            least = value * (1 - tolerance(key))
            got = measured.get(name, {}).get(key)
            if got is None:
                lines.append(f"{name}: need a measurement {key}, got none")
            elif got < least:
                lines.append(
                    f"{name}: need {least:.3g} {key} (baseline {value:.3g} less {tolerance(key):.0%}),"
                    f" got {got:.3g}"
                )
    return lines


def read_baseline(path: Path, kernels: str) -> Ratios:
    """The ratios of an instruction set, or of Metal.

    Raises:
        SystemExit: there are none.
    """
    document = json.loads(path.read_text()) if path.exists() else {}
    if kernels not in document:
        raise SystemExit(
            f"need a baseline for `{kernels}`, got {', '.join(f'`{key}`' for key in document) or 'none'}"
            f" in `{path}`\nhint: `make bench-baseline` on a quiet machine"
        )
    return document[kernels]["ratios"]


def write_baseline(path: Path, machine: dict, ratios: Ratios) -> None:
    """Put the ratios of an instruction set in the place of those that were there."""
    document = json.loads(path.read_text()) if path.exists() else {}
    about = {key: machine[key] for key in ("date", "commit", "processor", "cores", "system", "mlx", "blas")}
    rounded = {
        name: {key: float(f"{value:.4g}") for key, value in found.items()} for name, found in ratios.items()
    }
    document[machine["kernels"]] = {"machine": about, "ratios": rounded}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    runs = [read_run(path) for path in arguments.runs]
    machine = runs[-1][0]
    measured = ratios_of([cases for _, cases in runs], median if arguments.write else max)
    if not measured:
        raise SystemExit("need cases in the run, got none")
    if arguments.write:
        write_baseline(arguments.baseline, machine, measured)
        print(f"{len(measured)} cases for {machine['kernels']} in {arguments.baseline}")
        return
    baseline = read_baseline(arguments.baseline, machine["kernels"])
    regressions = compare(baseline, measured)
    for line in regressions:
        print(line)
    for name in sorted(measured.keys() - baseline.keys()):
        print(f"note: {name} is not in the baseline")
    if regressions:
        raise SystemExit(1)
    print(f"{len(baseline)} cases within their tolerance")


if __name__ == "__main__":
    main()
