"""Print what pyproject.toml requires, one requirement a line, so that `make` needs no second list of pins.

Usage: ``python tools/requirements.py [EXTRA ...]``
Printed are the build requirements, the run-time dependencies and the named extras.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
# scikit-build-core asks for these itself when pip isolates the build; here the build is not isolated.
BUILD_TOOLS = ["cmake>=3.25", "ninja>=1.11"]


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return build requirements, dependencies and the named extras of a project, in file order.

    Raises:
        SystemExit: an extra is not defined in the file.
    """
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    optional = data["project"].get("optional-dependencies", {})
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        sys.exit(f"[requirements] need extras among {sorted(optional)}, got {unknown} for `{pyproject}`")
    found = [*data["build-system"]["requires"], *BUILD_TOOLS, *data["project"]["dependencies"]]
    for extra in extras:
        found += optional[extra]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(PYPROJECT, sys.argv[1:])))
