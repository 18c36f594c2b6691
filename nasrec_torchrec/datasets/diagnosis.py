"""Why the lines of a text file are not the rows that somebody expects: a guess, and how the file begins."""

from dataclasses import replace

import pyarrow as pa

from nasrec_torchrec.datasets import lines
from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.sources import Piece, Source

_LINES, _SHOWN, _WIDTH = 500, 3, 100


def guesses(source: Source, text_format: TextFormat) -> list[str]:
    """Returns what is probably wrong with the delimiter, the quoting or the encoding of a text file, and the remedy."""
    head = lines.first_lines(source, _LINES)
    found = (_encoding(head), _delimiter(head, text_format), _quoting(head, text_format))
    return [guess for guess in found if guess]


def diagnosis(source: Source, text_format: TextFormat) -> str:
    """Returns these guesses, and the first three lines as they are seen, in one line."""
    shown = ", ".join(
        f"line {number} {line[:_WIDTH].decode('utf-8', 'backslashreplace')!r}"
        for number, line in enumerate(lines.first_lines(source, _SHOWN), start=1)
    )
    return "; ".join([*guesses(source, text_format), f"the file begins with {shown}"])


def _encoding(head: list[bytes]) -> str:
    try:
        b"\n".join(head).decode()
    except UnicodeDecodeError:
        return "it is not in UTF-8 but perhaps in Latin-1: convert it, for instance by iconv -f LATIN1 -t UTF-8"
    return ""


def _delimiter(head: list[bytes], text_format: TextFormat) -> str:
    guess = lines.guess_delimiter(head)
    if guess in (None, text_format.delimiter):
        return ""
    return f"its lines are divided by {guess!r} and not by {text_format.delimiter!r}: pass --delimiter {_quoted(guess)}"


def _quoting(head: list[bytes], text_format: TextFormat) -> str:
    if not any(b'"' in line for line in head):
        return ""
    other = replace(text_format, quoting=not text_format.quoting)
    if _rejected(head, other) >= _rejected(head, text_format):
        return ""
    return f"more of its lines are rows with --quoting {str(other.quoting).lower()}"


def _rejected(head: list[bytes], text_format: TextFormat) -> int:
    columns = head[0].count(text_format.delimiter.encode()) + 1
    names = [str(number) for number in range(columns)]
    try:
        return len(lines.read_lines(Piece(b"\n".join(head), 0, 2, 0), names, [], text_format)[2])
    except (ValueError, pa.ArrowException):
        return len(head)


def _quoted(delimiter: str | None) -> str:
    return "'\\t'" if delimiter == "\t" else f"'{delimiter}'"
