"""One page that shows a search, with the finalists that were trained from scratch."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from nasrec_torchrec.drawing import to_svg
from nasrec_torchrec.page_style import STYLE
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.names import PICTURE, REPORT
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.cost_values import COST_NAMES, CostName
from nasrec_torchrec.search.figures import COST_LABELS, draw_agreement, draw_choices, draw_search, good_ones, to_png
from nasrec_torchrec.search.finalists import Finalist, agreement
from nasrec_torchrec.search.results import read_results

# Candidates whose widths of tables are shown, each in a column.
_MOST_WIDTHS = 8
_PAGES = Environment(
    loader=PackageLoader("nasrec_torchrec.search", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(folder: Path, finalists: Sequence[Finalist] = ()) -> None:
    """Writes ``report.html``, which needs no other file, and ``search.png`` from the results in a folder.

    Args:
        folder: folder of the search, with what :func:`~nasrec_torchrec.search.results.write_results` wrote.
        finalists: finalists to compare the predictions with.

    Raises:
        ValueError: If the folder does not hold the results of a search.
    """
    results = read_results(folder)
    sound = [candidate for candidate in results.candidates if not candidate.failed]
    if not sound:
        raise ValueError(f"{folder}: holds no candidate with a finite loss to show")
    best, front = results.best, results.front
    picture = to_png(draw_search(results))
    with atomic_path(folder / PICTURE) as temporary:
        temporary.write_bytes(picture)
    # A trained finalist is shown whatever loss the search predicted for it.
    drawn = dict.fromkeys([*(finalist.architecture for finalist in finalists), *(one.architecture for one in best)])
    page = _PAGES.get_template("report.html").render(
        style=STYLE,
        results=results,
        tables=[(title, members) for title, members in (("Best candidates", best), ("Front", front)) if members],
        widths=_widths(results.table_rows, best),
        costs=_known_costs([*best, *front]),
        cost_labels=COST_LABELS,
        good=good_ones(len(sound)),
        finalists=finalists,
        tau=agreement(finalists),
        search_picture=_encoded(picture),
        choices_picture=_encoded(to_png(draw_choices(sound))),
        agreement_picture=_picture(draw_agreement(finalists)) if len(finalists) > 1 else None,
        drawings=[to_svg(architecture) for architecture in drawn],
    )
    write_text(folder / REPORT, page)


def _widths(rows: Mapping[str, int], best: Sequence[Candidate]) -> list[tuple[str, int, list[int]]]:
    """Name and rows of each table whose width is a choice, and its width in the first of the best candidates."""
    chosen = [dict(candidate.architecture.embedding_widths) for candidate in best[:_MOST_WIDTHS]]
    by_rows = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return [(name, count, [widths[name] for widths in chosen]) for name, count in by_rows] if chosen else []


def _known_costs(candidates: Sequence[Candidate]) -> list[CostName]:
    return [name for name in COST_NAMES if any(candidate.cost_of(name) is not None for candidate in candidates)]


def _picture(figure: Figure) -> str:
    return _encoded(to_png(figure))


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()
