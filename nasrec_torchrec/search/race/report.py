"""A race as one page that needs no other file: the verdict first."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from nasrec_torchrec import page_style
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.page_style import calibration_curve, table, warning_list
from nasrec_torchrec.search.race.trial import columns_text
from nasrec_torchrec.spans import span
from nasrec_torchrec.training.column_importance import ColumnImportance
from nasrec_torchrec.training.evaluation import Slice
from nasrec_torchrec.training.evaluation_page import importance_sections, roc_sections, slice_sections

_PICTURED = (
    "Left: validation log loss of every trial over the seconds of training, and the best so far. Right: validation log "
    "loss of every model against its latency."
)
_CENTERED = (
    " The click rate of the rows that decided differs from that of the training rows by more than chance explains. So "
    "validation log losses on this page are those after the mean prediction of each model was moved to that rate: a "
    "model is not rewarded for predictions that are too low or too high in all."
)
_WORDS = """<details><summary>Words and abbreviations</summary><dl>
<dt>log loss</dt><dd>mean negative logarithm of the probability that was given to what happened; lower is better</dd>
<dt>AUC</dt><dd>area under the ROC curve: how often a click is ranked above a row that is none; .5 is guessing</dd>
<dt>±</dt><dd>standard deviation over trainings that differ in their random seed</dd>
<dt>baseline</dt><dd>a known model (DLRM, DCN, DeepFM, ...), tuned in the same race</dd>
<dt>DLRM, DCN, DeepFM, MLP</dt><dd>deep learning recommendation model, deep and cross network, deep factorization
machine, multilayer perceptron</dd>
<dt>NASRecNet</dt><dd>a network that the race put together from operators</dd>
<dt>recipe</dt><dd>how a model was trained: optimizer, learning rate, batch size, epochs, L2 penalty, dropout</dd>
<dt>latency</dt><dd>microseconds (µs) that one thread needs for 512 rows, with the look-up of their embeddings</dd>
<dt>95 % interval</dt><dd>what chance (which rows were measured, which seeds) may make of the difference</dd>
</dl></details>"""


def page(results: Mapping[str, Any]) -> str:
    """Returns the results of a race as HTML."""
    rows = results["rows"]
    picture = base64.b64encode(figure(results)).decode()
    sections = [
        f"<h1>What the race found</h1><div class='verdict'>{_paragraphs(results['verdict'])}</div>",
        warning_list(results.get("warnings", ())),
        _WORDS,
        f"<p>{len(results['trials'])} trials in {span(results['seconds'])}, on {rows['train']:,} rows to train on, "
        f"{rows['validation']:,} that decided, and {rows['test']:,} that were read once, at the end."
        f"{_CENTERED if results.get('monitor') == 'centered_log_loss' else ''}</p>",
        *_calibration(results["measured"]["winner"]),
        *_roc(results["measured"]["winner"]),
        *_slices(results["measured"]["winner"]),
        *_importance(results["measured"]["winner"]),
        *_widths(results),
        "<h2>The race</h2>",
        f"<img alt='{_PICTURED}' src='data:image/png;base64,{picture}'>",
        "<h2>Leaderboard</h2>",
        table(
            "Validation log loss of every model: mean and deviation over its seeds",
            [
                "model",
                "log loss",
                "±",
                "AUC",
                "seeds",
                "recipe",
                "added and dropped columns",
                "epochs",
                "tables, MiB",
                "latency, µs",
                "seconds",
            ],
            [
                [
                    row["model"],
                    f"{row['log_loss']:.5f}",
                    "" if row["deviation"] is None else f"{row['deviation']:.5f}",
                    "" if row["auc"] is None else f"{row['auc']:.5f}",
                    row["seeds"],
                    row["recipe"],
                    columns_text(row["features"], row.get("dropped", ())),
                    row["epochs"],
                    f"{row['table_bytes'] / 2**20:,.2f}" if row.get("table_bytes") else "",
                    f"{row['latency_us']:,.0f}" if row["latency_us"] else "",
                    f"{row['seconds']:.0f}",
                ]
                for row in results["leaderboard"][:40]
            ],
        ),
        "<h2>Loss at a cost</h2><p>No other model is both faster and better than one of these "
        "(512 rows, one thread, NASRecNets fused). If one is faster than the winner and at most one standard error (of "
        "rows and seeds) worse than the best tuned baseline without added features, the verdict names it.</p>",
        table(
            "Models that no other one beats in both loss and latency",
            ["model", "latency, µs", "log loss", "added and dropped columns"],
            [
                [
                    row["model"],
                    f"{row['latency_us']:,.0f}",
                    f"{row['log_loss']:.5f}",
                    columns_text(row["features"], row.get("dropped", ())),
                ]
                for row in results["front"]
            ],
        ),
        *_features(results["features"]),
        "<h2>Where candidates came from</h2>",
        table(
            "Trials by what proposed them",
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
        *_fidelity(results["fidelity"]),
        *_origin(results.get("origin", {})),
    ]
    return page_style.page("nasrec auto", "\n".join(sections))


def _origin(origin: Mapping[str, Any]) -> list[str]:
    """Where the results come from, for whoever wants to have them again."""
    shown = {name: origin.get(name) for name in ("data", "command", "commit", "started", "device")}
    versions = [f"{name} {version}" for name, version in origin.get("versions", {}).items() if version]
    rows = [[name, value] for name, value in {**shown, "versions": ", ".join(versions)}.items() if value]
    return ["<h2>How it was made</h2>", table("Where these results come from", ["what", "value"], rows)] if rows else []


def _calibration(winner: Mapping[str, Any]) -> list[str]:
    """Whether the winner's probabilities are what is observed."""
    found = winner.get("calibration")
    if not found:
        return []
    text = (
        f"mean prediction {found['prediction']:.2%}, click rate {found['click_rate']:.2%}; expected calibration error "
        f"{found['expected_error']:.4f}"
    )
    rows = [
        [number, f"{part['rows']:,}", f"{part['prediction']:.4f}", f"{part['click_rate']:.4f}"]
        for number, part in enumerate(found["deciles"], start=1)
    ]
    return [
        f"<h2>Calibration of the winner</h2><p>On the {found['split']} split: {text}. Each point is a tenth of the "
        "rows; on the dashed line, probabilities are what is observed.</p>",
        calibration_curve(found["deciles"], f"Click rate over mean prediction by decile: {text}"),
        table("Calibration by decile of the prediction", ["decile", "rows", "mean prediction", "click rate"], rows),
    ]


def _roc(winner: Mapping[str, Any]) -> list[str]:
    """How the winner ranks the rows."""
    found = winner.get("roc")
    return roc_sections(found["points"], found["auc"], found["split"]) if found else []


def _slices(winner: Mapping[str, Any]) -> list[str]:
    """How good the winner is on parts of the rows."""
    found = winner.get("slices")
    if not found:
        return []
    read = {
        column: [
            Slice(**part | {"metrics": ClickMetrics(**part["metrics"])})
            for part in parts
            if part["metrics"]["log_loss"] is not None  # it was no number
        ]
        for column, parts in found["columns"].items()
    }
    return slice_sections(read, found["split"])


def _importance(winner: Mapping[str, Any]) -> list[str]:
    """How much the winner relies on each column."""
    found = [ColumnImportance(**one) for one in winner.get("importance", ())]
    return importance_sections(found, "validation")


def _widths(results: Mapping[str, Any]) -> list[str]:
    """How wide the tables of the winner are, where the race chose that for any model."""
    chosen = [trial["trial"].get("architecture", {}).get("embedding_widths") for trial in results["trials"]]
    tables = results["measured"]["winner"].get("tables")
    if not tables or not any(chosen):
        return []
    mine = results["model"].get("architecture", {}).get("embedding_widths", {})
    total = sum(size["bytes"] for size in tables)
    return [
        f"<h2>Widths of the winner's tables</h2><p>They take {total / 2**20:,.2f} MiB in float32. A width that was no "
        "choice is that of the data.</p>",
        table(
            "Embedding tables of the winner, the largest first",
            ["table", "rows", "width", "MiB", "chosen"],
            [
                [
                    size["table"],
                    f"{size['rows']:,}",
                    size["width"],
                    f"{size['bytes'] / 2**20:,.3f}",
                    "yes" if size["table"] in mine else "no",
                ]
                for size in tables
            ],
        ),
    ]


def _features(features: Mapping[str, Any]) -> list[str]:
    """What was decided about added features, where any were tried."""
    if not features["judged"]:
        return []
    return [
        "<h2>Added features</h2><p>A set is accepted if it lowers the validation log loss by more than chance explains "
        f"(rows, seeds, and the choice among {features['combinations']} combinations of columns), and in both halves "
        "of the validation split.</p>",
        table(
            "What was decided about each set of added features",
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


def _fidelity(fidelity: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """How well early losses order the final ones, where enough trainings ran to their end to tell."""
    if not fidelity:
        return []
    return [
        "<h2>How far early losses can be trusted</h2><p>Kendall's tau of the losses after a share of a full training "
        "with the final ones, over the trainings that ran to their end.</p>",
        table(
            "Kendall's tau by the share of a training",
            ["trainings", *next(iter(fidelity.values()))],
            [
                [kind, *("" if tau is None else f"{tau:.2f}" for tau in taus.values())]
                for kind, taus in fidelity.items()
            ],
        ),
    ]


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())


def _finite(trial: Mapping[str, Any]) -> list[float]:
    """The losses of a trial, without those that are not numbers."""
    return [loss for loss in trial["losses"] if loss is not None]


def figure(results: Mapping[str, Any]) -> bytes:
    """Returns a picture of a race as PNG: losses over time, and losses against latency."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 4.2), layout="constrained")
    over_time, costs = drawn.subplots(1, 2)
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
    drawn.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
