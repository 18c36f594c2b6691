"""What programs show on a terminal: progress bars, and texts from data in a form that a terminal cannot obey."""

import sys

from tqdm import tqdm


def update_interval() -> float:
    """Returns the seconds between two updates of a progress bar, which are longer if it is written to a log file."""
    return 0.5 if sys.stderr.isatty() else 10.0


def progress_bar(total: int, what: str, unit: str, scale: bool = False) -> tqdm:
    """Returns a bar with rate and remaining time; ``scale`` shows thousands as k and millions as M."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scale, mininterval=update_interval(), disable=not total)


def printable(text: str) -> str:
    r"""Returns a text from a file or a command line as a single line without control characters.

    A terminal obeys control characters: they color, move and erase what it shows.

    Example:
        >>> printable("a\tb \x1b[31mred")
        'a b \\x1b[31mred'
    """
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
