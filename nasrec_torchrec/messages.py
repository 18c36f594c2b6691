"""Parts of messages: a hint at the name that was meant, and texts from data in a form that a terminal cannot obey."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], form: str = "{}") -> str:
    """Returns the end of an error message: "; did you mean X?", or nothing if no name is close.

    Args:
        name: name that was given.
        names: names that there are.
        form: how a name is written, ``--{}`` for a flag.
    """
    close = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"; did you mean {form.format(close[0])}?" if close else ""


def why(error: Exception) -> str:
    """Returns what an exception says, without the path and the number that the system's errors repeat.

    Example:
        >>> why(FileNotFoundError(2, "No such file or directory", "a.yaml"))
        'No such file or directory'
    """
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def printable(text: str) -> str:
    r"""Returns a text from a file or a command line as a single line without control characters.

    A terminal obeys control characters: they color, move and erase what it shows.

    Example:
        >>> printable("a\tb \x1b[31mred")
        'a b \\x1b[31mred'
    """
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
