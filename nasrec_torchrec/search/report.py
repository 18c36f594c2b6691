"""What a search leaves for people and programs: tables, pictures, the best architectures, one page that shows all."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.drawing import to_svg
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.runs.files import atomic_path, local_copy, write_text
from nasrec_torchrec.search.config import COST_NAMES, Limits, Objective
from nasrec_torchrec.search.evaluator import Candidate
from nasrec_torchrec.search.finalists import Finalist, agreement
from nasrec_torchrec.search.pareto import fronts
from nasrec_torchrec.training.path_statistics import PathStatistics

CANDIDATES, RESULTS, REPORT = "candidates.parquet", "results.json", "report.html"
_PICTURE = "search.png"
_LABELS = {
    "multiply_adds": "multiply-adds per example",
    "parameters": "parameters",
    "activation_bytes": "bytes of activations per example",
    "latency_us": "latency of a batch, µs",
}


def write_results(
    candidates: Sequence[Candidate],
    folder: Path,
    top_k: int,
    objective: Objective | None = None,
    limits: Limits | None = None,
) -> None:
    """Writes what a search found.

    ``candidates.parquet`` has all candidates in the order of the search, ``results.json`` the best and the front,
    ``architectures/`` the same as ``rank-01.json``, ``front-01.json``, ... with drawings, ``search.png`` the search,
    and ``report.html`` everything in one page.

    Args:
        candidates: in the order of the search.
        folder: to write to; files of an earlier search are replaced.
        top_k: how many of the best.
        objective: that was minimized.
        limits: on what the best may cost; a latency that another worker measured may lie beyond.
    """
    objective, limits = objective or Objective(), limits or Limits()
    best, front = _best(candidates, top_k, objective, limits), _front(candidates, objective, limits)
    numbers = {candidate.architecture: number for number, candidate in enumerate(candidates, start=1)}
    document = {
        "evaluated": len(candidates),
        "stopped": sum(candidate.stopped for candidate in candidates),
        "seconds": sum(candidate.seconds for candidate in candidates),
        "objective": asdict(objective),
        "limits": asdict(limits),
        "best": [_record(numbers[candidate.architecture], candidate) for candidate in best],
        "front": [_record(numbers[candidate.architecture], candidate) for candidate in front],
    }
    with atomic_path(folder / CANDIDATES) as temporary:
        pq.write_table(_table(candidates), temporary)
    _write_architectures(folder / "architectures", best, front)
    with atomic_path(folder / _PICTURE) as temporary:
        temporary.write_bytes(_png(_draw_search(candidates, best, front, objective)))
    write_text(folder / RESULTS, json.dumps(document, indent=2))
    write_report(folder)


def write_report(folder: Path, finalists: Sequence[Finalist] = ()) -> None:
    """Writes ``report.html``, which needs no other file, from the other files of the folder.

    Args:
        folder: that :func:`write_results` wrote.
        finalists: to compare the predictions with.

    Raises:
        ValueError: when the folder does not hold the results of a search.
    """
    candidates, objective, limits, top_k = read_results(folder)
    try:
        picture = (folder / _PICTURE).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder}: does not hold the results of a search: {error}") from None
    best, front = _best(candidates, top_k, objective, limits), _front(candidates, objective, limits)
    stopped = sum(candidate.stopped for candidate in candidates)
    seconds = sum(candidate.seconds for candidate in candidates)
    parts = [
        "<h1>Architecture search</h1>",
        f"<p>{len(candidates):,} candidates, {stopped:,} of them stopped early, in {seconds:,.0f} s of evaluation; "
        f"minimized: {escape(', '.join(objective.names))}.</p>",
        "<h2>The search</h2>",
        _image(picture, "loss of the candidates over time and against costs"),
        f"<h2>What the best {_good(len(candidates))} share</h2>",
        "<p>How much more (red) or less (blue) often than in all candidates a block uses a choice, in percentage "
        "points.</p>",
        _image(_png(_draw_choices(candidates)), "choices of the best candidates, block by block"),
    ]
    if finalists:
        parts += ["<h2>Finalists, trained from scratch</h2>", _finalists_html(finalists)]
        if len(finalists) > 1:
            parts.append(_image(_png(_draw_agreement(finalists)), "predicted and true losses of the finalists"))
    for title, members in (("Best candidates", best), ("Front", front)):
        if members:
            parts += [f"<h2>{title}</h2>", _candidates_html(members)]
    # A trained finalist shows whatever the search thought of it.
    drawn: list[Architecture] = [finalist.architecture for finalist in finalists]
    drawn += [candidate.architecture for candidate in best if candidate.architecture not in drawn]
    parts.append("<h2>Architectures</h2>")
    for number, architecture in enumerate(drawn, start=1):
        parts.append(f"<h3>{number}</h3>{to_svg(architecture)}")
    write_text(
        folder / REPORT,
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Architecture search</title>\n"
        "<style>body{font-family:sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}img,svg{max-width:100%;"
        "height:auto}table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid "
        "#ddd}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n",
    )


def read_results(folder: Path) -> tuple[list[Candidate], Objective, Limits, int]:
    """The candidates of a search, what it minimized within which limits, and how many of the best it kept.

    Raises:
        ValueError: when the folder does not hold the results of a search.
    """
    try:
        rows = pq.read_table(local_copy(folder / CANDIDATES)).to_pylist()
        document = json.loads((folder / RESULTS).read_text())
        candidates = [_candidate(row) for row in rows]
        objective, limits = Objective(**document["objective"]), Limits(**document["limits"])
        return candidates, objective, limits, len(document["best"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: does not hold the results of a search: {error}") from None


def _table(candidates: Sequence[Candidate]) -> pa.Table:
    rows = [
        _record(number, candidate) | {"architecture": candidate.architecture.to_json(indent=None)}
        for number, candidate in enumerate(candidates, start=1)
    ]
    latency = {"latency_us": pa.float64(), "latency_iqr_us": pa.float64()}
    table = pa.Table.from_pylist(rows)
    for name, kind in latency.items():  # all missing has no type
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table.column(name).cast(kind))
    return table


def _candidate(row: dict[str, Any]) -> Candidate:
    names = ClickMetrics.__dataclass_fields__
    metrics = ClickMetrics(**{name: row.pop(name) for name in names})
    row.pop("candidate")
    row["architecture"] = Architecture.from_json(row["architecture"])
    return Candidate(metrics=metrics, **row)


def _within(candidate: Candidate, limits: Limits) -> bool:
    costs = candidate.multiply_adds, candidate.parameters, candidate.activation_bytes, candidate.latency_us
    return not candidate.stopped and limits.allow(*costs)


def _best(candidates: Sequence[Candidate], top_k: int, objective: Objective, limits: Limits) -> list[Candidate]:
    whole = sorted((candidate for candidate in candidates if _within(candidate, limits)), key=objective.values)
    # The same network written in two ways loses and costs exactly as much.
    distinct = {(c.loss, c.multiply_adds, c.parameters): c for c in reversed(whole)}
    return list(reversed(distinct.values()))[:top_k]


def _front(candidates: Sequence[Candidate], objective: Objective, limits: Limits) -> list[Candidate]:
    """The front that a Pareto search looked for, the lowest loss first."""
    whole = [candidate for candidate in candidates if _within(candidate, limits)]
    if not objective.trade_off or not whole:
        return []
    front = fronts([objective.values(candidate) for candidate in whole])[0]
    return sorted((whole[i] for i in front), key=objective.values)


def _record(number: int, candidate: Candidate) -> dict[str, Any]:
    record = asdict(candidate) | {"architecture": json.loads(candidate.architecture.to_json())}
    metrics = record.pop("metrics")
    return {"candidate": number} | metrics | record


def _write_architectures(folder: Path, best: Sequence[Candidate], front: Sequence[Candidate]) -> None:
    named = {f"rank-{rank:02d}": candidate for rank, candidate in enumerate(best, start=1)}
    others = [candidate for candidate in front if candidate not in best]
    named |= {f"front-{place:02d}": candidate for place, candidate in enumerate(others, start=1)}
    for name, candidate in named.items():
        write_text(folder / f"{name}.json", candidate.architecture.to_json())
        write_text(folder / f"{name}.svg", to_svg(candidate.architecture))
    for file in [*folder.glob("rank-*.*"), *folder.glob("front-*.*")]:
        if file.stem not in named:
            file.unlink(missing_ok=True)


def _good(count: int) -> int:
    """How many candidates are the good ones."""
    return max(1, count // 10)


def _draw_search(
    candidates: Sequence[Candidate], best: Sequence[Candidate], front: Sequence[Candidate], objective: Objective
) -> Figure:
    losses = [candidate.loss for candidate in candidates]
    whole = [candidate.loss if not candidate.stopped else float("inf") for candidate in candidates]
    best_so_far = list(accumulate(whole, min))
    minutes = list(accumulate(candidate.seconds / 60 for candidate in candidates))
    # A few candidates that learnt nothing must not squeeze the others into one line.
    top = sorted(losses)[int(0.95 * (len(losses) - 1))]
    margin = 0.05 * (top - min(losses)) or 0.001
    costs = list(dict.fromkeys(("multiply_adds", *objective.trade_off)))
    if objective.needs_latency and "latency_us" not in costs:
        costs.append("latency_us")
    figure, axes = plt.subplots(1, 2 + len(costs), figsize=(4.8 * (2 + len(costs)), 4.5), sharey=True, layout="tight")
    for axis, across, label in zip(
        axes[:2], (range(1, len(losses) + 1), minutes), ("candidates evaluated", "minutes of evaluation"), strict=True
    ):
        axis.scatter(across, losses, s=10, alpha=0.5, color="tab:gray", label="candidate")
        axis.step(across, best_so_far, where="post", color="tab:blue", label="best so far")
        axis.set(xlabel=label, ylim=(min(losses) - margin, top + margin))
    axes[0].set(ylabel="validation log loss")
    axes[0].legend(loc="upper right")
    for axis, name in zip(axes[2:], costs, strict=True):
        order = [number for number, candidate in enumerate(candidates) if getattr(candidate, name) is not None]
        known = [candidates[number] for number in order]
        axis.scatter([getattr(c, name) for c in known], [c.loss for c in known], s=10, c=order, cmap="viridis")
        if name == "latency_us":
            spread = [(c.latency_iqr_us or 0) / 2 for c in known]
            axis.errorbar(
                [c.latency_us or 0 for c in known],
                [c.loss for c in known],
                xerr=spread,
                fmt="none",
                color="tab:gray",
                alpha=0.3,
            )
        circled = {"s": 60, "facecolors": "none", "edgecolors": "tab:red", "label": f"best {len(best)}"}
        axis.scatter([getattr(c, name) for c in best], [c.loss for c in best], **circled)
        if front and name in objective.trade_off:
            pairs = [(float(getattr(c, name)), c.loss) for c in front]
            # With more than two objectives not every member of the front is on the front of these two.
            steps = sorted(pairs[i] for i in fronts(pairs)[0])
            axis.scatter(*zip(*pairs, strict=True), s=16, color="tab:orange", label="front")
            axis.step(*zip(*steps, strict=True), where="post", color="tab:orange")
        axis.set(xlabel=_LABELS[name], xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(loc="upper right")
    return figure


def _draw_choices(candidates: Sequence[Candidate]) -> Figure:
    order = sorted(candidates, key=lambda candidate: candidate.loss)
    counted = []
    for group in (order[: _good(len(order))], order):
        counts = PathStatistics()
        for candidate in group:
            counts.add(candidate.architecture)
        counted.append(counts.to_json())
    good, every = counted
    names = list(every["blocks"][0])
    columns = -(-len(names) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(2.4 * columns, 6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=True):
        values = sorted({value for block in every["blocks"] for value in block[name]}, key=lambda v: (len(v), v))
        shift = [
            [
                100 * (g[name].get(value, 0) / good["paths"] - e[name].get(value, 0) / every["paths"])
                for g, e in zip(good["blocks"], every["blocks"], strict=True)
            ]
            for value in values
        ]
        shown = axis.imshow(shift, cmap="RdBu_r", vmin=-50, vmax=50, aspect="auto")
        blocks = range(len(every["blocks"]))
        axis.set(title=name.replace("_", " "), xlabel="block")
        axis.set_xticks(blocks, [str(block + 1) for block in blocks])
        axis.set_yticks(range(len(values)), [value.replace("_", "\n") for value in values], fontsize=7)
        axis.title.set_fontsize(9)
    figure.colorbar(shown, ax=axes, label="percentage points")
    return figure


def _draw_agreement(finalists: Sequence[Finalist]) -> Figure:
    known = [finalist for finalist in finalists if finalist.predicted is not None]
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    axis.errorbar(
        [finalist.predicted for finalist in known],
        [finalist.mean for finalist in known],
        yerr=[finalist.deviation for finalist in known],
        fmt="o",
        capsize=3,
    )
    axis.set(
        xlabel="validation log loss in the supernet",
        ylabel="trained from scratch: mean and deviation over seeds",
    )
    tau = agreement(finalists)
    axis.set_title("" if tau is None else f"Kendall's tau {tau:.2f}")
    return figure


def _finalists_html(finalists: Sequence[Finalist]) -> str:
    """The winner on validation is the only one whose test metrics are shown."""
    rows = []
    for place, finalist in enumerate(finalists, start=1):
        test = "" if place > 1 else f"{finalist.test_log_loss:.5f}</td><td>{finalist.test_auc:.5f}"
        predicted = "" if finalist.predicted is None else f"{finalist.predicted:.5f}"
        rows.append(
            f"<td>{place}</td><td>{predicted}</td><td>{finalist.mean:.5f} ± {finalist.deviation:.5f}</td>"
            f"<td>{finalist.parameters:,}</td><td>{test or '</td><td>'}</td>"
        )
    heads = ("", "log loss in the supernet", "validation log loss", "parameters", "test log loss", "test AUC")
    tau = agreement(finalists)
    words = "" if tau is None else f"<p>Ranks in the supernet and from scratch agree by Kendall's tau {tau:.2f}.</p>"
    return _html_table(heads, rows) + words


def _candidates_html(candidates: Sequence[Candidate]) -> str:
    names = [name for name in COST_NAMES if any(getattr(candidate, name) is not None for candidate in candidates)]
    rows = []
    for place, candidate in enumerate(candidates, start=1):
        costs = []
        for name in names:
            value = getattr(candidate, name)
            noise = (
                f" ± {candidate.latency_iqr_us / 2:,.0f}" if name == "latency_us" and candidate.latency_iqr_us else ""
            )
            costs.append("<td></td>" if value is None else f"<td>{value:,.0f}{noise}</td>")
        rows.append(
            f"<td>{place}</td><td>{candidate.loss:.5f}</td><td>{candidate.metrics.auc:.5f}</td>{''.join(costs)}"
        )
    return _html_table(("", "validation log loss", "AUC", *(_LABELS[name] for name in names)), rows)


def _html_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _image(png: bytes, description: str) -> str:
    return f"<img alt='{escape(description)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()
