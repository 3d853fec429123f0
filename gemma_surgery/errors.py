"""The one error type that users see."""

from __future__ import annotations


class SurgeryError(Exception):
    """A problem that the user can act on: `[where] need, got, in which file or tensor`.

    Args:
        where: the operation or part that noticed the problem, e.g. ``quantize`` or ``checkpoint``.
        message: one sentence: what was needed, what was found, and in which file or tensor.
        hint: what to do about it, printed on a line of its own.
    """

    def __init__(self, where: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = f"[{self.where}] {self.message}"
        return f"{text}\nhint: {self.hint}" if self.hint else text


class MissingProfileError(SurgeryError):
    """A step needs measured statistics and was given none."""


class SurgeryErrors(SurgeryError):
    """Several problems found together, so that the user mends them in one go."""

    def __init__(self, errors: list[SurgeryError]) -> None:
        super().__init__(errors[0].where, f"{len(errors)} problems found")
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)
