"""Reads a pool that ``benchmarks/pool.py`` trained: how far rankings can be trusted, and what a search would ship.

    python benchmarks/pool_report.py --pool benchmarks/pools/movielens.json

It trains nothing. The first table shows the trainings by source. The second one shows, for the architectures of
NASRec's operators, how cheap predictors and supernets rank them: Kendall's tau with the validation loss after training,
the same on the better half, and regret@k, which is how far the best of a ranking's first k is from the best of all.
Below it stands how well two seeds of the same training agree, which bounds what any ranking can do. The third table
replays procedures on the random architectures: each spends the seconds of k whole trainings, chooses by the validation
loss, and the mean and the middle 95 % of the test loss over all replays are shown.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from nasrec_torchrec.cli import run
from nasrec_torchrec.runs.files import read_text

_PLACES = (3, 10)
_REPLAYS = 1000
_BUDGETS = (1, 2, 3, 4, 6, 8, 10)


def main(pool: Path) -> None:
    """Prints the three tables.

    Args:
        pool: JSON file that holds the pool.
    """
    found = json.loads(read_text(pool))
    trained = [model for model in found["models"] if model["runs"]]
    print("\n".join(by_source(trained)))
    ranked = [model for model in trained if model["space"] == "nasrec-full"]
    print("\n" + "\n".join(trust(ranked, found["supernets"])))
    if (said := noise(ranked)) is not None:
        print(f"\n{said}")
    print("\n" + "\n".join(replays([model for model in ranked if model["source"] == "random"])))


def loss(model: dict[str, Any]) -> float:
    """The lowest validation loss of a training, as the mean over its seeds."""
    return statistics.fmean(min(one["losses"]) for one in model["runs"].values())


def test_loss(model: dict[str, Any]) -> float:
    """The test log loss at the best epoch, as the mean over the seeds."""
    return statistics.fmean(one["test"]["log_loss"] for one in model["runs"].values())


def by_source(models: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: what each source's models reach. A baseline is a source of its own."""
    lines = [
        "| source | models | validation log loss | test log loss | test log loss of the best on validation "
        "| multiply-adds | step, ms | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        groups.setdefault(model["source"], []).append(model)
    for source, members in groups.items():
        best = min(members, key=loss)
        validation, test = (_spread([value(model) for model in members]) for value in (loss, test_loss))
        middle = [statistics.median(model[name] for model in members) for name in ("multiply_adds", "step_ms")]
        seconds = statistics.fmean(one["seconds"] for model in members for one in model["runs"].values())
        name = f" ({best['name']})" if source == "baseline" else ""
        lines.append(
            f"| {source} | {len(members)} | {validation} | {test} | {test_loss(best):.5f}{name} | {middle[0]:,.0f} "
            f"| {middle[1]:.1f} | {seconds:.0f} |"
        )
    return lines


def trust(models: list[dict[str, Any]], supernets: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: how predictors rank the models; a lower prediction is better."""
    truth = np.array([loss(model) for model in models])
    places = [k for k in _PLACES if k < len(models)]
    lines = [
        f"| ranking of {len(models)} architectures | tau | tau, best half | "
        + " | ".join(f"regret@{k}" for k in places)
        + " |",
        "|---|" + "---:|" * (2 + len(places)),
    ]
    predictors = {
        "validation loss after one epoch": [model["runs"]["0"]["losses"][0] for model in models],
        "validation loss after two epochs": [min(model["runs"]["0"]["losses"][:2]) for model in models],
        "multiply-adds, more first": [-model["multiply_adds"] for model in models],
        "parameters, more first": [-model["parameters"] for model in models],
    }
    for supernet in supernets:
        for epochs, ranks in supernet["ranks"].items():
            if all(model["name"] in ranks for model in models):
                for place, stage in enumerate(("inherited", "fine-tuned")):
                    name = f"supernet, seed {supernet['seed']}, {epochs} epochs, {stage}"
                    predictors[name] = [ranks[model["name"]][place] for model in models]
    better = truth <= np.median(truth)
    for name, values in predictors.items():
        guess = np.array(values)
        half = kendalltau(guess[better], truth[better]).statistic
        regrets = [regret(guess, truth, k) for k in places]
        lines.append(f"| {name} | {kendalltau(guess, truth).statistic:.2f} | {half:.2f} | {_numbers(regrets)} |")
    rng = np.random.default_rng(0)
    chance = [[regret(rng.random(len(truth)), truth, k) for k in places] for _ in range(_REPLAYS)]
    lines.append(f"| chance (mean of {_REPLAYS:,}) | 0 | 0 | {_numbers(list(np.mean(chance, axis=0)))} |")
    return lines


def noise(models: list[dict[str, Any]]) -> str | None:
    """Says how much of the spread between architectures is that of seeds; None if not all have a second seed."""
    if len(models) < 2 or not all({"0", "1"} <= set(model["runs"]) for model in models):
        return None
    one, other = (np.array([min(model["runs"][seed]["losses"]) for model in models]) for seed in "01")
    seeds = float(np.var(one - other, ddof=1)) / 2
    architectures = max(0.0, float(np.var((one + other) / 2, ddof=1)) - seeds / 2)
    return (
        f"Two seeds of the same training order the {len(models)} architectures with tau "
        f"{kendalltau(one, other).statistic:.2f}. The validation losses of seeds deviate by {seeds**0.5:.5f}, those of "
        f"architectures beyond that by {architectures**0.5:.5f}."
    )


def regret(guess: np.ndarray, truth: np.ndarray, first: int) -> float:
    """How far the best of a ranking's first few is from the best of all.

    Args:
        guess: what ranks, the lowest first.
        truth: what counts.
        first: how many are trained.

    Returns:
        The difference of their losses, 0 or more.
    """
    return float(truth[np.argsort(guess, kind="stable")[:first]].min() - truth.min())


def replays(models: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: the test loss of what procedures ship that train random architectures."""
    curves = np.array([model["runs"]["0"]["losses"] for model in models])
    tests = np.array([model["runs"]["0"]["test"]["log_loss"] for model in models])
    rng = np.random.default_rng(0)
    lines = ["| whole trainings | best of random | successive halving over random |", "|---:|---:|---:|"]
    for budget in (k for k in _BUDGETS if k <= len(models)):
        orders = [rng.permutation(len(models)) for _ in range(_REPLAYS)]
        plain = [tests[best_of(curves, order[:budget])] for order in orders]
        halved = ""
        if 2 <= budget <= len(models) // 2:
            halved = _middle([tests[halving(curves, order[: 2 * budget])] for order in orders])
        lines.append(f"| {budget} | {_middle(plain)} | {halved} |")
    return lines


def best_of(curves: np.ndarray, chosen: np.ndarray) -> int:
    """The model with the lowest loss of its whole curve."""
    return int(chosen[curves[chosen].min(1).argmin()])


def halving(curves: np.ndarray, chosen: np.ndarray) -> int:
    """The same, if half of the models end after a quarter of the epochs and half of the rest after half of them.

    With n models that is n / 4 + n / 8 + n / 8 = n / 2 whole trainings.
    """
    epochs = curves.shape[1]
    for share in (4, 2):
        done = max(1, epochs // share)
        ranked = chosen[np.argsort(curves[chosen, :done].min(1), kind="stable")]
        chosen = ranked[: max(1, len(ranked) // 2)]
    return best_of(curves, chosen)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.5f}"
    return f"{mean} ± {statistics.stdev(values):.5f}" if len(values) > 1 else mean


def _middle(values: list[float]) -> str:
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{np.mean(values):.5f} ({low:.5f} to {high:.5f})"


def _numbers(values: list[float]) -> str:
    return " | ".join(f"{value:.5f}" for value in values)


if __name__ == "__main__":
    run(main)
