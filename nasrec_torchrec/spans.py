"""Spans of time, as people write and read them."""

import re

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")


def span(seconds: float) -> str:
    """Returns a span for people, such as ``2 min 5 s``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def seconds_of(text: str) -> float | None:
    """Returns the seconds of a span such as ``90s`` or ``2h``; None if it is none, or empty."""
    match = _SPAN.fullmatch(text.strip())
    return float(match[1]) * _UNITS[match[2]] if match and float(match[1]) else None
