"""Progress bars."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

# Seconds between two updates of a bar on a terminal, and between two lines of a log.
_INTERVAL, _LOG_INTERVAL = 0.5, 60.0


def progress_bar(
    total: int, what: str, unit: str, scale: bool = False, initial: int = 0, shown: bool = True, leave: bool = True
) -> tqdm:
    """Returns a bar with rate and remaining time; where standard error is no terminal, it is a line every minute.

    Args:
        total: number of units of the whole work; without any there is nothing to show.
        what: title of the bar.
        unit: what is counted.
        scale: whether to show thousands as k and millions as M.
        initial: number of units that were done before.
        shown: whether there is a bar at all, which one rank of several shows.
        leave: whether the bar stays when the work is done.
    """
    how: dict[str, Any] = {"mininterval": _INTERVAL, "leave": leave}
    if not sys.stderr.isatty():
        # What takes less than a minute leaves no line at all.
        how = {"mininterval": _LOG_INTERVAL, "delay": _LOG_INTERVAL, "maxinterval": _LOG_INTERVAL, "leave": False}
        how |= {
            "file": _Lines(sys.stderr),
            "bar_format": "{desc}: {percentage:.0f}% of {total_fmt}, {rate_fmt}, {remaining} left{postfix}",
        }
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=scale,
        initial=initial,
        disable=not (total and shown),
        **how,
    )


class _Lines:
    """A stream on which each state of a bar becomes a line, instead of replacing the one before."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if state := text.strip():
            self._stream.write(f"{state}\n")

    def flush(self) -> None:
        self._stream.flush()
