"""What a race found, in a few honest sentences."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nasrec_torchrec.search.race.adoption import adoption
from nasrec_torchrec.search.race.tree import TREE_BESIDE
from nasrec_torchrec.table_widths import widths_text


def verdict(results: Mapping[str, Any]) -> str:
    """Returns the winner beside the best baseline and the tree, on the test split where there is one."""
    measured = results["measured"]
    split = "test" if measured["winner"].get("test") else "validation"
    best = measured["winner"]
    lines = []
    trees = [measured[name] for name in ("tree", TREE_BESIDE) if name in measured and measured[name].get(split)]
    tree = min(trees, key=lambda one: _loss(one[split]), default=None)
    together = results.get("ensemble")
    if tree_wins := tree is not None and _loss(tree[split]) < _loss(best[split]):
        if together is not None and together[split]["log_loss"] < _loss(tree[split]):
            lines.append(_better_than_the_tree(together, split))
        of_winner = " with the winner's columns" if tree is measured.get(TREE_BESIDE) else ""
        added = sorted({name for trial in results["trials"] for name in trial["trial"]["features"]})
        lines.append(
            f"A tree is better than the best network of this race: LightGBM{of_winner} "
            f"({tree['recipe']}{_with(tree)}): {split} "
            f"{_metrics(tree[split])}. Added features that were tried to close the gap: {', '.join(added) or 'none'}."
        )
    leaderboard = results.get("leaderboard", ())
    if line := adoption(measured, split, leaderboard):
        lines.append(f"Among the networks: {line[0].lower()}{line[1:]}" if tree_wins else line)
    lines += [f"Winner: {best['title']} ({best['recipe']}{_with(best)}): {split} {_metrics(best[split])}."]
    lines += _regularized(results)
    if results.get("model", {}).get("architecture", {}).get("embedding_widths"):
        lines.append(_widths(best["tables"]))
    if (final := measured.get("final_fit")) is not None:
        test = f": test {_metrics(final['test'])}" if final.get("test") else ""
        lines.append(
            f"Trained once more for {final['epochs']} epochs, with the validation rows too{test}. "
            "This is the model in the run folder."
        )
    if together is not None:
        lines.append(_together(together, split))
    for name, title in (
        ("baseline", "The best tuned baseline"),
        ("baseline without added features", "The best tuned baseline without added features"),
        ("tree", "A tree"),
        (TREE_BESIDE, "A tree with the winner's columns"),
    ):
        other = measured.get(name)
        if other is None or not other.get(split):
            continue
        if all(other.get(name) == best[name] for name in ("title", "recipe", "features", "dropped")):
            if len(leaderboard) != 1:  # which has been said already
                lines.append(f"{title} is the winner itself: no other network of the race was better.")
            continue
        lines.append(
            f"{title}, {other['title']}{_with(other)}: {split} {_metrics(other[split])}"
            f" ({_compared(best[split], other[split])})."
        )
    if "fastest" in measured:
        lines.append(_fastest(measured, split))
    return "\n".join([*lines, *_rejected(results["features"]), *_suspicions(results, best["features"])])


def _regularized(results: Mapping[str, Any]) -> list[str]:
    """Says that the winner's model had a lower validation loss with a weaker L2, where it had."""
    rows = results.get("leaderboard", ())
    mine = next((row for row in rows if results.get("winner") in row["trials"]), None)
    if mine is None:
        return []
    model = ("model", "features", "dropped")
    # With an L2 that is as strong, a recipe has not lost by this rule, but by having fewer seeds.
    weaker = (row for row in rows if row["decay"] < mine["decay"] and row["log_loss"] < mine["log_loss"])
    alike = (row for row in weaker if all(row[name] == mine[name] for name in model))
    return [
        "Of the recipes with which this model is about as good on the validation rows, it has the one with the "
        f"strongest L2: its loss there is {mine['log_loss']:.5f}, and {row['log_loss']:.5f} with {row['recipe']}."
        for row in alike
        if row["status"] == "complete"
    ][:1]


def _better_than_the_tree(ensemble: Mapping[str, Any], split: str) -> str:
    """Says whether the models together are better than the tree alone, which is better than the winner alone."""
    found, titles = ensemble["difference to the tree"], _listed(ensemble["titles"])
    gain = (
        f"is lower than that of LightGBM alone by {-found['mean']:.5f} (95 % interval {-found['high']:.5f} to "
        f"{-found['low']:.5f}, over {found['rows']:,} paired rows)"
    )
    if found["high"] < 0:
        return f"Adopt the mean prediction of {titles}: its {split} log loss {gain}."
    return f"No difference shown to LightGBM: the {split} log loss of the mean prediction of {titles} {gain}."


def _together(ensemble: Mapping[str, Any], split: str) -> str:
    """Says what the winner and other models predict together, and how to serve that."""
    found = ensemble["difference"]
    metrics = _metrics([ensemble[split]], seeds=False)
    return (
        f"Its mean prediction with {_listed(ensemble['titles'][1:])}: {split} {metrics}. The log loss less that of the "
        f"winner alone is {found['mean']:+.5f} (95 % interval {found['low']:+.5f} to {found['high']:+.5f} over "
        f"{found['rows']:,} rows). To serve that, for the time of all {len(ensemble['folders'])}, export with "
        "`--together`."
    )


def _widths(tables: Sequence[Mapping[str, Any]]) -> str:
    """Says how wide the tables of the winner are, where that was a choice."""
    widths = {size["table"]: size["width"] for size in tables}
    size = sum(size["bytes"] for size in tables) / 2**20
    return f"Its embedding tables take {size:,.2f} MiB. {widths_text(widths)}."


def _fastest(measured: Mapping[str, Any], split: str) -> str:
    """Says which model is faster than the winner and at least about as good as the usual baseline."""
    found, best, usual = (measured[name] for name in ("fastest", "winner", "baseline without added features"))
    beside = [f"{best['latency_us']:,.0f} of the winner"]
    if usual["trials"] != best["trials"]:
        beside.append(f"{usual['latency_us']:,.0f} of {usual['title']}")
    return (
        "The fastest model that is at least about as good on the validation rows as the best tuned baseline without "
        f"added features, {found['title']}{_with(found)}: {found['latency_us']:,.0f} µs for 512 rows, beside "
        f"{_listed(beside)}; {split} {_metrics(found[split])}. Export it with `--model RUN/{found['folder']}`."
    )


def _listed(names: Sequence[str]) -> str:
    """Names several things in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _rejected(features: Mapping[str, Any]) -> list[str]:
    """The added features whose gain chance may explain."""
    found = []
    for judged in features["judged"]:
        if judged["verdict"] == "accepted":
            continue
        what = " with ".join(name for name in judged["features"] if name not in judged["beside"])
        beside = f" beside {' and '.join(judged['beside'])}" if judged["beside"] else ""
        found.append(f"{what}{beside} (gain {judged['gain']:.5f}, chance explains {judged['needed']:.5f})")
    if not found:
        return []
    return [
        f"Rejected: {'; '.join(found)}. Added features have to lower the validation log loss by more than chance "
        f"explains, which includes that the best of {features['combinations']} combinations were tried."
    ]


def _suspicions(results: Mapping[str, Any], features: Sequence[str]) -> list[str]:
    """What a reader has to know before the numbers are believed."""
    lines = []
    for ranked in results["suspicious"]["certain"]:
        name = "_x_".join(ranked["columns"])
        if name in features or f"history_of_{name}" in features:
            lines.append(
                f"Check this before you trust the numbers: all {ranked['certain_rows']:,} validation rows whose {name} "
                "was mostly clicked in the training split are clicks. That happens when negatives are sampled among "
                "what was never clicked; then the winner does worse on live traffic."
            )
    if names := ["_x_".join(ranked["columns"]) for ranked in results["suspicious"]["left_out"]]:
        lines.append(
            f"Left out: the histories of {', '.join(names)}. In the validation split, more past clicks mean fewer "
            "clicks, which gives away that negatives were sampled and rows were split at random."
        )
    return lines


def _loss(seeds: Sequence[Mapping[str, float]]) -> float:
    return statistics.fmean(seed["log_loss"] for seed in seeds)


def _with(measured: Mapping[str, Any]) -> str:
    added, dropped = measured["features"], measured.get("dropped")
    with_them = f", with {', '.join(added)}" if added else ""
    return with_them + (f", without {', '.join(dropped)}" if dropped else "")


def _metrics(measured: Sequence[Mapping[str, float | None]], seeds: bool = True) -> str:
    parts = []
    for name, title in (("log_loss", "log loss"), ("auc", "AUC")):
        values = [value for seed in measured if (value := seed[name]) is not None]
        if len(values) < len(measured):  # no AUC, where all labels are equal
            continue
        spread = f" ± {statistics.stdev(values):.5f}" if len(values) > 1 else ""
        parts.append(f"{title} {statistics.fmean(values):.5f}{spread}")
    count = f" ({len(measured)} seed{'s' if len(measured) > 1 else ''})" if seeds else ""
    return f"{', '.join(parts)}{count}"


def _compared(best: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> str:
    difference = _loss(other) - _loss(best)
    return f"{abs(difference):.5f} {'worse' if difference > 0 else 'better'} than the winner"
