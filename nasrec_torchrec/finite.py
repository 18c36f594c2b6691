"""Numbers that may not be finite: a NaN or an infinity is never the best, and is never written to a JSON file."""

import json
import math
from typing import Any


def order(value: float | None) -> tuple[bool, float]:
    """Returns a sort key, lowest first; whatever is not a finite number comes last."""
    return (False, value) if value is not None and math.isfinite(value) else (True, 0.0)


def is_better(value: float | None, best: float | None, higher: bool = False) -> bool:
    """Returns whether a value is better than the best one so far.

    Args:
        value: value to compare.
        best: best value so far.
        higher: whether a higher value is better.
    """
    if higher:
        value, best = (None if number is None else -number for number in (value, best))
    return order(value) < order(best)


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns JSON text that every reader accepts: numbers that are not finite become ``null``."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Returns a JSON value in which every number that is not finite is replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    return value
