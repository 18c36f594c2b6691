"""What the reports share: the style, for light and dark, narrow and wide pages, and tables that can be read aloud."""

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --line: #b9b9b9; --box: #e8f3e8; --link: #0a58b0 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --page: #16181b; --line: #565b61; --box: #1e3324; --link: #8ec2ff }
}
body { font-family: system-ui, sans-serif; line-height: 1.45; color: var(--text); background: var(--page);
  max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
a { color: var(--link) }
img { max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
svg { max-width: 100%; height: auto }
.drawing { background: #fff; border-radius: .4rem; padding: .4rem; overflow-x: auto }
.verdict { background: var(--box); padding: .4rem 1rem; border-radius: .4rem }
.verdict p:first-child { font-size: 1.15rem; font-weight: 600 }
.table { overflow-x: auto }
.table:focus-visible { outline: 2px solid var(--link) }
table { border-collapse: collapse; overflow-wrap: normal }
caption { text-align: left; padding-bottom: .3rem }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; font-size: .9rem;
  vertical-align: top; font-weight: normal }
thead th { font-weight: 600 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
@media (max-width: 40rem) { td, tbody th { white-space: nowrap } }
dt { font-weight: 600 }
dd { margin: 0 0 .4rem 1rem }
"""


def page(title: str, body: str) -> str:
    """Returns a whole page that needs no other file.

    Args:
        title: title of the page, as text.
        body: what it shows, as HTML.
    """
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body><main>\n{body}\n</main></body></html>\n"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table that scrolls by itself where the page is narrow; columns of numbers are aligned to the right.

    Args:
        caption: what the table shows, as text.
        head: titles of the columns.
        rows: cells; the first cell of a row says what the row is.
    """
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(head))]

    def kind(column: int) -> str:
        return " class='n'" if numeric[column] else ""

    titles = "".join(f"<th scope='col'{kind(column)}>{escape(title)}</th>" for column, title in enumerate(head))
    lines = []
    for row in rows:
        first, *rest = (escape(str(value)) for value in row)
        cells = "".join(f"<td{kind(column)}>{value}</td>" for column, value in enumerate(rest, start=1))
        lines.append(f"<tr><th scope='row'{kind(0)}>{first}</th>{cells}</tr>")
    return (
        f"<div class='table' role='region' tabindex='0' aria-label='{escape(caption, quote=True)}'>"
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def warning_list(warnings: Sequence[str]) -> str:
    """Returns what went wrong as a part of a page; nothing if all is well."""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in dict.fromkeys(warnings))
    return f"<h2>Warnings</h2><ul>{items}</ul>" if items else ""


def _is_number(value: Any) -> bool:
    text = str(value).replace(",", "").replace("µs", "").strip()
    try:
        return not text or float(text) is not None
    except ValueError:
        return False


def calibration_curve(deciles: Sequence[dict[str, float]], description: str) -> str:
    """Draws click rates over mean predictions by decile, as SVG in the colours of the page.

    Args:
        deciles: ``rows``, ``prediction`` and ``click_rate`` of each part of the rows.
        description: what the drawing shows, for those who cannot see it.
    """
    most = max(max(part["prediction"], part["click_rate"]) for part in deciles) or 1.0
    points = [(part["prediction"], part["click_rate"]) for part in deciles]
    return _curve(points, most, ("mean predicted probability", "click rate"), description, dots=True)


def roc_drawing(points: Sequence[Sequence[float]], description: str) -> str:
    """Draws a ROC curve as SVG in the colours of the page.

    Args:
        points: share of the other rows and share of the clicks at each threshold.
        description: what the drawing shows, for those who cannot see it.
    """
    return _curve(points, 1.0, ("share of the other rows above a threshold", "share of the clicks"), description)


def _curve(
    points: Sequence[Sequence[float]], most: float, titles: tuple[str, str], description: str, dots: bool = False
) -> str:
    """Draws a line and the diagonal in a square from 0 to ``most``, with the titles of both axes."""
    size, edge = 340, 60
    span = size - 2 * edge
    low, high = edge, size - edge
    placed = [(low + span * x / most, high - span * y / most) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    circles = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='currentColor'/>" for x, y in placed if dots)
    ticks = "".join(
        f"<text x='{low + span * share:.0f}' y='{high + 16}' text-anchor='middle'>{most * share:.2g}</text>"
        f"<text x='{low - 6}' y='{high - span * share + 4:.0f}' text-anchor='end'>{most * share:.2g}</text>"
        for share in (0, 0.5, 1)
    )
    return (
        f"<svg role='img' viewBox='0 0 {size} {size}' width='{size}' height='{size}' font-size='11' "
        f"fill='currentColor'><title>{escape(description)}</title>"
        f"<path d='M{low} {low}V{high}H{high}' fill='none' stroke='currentColor'/>"
        f"<path d='M{low} {high}L{high} {low}' stroke='currentColor' stroke-dasharray='4 4' opacity='.6'/>"
        f"<polyline points='{line}' fill='none' stroke='currentColor' stroke-width='2'/>{circles}{ticks}"
        f"<text x='{size / 2}' y='{size - 10}' text-anchor='middle'>{escape(titles[0])}</text>"
        f"<text transform='translate(12 {size / 2}) rotate(-90)' text-anchor='middle'>{escape(titles[1])}</text></svg>"
    )


def bars(entries: Sequence[tuple[str, float, float]], description: str) -> str:
    """Draws numbers with their deviations as horizontal bars, as SVG in the colours of the page.

    Args:
        entries: name, number and deviation of each bar, from the top.
        description: what the drawing shows, for those who cannot see it.
    """
    width, left, step = 340, 120, 22
    height = step * len(entries) + 30
    least = min(0.0, *(value - deviation for _, value, deviation in entries))
    most = max(1e-12, *(value + deviation for _, value, deviation in entries))

    def place(value: float) -> float:
        return left + (width - left - 20) * (value - least) / (most - least)

    drawn = []
    for number, (name, value, deviation) in enumerate(entries):
        middle = step * number + step / 2
        start, end = sorted((place(0), place(value)))
        short = name if len(name) <= 17 else name[:16] + "…"
        drawn.append(
            f"<text x='{left - 6}' y='{middle + 4:.0f}' text-anchor='end'>{escape(short)}</text>"
            f"<rect x='{start:.1f}' y='{middle - 7:.1f}' width='{max(end - start, 0.5):.1f}' height='14' "
            "opacity='.55'/>"
            f"<path d='M{place(value - deviation):.1f} {middle:.1f}H{place(value + deviation):.1f}' "
            "stroke='currentColor' stroke-width='2'/>"
        )
    bottom = step * len(entries) + 4
    ticks = "".join(
        f"<text x='{place(value):.0f}' y='{bottom + 16}' text-anchor='middle'>{value:.2g}</text>" for value in (0, most)
    )
    return (
        f"<svg role='img' viewBox='0 0 {width} {height}' width='{width}' height='{height}' font-size='11' "
        f"fill='currentColor'><title>{escape(description)}</title>{''.join(drawn)}"
        f"<path d='M{place(0):.1f} 0V{bottom}' stroke='currentColor'/>{ticks}</svg>"
    )
