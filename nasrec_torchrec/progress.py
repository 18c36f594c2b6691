"""Progress bars."""

import sys

from tqdm import tqdm


def update_interval() -> float:
    """Returns the seconds between two updates of a progress bar, which are longer if it is written to a log file."""
    return 0.5 if sys.stderr.isatty() else 10.0


def progress_bar(total: int, what: str, unit: str, scale: bool = False) -> tqdm:
    """Returns a bar with rate and remaining time; ``scale`` shows thousands as k and millions as M."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scale, mininterval=update_interval(), disable=not total)
