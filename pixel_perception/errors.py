"""The one error that users of this package see: a code for programs and one sentence for people."""

from __future__ import annotations

CODES = (
    "INVALID_QUERY", "INVALID_IMAGE", "INVALID_BUNDLE", "NOT_ACTIVE", "NO_IMAGE", "NO_DEPTH", "TF_ERROR", "TIMEOUT",
    "PREEMPTED", "CANCELLED", "OUT_OF_MEMORY", "NOTHING_FOUND", "INTERNAL",
)  # fmt: skip
"""Every code there is; the action's result carries the same names."""


class PerceptionError(Exception):
    """A request that cannot be answered. `code` is one of `CODES`; `message` names the field, topic or file and what was
    expected there."""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"error code {code!r} is not one of {', '.join(CODES)}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
