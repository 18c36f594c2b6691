"""Figures of a search: its course, what its best architectures share, and how well it predicted its finalists."""

from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.cost_values import CostName
from nasrec_torchrec.search.finalists import Finalist, agreement
from nasrec_torchrec.search.pareto import first_front
from nasrec_torchrec.search.results import SearchResults
from nasrec_torchrec.training.path_statistics import PathStatistics

COST_LABELS: dict[CostName, str] = {
    "multiply_adds": "multiply-adds per example",
    "parameters": "parameters",
    "activation_bytes": "bytes of activations per example",
    "table_bytes": "bytes of the embedding tables",
    "latency_us": "latency of a batch, µs",
}


def good_ones(count: int) -> int:
    """Returns how many candidates of a search count as good."""
    return max(1, count // 10)


def draw_search(results: SearchResults) -> Figure:
    """Draws the losses over the number of candidates, over time, and against every cost that mattered."""
    candidates = [candidate for candidate in results.candidates if not candidate.failed]
    losses = [candidate.loss for candidate in candidates]
    whole = [candidate.loss if not candidate.stopped else float("inf") for candidate in candidates]
    best_so_far = list(accumulate(whole, min))
    minutes = list(accumulate(candidate.seconds / 60 for candidate in candidates))
    # A few candidates that learned nothing must not squeeze the others into one line.
    top = sorted(losses)[int(0.95 * (len(losses) - 1))]
    margin = 0.05 * (top - min(losses)) or 0.001
    costs: list[CostName] = list(dict.fromkeys(("multiply_adds", *results.objective.trade_off)))
    if results.objective.needs_latency and "latency_us" not in costs:
        costs.append("latency_us")
    figure = Figure(figsize=(4.8 * (2 + len(costs)), 4.5), layout="tight")
    axes = figure.subplots(1, 2 + len(costs), sharey=True)
    for axis, across, label in zip(
        axes[:2], (range(1, len(losses) + 1), minutes), ("candidates evaluated", "minutes of evaluation"), strict=True
    ):
        axis.scatter(across, losses, s=10, alpha=0.5, color="tab:gray", label="candidate")
        axis.step(across, best_so_far, where="post", color="tab:blue", label="best so far")
        axis.set(xlabel=label, ylim=(min(losses) - margin, top + margin))
    axes[0].set(ylabel="validation log loss")
    axes[0].legend(loc="upper right")
    for axis, name in zip(axes[2:], costs, strict=True):
        _draw_cost(axis, name, candidates, results)
    return figure


def _draw_cost(axis: Axes, name: CostName, candidates: Sequence[Candidate], results: SearchResults) -> None:
    order = [number for number, candidate in enumerate(candidates) if candidate.cost_of(name) is not None]
    axis.scatter(*_points(candidates, name), s=10, c=order, cmap="viridis")
    if name == "latency_us":
        measured = [(c.latency, c.loss) for c in candidates if c.latency is not None]
        axis.errorbar(
            [latency.median_us for latency, _ in measured],
            [loss for _, loss in measured],
            xerr=[latency.iqr_us / 2 for latency, _ in measured],
            fmt="none",
            color="tab:gray",
            alpha=0.3,
        )
    best, front = results.best, results.front
    circled: dict[str, Any] = {"s": 60, "facecolors": "none", "edgecolors": "tab:red", "label": f"best {len(best)}"}
    axis.scatter(*_points(best, name), **circled)
    if front and name in results.objective.trade_off:
        costs, losses = _points(front, name)
        axis.scatter(costs, losses, s=16, color="tab:orange", label="front")
        # With more than two objectives, a member of the front need not be on the front of these two.
        pairs = list(zip(costs, losses, strict=True))
        steps = sorted(pairs[position] for position in first_front(pairs))
        axis.step([cost for cost, _ in steps], [loss for _, loss in steps], where="post", color="tab:orange")
    axis.set(xlabel=COST_LABELS[name], xscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="upper right")


def _points(candidates: Sequence[Candidate], name: CostName) -> tuple[list[float], list[float]]:
    """Returns the costs and losses of the candidates whose cost is known."""
    pairs = [(cost, candidate.loss) for candidate in candidates if (cost := candidate.cost_of(name)) is not None]
    return [cost for cost, _ in pairs], [loss for _, loss in pairs]


def draw_choices(candidates: Sequence[Candidate]) -> Figure:
    """Draws how much more or less often the good candidates use each choice than all candidates, block by block."""
    order = sorted(candidates, key=lambda candidate: candidate.loss)
    counted = []
    for group in (order[: good_ones(len(order))], order):
        counts = PathStatistics()
        for candidate in group:
            counts.add(candidate.architecture)
        counted.append(counts.to_json())
    good, every = counted
    names = list(every["blocks"][0])
    columns = -(-len(names) // 2)
    figure = Figure(figsize=(2.4 * columns, 6), layout="constrained")
    axes = figure.subplots(2, columns)
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


def draw_agreement(finalists: Sequence[Finalist]) -> Figure:
    """Draws the losses of finalists in the supernet against their losses when trained from scratch."""
    known = [(finalist.predicted, finalist) for finalist in finalists if finalist.predicted is not None]
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.errorbar(
        [predicted for predicted, _ in known],
        [finalist.mean for _, finalist in known],
        yerr=[finalist.deviation for _, finalist in known],
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


def to_png(figure: Figure) -> bytes:
    """Returns the figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
