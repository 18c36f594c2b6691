"""Progress bars."""

import sys

from tqdm import tqdm


def update_interval() -> float:
    """Seconds between two updates of a progress bar: few lines where they end in a log file."""
    return 0.5 if sys.stderr.isatty() else 10.0


def progress_bar(total: int, what: str, unit: str, scale: bool = False) -> tqdm:
    """A bar with rate and remaining time; ``scale`` shows thousands as k, millions as M."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scale, mininterval=update_interval(), disable=not total)
