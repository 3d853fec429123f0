"""What one rendering of a chat template may cost: far more than any conversation needs."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from jinja2.exceptions import SecurityError

# Characters of any one value, and elements of all lists in it.
MAX_SIZE = 1 << 24
MAX_ELEMENTS = 1 << 19
# Characters or elements of all values that one rendering makes, output included.
MAX_TOTAL = 1 << 27
# Rounds of loops and calls of functions, filters and macros.
MAX_STEPS = 1_000_000
# Of the processor: a machine that is busy with other things is no fault of the template.
MAX_SECONDS = 5.0
MAX_INTEGER_BITS = 4096
MAX_EXPONENT = 64

# Filters and tests that look only at the outside of what they are given.
HARMLESS = frozenset(
    (
        *("length", "count", "first", "last", "default", "d", "list", "map", "reverse", "items", "attr"),
        *("select", "selectattr", "reject", "rejectattr", "random", "abs", "int", "float", "round"),
        *("is defined", "is undefined", "is none", "is boolean", "is true", "is false", "is number"),
        *("is string", "is mapping", "is sequence", "is iterable", "is callable", "is integer", "is float"),
    )
)
# Filters and methods whose result can be the product of what they are given.
MULTIPLYING = frozenset(
    (
        *("replace", "join", "indent", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"),
        *("tojson", "format", "batch", "slice", "sum"),
    )
)
# A width of six digits, or one that comes from an argument.
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-#0 +\d.]*(\*|\d{6})")
_WIDE_BRACES = re.compile(r"\{[^{}]*([:!][^{}]*\{|\d{6})")


class Budget:
    """How much one rendering may still do.

    Every method raises `SecurityError` with what there was too much of.
    """

    def __init__(self) -> None:
        self._steps = self._total = 0
        self._deadline = time.thread_time() + MAX_SECONDS

    def step(self, size: int = 0) -> None:
        """Count a call or one round of a loop, which prints `size` characters of the template's own text."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS:,} steps")
        if time.thread_time() > self._deadline:
            raise SecurityError(f"more than {MAX_SECONDS:.0f} seconds")
        self._spend(size)

    def result(self, value: Any) -> Any:
        """Count a value that was made, and return it."""
        if isinstance(value, int):
            if value.bit_length() > MAX_INTEGER_BITS:
                raise SecurityError("a number that is too large")
        elif isinstance(value, Sized):
            self._spend(len(value))
        return value

    def printed(self, value: Any) -> Any:
        """Count a value that is about to be printed, and return it."""
        self._spend(printed_size(value))
        return value

    def _spend(self, size: int) -> None:
        check_size(size)
        self._total += size
        if self._total > MAX_TOTAL:
            raise SecurityError(f"more than {MAX_TOTAL:,} characters and elements")


def check_call(name: str, values: Sequence[Any]) -> None:
    """Refuse a filter, test, method or function that would make or look through too much.

    Args:
        name: its name.
        values: all that it is given, the value it is applied to first.

    Raises:
        SecurityError: before the work is done.
    """
    if any(isinstance(value, int) and abs(value) > MAX_SIZE for value in values):
        raise SecurityError("a number that is too large")
    if name in HARMLESS or not values:
        return
    if name == "format" and isinstance(values[0], str):
        check_percent_format(values[0])
    if name == "replace" and len(values) > 2:
        # What is searched for does not make the result longer.
        values = [values[0], *values[2:]]
    sizes = [abs(value) if isinstance(value, int) else printed_size(value) for value in values]
    bound = 1
    for size in sizes:
        bound = bound * max(1, size) if name in MULTIPLYING else bound + size
    check_size(bound)


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operator whose result would be too large: `+`, `*`, `**` or `%`.

    Raises:
        SecurityError: before the work is done.
    """
    if operator == "**":
        if not isinstance(right, (int, float)) or abs(right) > MAX_EXPONENT:
            raise SecurityError(f"an exponent over {MAX_EXPONENT}")
    elif operator == "%" and isinstance(left, str):
        check_percent_format(left)
        check_size(len(left) + printed_size(right))
    elif operator == "*" and (isinstance(left, Sized) or isinstance(right, Sized)):
        count, sized = (left, right) if isinstance(right, Sized) else (right, left)
        check_size(len(sized) * (abs(count) if isinstance(count, int) else 1))
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        check_size(len(left) + len(right))


def check_percent_format(form: str) -> None:
    """Refuse a `%` format whose widths are large or come from its arguments.

    Raises:
        SecurityError: naming the reason.
    """
    if _WIDE_PERCENT.search(form.replace("%%", "")):
        raise SecurityError("a format with a width that is too large")


def check_braces_format(form: str) -> None:
    """Refuse a `str.format` whose widths are large or come from its arguments.

    Raises:
        SecurityError: naming the reason.
    """
    if _WIDE_BRACES.search(form):
        raise SecurityError("a format with a width that is too large")


def check_size(size: int) -> None:
    """Refuse a value that is too large.

    Raises:
        SecurityError: naming the limit.
    """
    if size > MAX_SIZE:
        raise SecurityError(f"a value of more than {MAX_SIZE:,} characters")


def printed_size(value: Any) -> int:
    """Return about how many characters a value prints as; a list that is in it twice counts twice.

    Printing, comparing and hashing all visit that much, which a few lines of nested lists can make endless.

    Raises:
        SecurityError: more than `MAX_ELEMENTS` elements.
    """
    if isinstance(value, str):
        return len(value)
    size = elements = 0
    pending = [value]
    while pending:
        item = pending.pop()
        size += 1
        if isinstance(item, (str, bytes)):
            size += len(item)
        elif isinstance(item, (Mapping, Sequence)) and not isinstance(item, range):
            elements += len(item)
            if elements > MAX_ELEMENTS:
                raise SecurityError(f"a value of more than {MAX_ELEMENTS:,} elements")
            pending += item
            if isinstance(item, Mapping):
                pending += item.values()
    return size
