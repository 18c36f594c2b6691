"""How a race stands: a table for the terminal, and the same as JSON."""

import statistics
from collections.abc import Sequence
from typing import Any

from nasrec_torchrec.search.race.trial import Entry, columns_text


def standings(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Configurations with their seeds, the best mean validation log loss first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.measured:
            groups.setdefault(entry.trial.configuration, []).append(entry)
    rows = []
    for group in groups.values():
        first = group[0]
        losses = [entry.loss for entry in group]
        rows.append(
            {
                "trials": [entry.number for entry in group],
                "model": first.trial.title,
                "baseline": first.trial.is_baseline,
                "source": first.trial.source,
                "phase": first.trial.phase,
                "recipe": str(first.trial.recipe),
                "decay": first.trial.recipe.decay,
                "features": list(first.trial.features),
                "dropped": list(first.trial.dropped),
                "log_loss": statistics.fmean(losses),
                "deviation": statistics.stdev(losses) if len(losses) > 1 else None,
                "auc": mean_of([entry.aucs[entry.best_epoch - 1] for entry in group]),
                "seeds": len(group),
                "epoch": first.best_epoch,
                "epochs": f"{first.epochs}/{first.trial.recipe.epochs}",
                "seconds": sum(sum(entry.seconds) for entry in group),
                "status": first.status,
                **{
                    name: first.facts.get(name) for name in ("multiply_adds", "parameters", "table_bytes", "latency_us")
                },
            }
        )
    return sorted(rows, key=lambda row: row["log_loss"])


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean, or None where one of the values does not exist."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if len(found) == len(values) else None


def front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows than which no other is both faster and better, the fastest first."""
    found: list[dict[str, Any]] = []
    measured = (row for row in rows if row["latency_us"] is not None)
    for row in sorted(measured, key=lambda row: (row["latency_us"], row["log_loss"])):
        if not found or row["log_loss"] < found[-1]["log_loss"]:
            found.append(row)
    return found


def table(rows: Sequence[dict[str, Any]], limit: int = 8) -> str:
    """Returns the best rows as Markdown, which a terminal shows well too."""
    lines = [
        "|   | validation log loss |    AUC | model | recipe | added and dropped columns | epochs | seconds | source |",
        "|--:|--------------------:|-------:|-------|--------|---------------------------|-------:|--------:|--------|",
    ]
    for place, row in enumerate(rows[:limit], start=1):
        loss = f"{row['log_loss']:.5f}"
        if row["deviation"] is not None:
            loss += f" ± {row['deviation']:.5f}"
        features = columns_text(row["features"], row["dropped"]) or "none"
        auc = "none" if row["auc"] is None else f"{row['auc']:.4f}"
        lines.append(
            f"| {place} | {loss} | {auc} | {row['model']} | {row['recipe']} | {features} "
            f"| {row['epochs']} | {row['seconds']:.0f} | {row['source']} |"
        )
    return "\n".join(lines)


def by_source(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For every source its trials, seconds, best loss, and how much it lowered the best loss that there was."""
    found: dict[str, dict[str, Any]] = {}
    best = float("inf")
    for entry in entries:
        source = "further seeds" if entry.trial.phase == "finals" else entry.trial.source
        row = found.setdefault(source, {"source": source, "trials": 0, "seconds": 0.0, "log_loss": None, "gain": 0.0})
        row["trials"] += 1
        row["seconds"] += sum(entry.seconds)
        if not entry.measured:
            continue
        row["log_loss"] = entry.loss if row["log_loss"] is None else min(entry.loss, row["log_loss"])
        if entry.loss < best and entry.trial.phase != "finals":
            row["gain"] += best - entry.loss if best < float("inf") else 0.0
            best = entry.loss
    return list(found.values())
