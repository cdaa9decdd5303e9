"""The deadline of a request, from its header `X-Request-Timeout`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from registry.errors import invalid_field

TIMEOUT = b"x-request-timeout"
TIMEOUT_FORM = "seconds, a number greater than 0 such as 2 or 0.25"
_SECONDS = re.compile(rb"[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


def request_deadline(headers: Mapping[bytes, bytes]) -> float | None:
    """Return the time of `time.monotonic` after which the caller no longer waits, None without the header.

    Raises `Invalid` for a value that is not a number of seconds.
    """
    if (value := headers.get(TIMEOUT)) is None:
        return None
    if _SECONDS.fullmatch(value) is None or not (seconds := float(value)):
        text = value.decode("latin-1")[:100]
        raise invalid_field(
            "X-Request-Timeout",
            f"X-Request-Timeout is {text!r}; send {TIMEOUT_FORM}",
            TIMEOUT_FORM,
        )
    return time.monotonic() + seconds
