"""Numbers and dates as some countries and programs write them, 51,88 and 01.03.2026, which are not read as such."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import numpy as np

COMMA, DATE = "number with a comma", "date, not ISO"
_COMMA = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+\s*$")
_WHOLE = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)\s*$")
_PERCENTAGE = re.compile(r"\s*[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)\s*%\s*$")
# In the notation of strptime, which Python and DuckDB share. The first one that fits wins: where day and month cannot
# be told apart, that of more countries.
_DATES = (
    *(form for s in "/.-" for form in (f"%d{s}%m{s}%Y", f"%m{s}%d{s}%Y", f"%Y{s}%m{s}%d")),
    *(form for s in "/.-" for form in (f"%d{s}%m{s}%y", f"%m{s}%d{s}%y")),
    *(f"%d{s}{month}{s}{year}" for s in " -/" for month in ("%b", "%B") for year in ("%Y", "%y")),
    *("%b %d, %Y", "%B %d, %Y", "%a, %d %b %Y"),
)
# What may stand behind a date. A word that no date can be is found without trying all forms.
_CLOCK = re.compile(r"(T|:|,? )\d{1,2}:\d\d(:\d\d)?([.]\d{1,6})?( [AaPp][Mm])?( GMT| UTC| ?[+-]\d{4})?$")
_DATE = re.compile(
    r"(?:\d{1,2}([./-])\d{1,2}\1(?:19|20)\d\d|(?:19|20)\d\d([./-])\d{1,2}\2\d{1,2}"  # 1.3.2026, 2026/3/1
    r"|\d{1,2}/\d{1,2}/\d\d|\d\d([.-])\d\d\3\d\d"  # 3/1/26, but 01.03.26: 1.3.26 may be a version
    r"|\d{1,2}[ /-][A-Z][a-z]+[ /-](?:\d\d){1,2}|[A-Z][a-z]{2,8},? \d{1,2},? (?:\d{4}|[A-Z][a-z]+ \d{4}))(?!\d)"
)
_YEARS = range(1900, 2100)
# Shares of the values that have such a form, and that have a comma; distinct values that are looked at.
_NEARLY_ALL, _MOST, _LOOKED_AT = 0.95, 0.5, 1000


@dataclass(frozen=True)
class LocalForm:
    """The form that nearly all texts of a column have.

    Args:
        kind: ``COMMA`` or ``DATE``.
        conversion: how DuckDB reads such texts, with ``{}`` for the column.
        ambiguous: another format of ``strptime`` that fits as well, if there is one.
    """

    kind: str
    conversion: str
    ambiguous: str = ""

    def remedy(self, name: str) -> str:
        """Returns how DuckDB reads a column of such texts."""
        doubt = f", or with '{self.ambiguous}', which fits the sample too" if self.ambiguous else ""
        return _applied(self.conversion, name) + doubt


def local_form(words: Sequence[str], counts: np.ndarray) -> LocalForm | None:
    """Returns the form of numbers or dates that nearly all texts have, otherwise nothing.

    Args:
        words: distinct texts.
        counts: how often each occurs.
    """
    chosen = np.argsort(-counts, kind="stable")[:_LOOKED_AT]
    words, counts = [words[index].strip() for index in chosen], counts[chosen]

    def share(fitting: Sequence[bool]) -> float:
        return float(counts[np.array(fitting, bool)].sum() / max(1, counts.sum()))

    if share([bool(_DATE.match(word)) for word in words]) >= _NEARLY_ALL:
        fits = (form for form in _forms(words) if share([_is_date(word, form) for word in words]) >= _NEARLY_ALL)
        if form := next(fits, None):
            swapped = form.translate(str.maketrans("dm", "md")) if "%m" in form else form
            other = swapped != form and share([_is_date(word, swapped) for word in words]) >= _NEARLY_ALL
            return LocalForm(DATE, f"strptime({{}}, '{form}')", swapped if other else "")
    comma = [bool(_COMMA.match(word)) for word in words]
    whole = [bool(_WHOLE.match(word)) for word in words]
    if share(comma) >= _MOST and share(np.logical_or(comma, whole)) >= _NEARLY_ALL:  # type: ignore[arg-type]
        points = any("." in word for word in words)
        number = "replace({}, '.', '')" if points else "{}"
        return LocalForm(COMMA, f"CAST(replace({number}, ',', '.') AS DOUBLE)")
    return None


def compact_dates(numbers: np.ndarray) -> LocalForm | None:
    """Returns the form of numbers that are all dates such as 20260301, otherwise nothing.

    Args:
        numbers: distinct numbers.
    """
    if len(numbers) < 2 or numbers.min() < 19_000_101 or numbers.max() > 20_991_231:
        return None
    if not all(_is_date(f"{number:.0f}", "%Y%m%d") for number in numbers[:_LOOKED_AT]):
        return None
    return LocalForm(DATE, "strptime(CAST({} AS VARCHAR), '%Y%m%d')")


def percentages(name: str, words: Sequence[str], counts: np.ndarray) -> tuple[float, str]:
    """Returns the share of texts such as ``23%`` and how DuckDB reads them; 0 and nothing where few texts are so.

    Args:
        name: name of the column.
        words: distinct texts.
        counts: how often each occurs.
    """
    fitting = np.array([bool(_PERCENTAGE.match(word)) for word in words], bool)
    share = float(counts[fitting].sum() / max(1, counts.sum()))
    if share < _MOST:
        return 0.0, ""
    comma = any("," in word for word, fits in zip(words, fitting, strict=True) if fits)
    number = "replace(replace({}, '%', ''), ',', '.')" if comma else "replace({}, '%', '')"
    return share, _applied(f"TRY_CAST({number} AS DOUBLE) / 100", name)


def local_form_warning(name: str, kind: str, remedy: str, example: str) -> str:
    """Returns what to do about a column of such texts."""
    what = "numbers with a decimal comma" if kind == COMMA else "dates that are not in ISO 8601"
    return (
        f"'{name}' seems to hold {what}, such as {example!r}, and is left out: convert it, for instance by DuckDB "
        f"(--source duckdb --query) with {remedy}"
    )


def _applied(conversion: str, name: str) -> str:
    """Puts a column's name in the place of ``{}``."""
    return conversion.replace("{}", '"' + name.replace('"', '""') + '"')


def _forms(words: Sequence[str]) -> Iterator[str]:
    """Formats that fit the most frequent word, or the least frequent one."""
    for word in {words[0]: None, words[-1]: None}:
        clock = ""
        if found := _CLOCK.search(word):
            joint, seconds, fraction, half, zone = found.groups(default="")
            clock = f"{joint}{'%I' if half else '%H'}:%M{':%S' if seconds else ''}{'.%f' if fraction else ''}"
            clock += f"{' %p' if half else ''}{re.sub('[+-].*', '%z', zone)}"
            word = word[: found.start()]
        yield from (date + clock for date in _DATES if _is_date(word, date))


def _is_date(word: str, form: str) -> bool:
    with suppress(ValueError):
        return datetime.strptime(word, form).year in _YEARS
    return False
