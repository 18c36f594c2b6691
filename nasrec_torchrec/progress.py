"""Progress bars."""

from tqdm import tqdm

# Seconds between two updates of a bar.
_INTERVAL = 0.5


def progress_bar(
    total: int, what: str, unit: str, scale: bool = False, initial: int = 0, shown: bool = True, leave: bool = True
) -> tqdm:
    """Returns a bar with rate and remaining time, which is shown on a terminal alone: a log would repeat it.

    Args:
        total: number of units of the whole work; without any there is nothing to show.
        what: title of the bar.
        unit: what is counted.
        scale: whether to show thousands as k and millions as M.
        initial: number of units that were done before.
        shown: whether there is a bar at all, which one rank of several shows.
        leave: whether the bar stays when the work is done.
    """
    hidden = None if total and shown else True  # None: hidden unless standard error is a terminal
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=scale,
        initial=initial,
        leave=leave,
        mininterval=_INTERVAL,
        disable=hidden,
    )
