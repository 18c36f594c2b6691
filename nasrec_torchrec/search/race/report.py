"""A race as one page that needs no other file: the verdict first."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nasrec_torchrec.search.race.leaderboard import span

_STYLE = """body{font-family:sans-serif;max-width:1150px;margin:2em auto;line-height:1.4}table{border-collapse:collapse}
td,th{border-bottom:1px solid #ccc;padding:.25em .6em;text-align:left;font-size:.9em}td.n{text-align:right}
img{max-width:100%}.verdict{background:#eef6ee;padding:.6em 1em}"""


def page(results: Mapping[str, Any]) -> str:
    """Returns the results of a race as HTML."""
    rows = results["rows"]
    sections = [
        f"<h1>What the race found</h1><div class='verdict'>{_paragraphs(results['verdict'])}</div>",
        f"<p>{len(results['trials'])} trials in {span(results['seconds'])}, on {rows['train']:,} rows to train on, "
        f"{rows['validation']:,} that decided, and {rows['test']:,} that were read once, at the end.</p>",
        f"<img alt='losses over time, and loss against latency' src='data:image/png;base64,{_figure(results)}'>",
        "<h2>Leaderboard (validation log loss; mean and deviation over the seeds)</h2>",
        _table(
            ["log loss", "±", "AUC", "seeds", "model", "recipe", "added features", "epochs", "latency, µs", "seconds"],
            [
                [
                    f"{row['log_loss']:.5f}",
                    "" if row["deviation"] is None else f"{row['deviation']:.5f}",
                    "" if row["auc"] is None else f"{row['auc']:.5f}",
                    row["seeds"],
                    row["model"],
                    row["recipe"],
                    ", ".join(row["features"]),
                    row["epochs"],
                    f"{row['latency_us']:,.0f}" if row["latency_us"] else "",
                    f"{row['seconds']:.0f}",
                ]
                for row in results["leaderboard"][:40]
            ],
        ),
        "<h2>Loss at a cost</h2><p>No other model is both faster and better than one of these "
        "(512 rows, one thread, NASRecNets fused).</p>",
        _table(
            ["latency, µs", "log loss", "model", "added features"],
            [
                [f"{row['latency_us']:,.0f}", f"{row['log_loss']:.5f}", row["model"], ", ".join(row["features"])]
                for row in results["front"]
            ],
        ),
        *_features(results["features"]),
        "<h2>Where candidates came from</h2>",
        _table(
            ["source", "trials", "seconds", "best log loss", "lowered the best by"],
            [
                [
                    row["source"],
                    row["trials"],
                    f"{row['seconds']:.0f}",
                    "" if row["log_loss"] is None else f"{row['log_loss']:.5f}",
                    f"{row['gain']:.5f}",
                ]
                for row in results["sources"]
            ],
        ),
        "<h2>How far early losses can be trusted</h2><p>Kendall's tau of the losses after a share of a full training "
        "with the final ones, over the trainings that ran to their end.</p>",
        _table(
            ["trainings", *next(iter(results["fidelity"].values()), {})],
            [
                [kind, *("" if tau is None else f"{tau:.2f}" for tau in taus.values())]
                for kind, taus in results["fidelity"].items()
            ],
        ),
    ]
    body = "\n".join(sections)
    head = f"<meta charset='utf-8'><title>nasrec auto</title><style>{_STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def _features(features: Mapping[str, Any]) -> list[str]:
    """What was decided about added features, where any were tried."""
    if not features["judged"]:
        return []
    return [
        "<h2>Added features</h2><p>A set is accepted if it lowers the validation log loss by more than chance explains "
        f"(rows, seeds, and the choice among {features['combinations']} combinations of columns), and in both halves "
        "of the validation split.</p>",
        _table(
            ["features", "beside", "gain", "explained by chance", "in each half", "seeds", "verdict"],
            [
                [
                    ", ".join(judged["features"]),
                    ", ".join(judged["beside"]) or "none",
                    f"{judged['gain']:.5f}",
                    f"{judged['needed']:.5f}",
                    ", ".join(f"{gain:.5f}" for gain in judged["halves"]),
                    " and ".join(map(str, judged["seeds"])),
                    "rejected" if judged["verdict"] == "open" else judged["verdict"],
                ]
                for judged in features["judged"]
            ],
        ),
    ]


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cells(kind: str, values: Sequence[Any]) -> str:
        return "".join(f"<{kind}>{escape(str(value))}</{kind}>" for value in values)

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{lines}</table>"


def _finite(trial: Mapping[str, Any]) -> list[float]:
    """The losses of a trial, without those that are not numbers."""
    return [loss for loss in trial["losses"] if loss is not None]


def _figure(results: Mapping[str, Any]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (over_time, costs) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    colours = {source: f"C{number}" for number, source in enumerate(row["source"] for row in results["sources"])}
    clock, best, track = 0.0, float("inf"), []
    for trial in results["trials"]:
        source = "further seeds" if trial["trial"]["phase"] == "finals" else trial["trial"]["source"]
        clock += sum(trial["seconds"])
        if losses := _finite(trial):
            best = min(best, *losses)
            over_time.plot(clock, min(losses), "o", color=colours[source], markersize=4)
            track.append((clock, best))
    over_time.step(*zip(*track, strict=True), where="post", color="black", linewidth=1)
    over_time.set(xlabel="seconds of training", ylabel="validation log loss of a trial, and the best so far")
    for source, colour in colours.items():
        over_time.plot([], [], "o", color=colour, label=source)
    over_time.legend(fontsize=8)
    rows = [row for row in results["leaderboard"] if row["latency_us"]]
    for baseline, title, marker in ((True, "baselines", "s"), (False, "NASRecNets", "o")):
        some = [row for row in rows if row["baseline"] == baseline]
        costs.plot([r["latency_us"] for r in some], [r["log_loss"] for r in some], marker, label=title, markersize=4)
    front = results["front"]
    costs.plot([row["latency_us"] for row in front], [row["log_loss"] for row in front], color="black", linewidth=1)
    costs.set(xscale="log", xlabel="microseconds for 512 rows", ylabel="validation log loss")
    costs.legend(fontsize=8)
    # Trials that failed to learn would squeeze all others into one line.
    losses = sorted(min(found) for trial in results["trials"] if (found := _finite(trial)))
    middle = losses[len(losses) // 2]
    for axis in (over_time, costs):
        axis.set_ylim(losses[0] - 0.05 * (middle - losses[0]) - 1e-6, middle + (middle - losses[0]) + 1e-6)
        axis.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    plt.close(figure)
    return base64.b64encode(stream.getvalue()).decode()
