"""Checks whether a supernet ranks architectures as training them from scratch does.

    nasrec prepare frappe --source FOLDER --out data/frappe
    python benchmarks/rank_correlation.py --data data/frappe --out runs/rank_correlation

This trains the same architectures from scratch, and supernets with each path sampling strategy. It then compares the
validation log loss of an architecture with a supernet's weights, before and after fine-tuning the last layer, to its
log loss from scratch (the mean over the seeds). Every training has its own folder, so a run that was killed can be
resumed, and ``--only scratch`` and ``--only supernets`` can run side by side.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from scipy.stats import kendalltau, pearsonr, rankdata

from nasrec_torchrec import Architecture, SearchSpace, training
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import Strategy
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

SPACE = SearchSpace(num_blocks=3, dense_widths=(4, 16, 64), sparse_widths=(2, 8, 32))


@dataclass(frozen=True)
class Study:
    """What to train.

    Args:
        architectures: Number of architectures to sample from the space.
        epochs: Epochs of a training from scratch.
        batch_size: Batch size of a training from scratch.
        learning_rate: Learning rate of a training from scratch.
        seeds: Seeds of the trainings from scratch, over which the log loss is averaged.
        supernets: One path sampling strategy per supernet, with ``+warm_up`` to start with the full path.
        supernet_epochs: Epochs of a supernet.
        supernet_batch_size: Batch size of a supernet, which is small so that many paths are sampled.
        supernet_learning_rate: Learning rate of a supernet.
        supernet_seeds: Seeds of every supernet.
        warm_up_steps: Steps over which the probability of the full path decays from 1 to 0.
        adagrad_eps: Epsilon of Adagrad in all trainings. The paper's 0.01 is far above the gradients of the tables
            here, so it would hide how well they are trained.
        finetune_steps: Steps of fine-tuning the last layer.
        only: Trains only these and compares nothing.
    """

    architectures: int = 24
    epochs: int = 2
    batch_size: int = 512
    learning_rate: float = 0.05
    seeds: tuple[int, ...] = (0, 1)
    supernets: tuple[str, ...] = (*get_args(Strategy), "single_operator_any_connection+warm_up")
    supernet_epochs: int = 4
    supernet_batch_size: int = 128
    supernet_learning_rate: float = 0.05
    supernet_seeds: tuple[int, ...] = (0, 1)
    warm_up_steps: int = 2000
    adagrad_eps: float = 1e-6
    finetune_steps: int = 300
    only: Literal["all", "scratch", "supernets"] = "all"

    def __post_init__(self) -> None:
        known = [name + end for name in get_args(Strategy) for end in ("", "+warm_up")]
        for name in self.supernets:
            if name not in known:
                raise ValueError(f"supernets: expected some of {known}, found {name!r}")


def main(data: Path, out: Path, study: Study) -> None:
    """Trains what is not trained yet, and prints how well the ranks agree.

    Args:
        data: The prepared data set.
        out: Folder for one folder per training, results.json and ranks.png.
    """
    truth: list[list[float]] = []
    if study.only != "supernets":
        truth = [[_scratch(data, out, study, n, seed) for seed in study.seeds] for n in range(study.architectures)]
    inherited: dict[str, list[list[tuple[float, float]]]] = {}
    if study.only != "scratch":
        for name in study.supernets:
            inherited[name] = [_supernet(data, out, study, name, seed) for seed in study.supernet_seeds]
    if study.only == "all":
        report(truth, inherited, out)


def draw(count: int) -> list[Architecture]:
    """Samples distinct architectures with one operator per side."""
    generator = torch.Generator().manual_seed(0)
    found: dict[Architecture, None] = {}
    while len(found) < count:
        found[SPACE.sample(generator)] = None
    return list(found)


def _scratch(data: Path, out: Path, study: Study, number: int, seed: int) -> float:
    """Returns the validation log loss of an architecture that is trained on its own."""
    folder = out / f"scratch-{number:02d}-seed-{seed}"
    if not (folder / "result.json").exists():
        config = TrainConfig(
            study.epochs,
            study.batch_size,
            study.learning_rate,
            adagrad_eps=study.adagrad_eps,
            seed=seed,
            log_every=100,
        )
        with process_group() as device:
            description = ModelDescription(load_schema(data), draw(study.architectures)[number], use_layernorm=True)
            metrics = Trainer(description, config, folder, device).train(
                open_split(data, "train"), open_split(data, "validation")
            )
        assert metrics is not None
        write_text(folder / "result.json", json.dumps(metrics.log_loss))
    return float(json.loads((folder / "result.json").read_text()))


def _supernet(data: Path, out: Path, study: Study, name: str, seed: int) -> list[tuple[float, float]]:
    """Returns the validation log loss of every architecture with a supernet's weights, before and after fine-tuning."""
    folder = out / f"supernet-{name}-seed-{seed}"
    if not (folder / "result.json").exists():
        strategy, _, warm_up = name.partition("+")
        config = TrainConfig(
            study.supernet_epochs,
            study.supernet_batch_size,
            study.supernet_learning_rate,
            adagrad_eps=study.adagrad_eps,
            seed=seed,
            strategy=cast(Strategy, strategy),
            full_path_steps=study.warm_up_steps if warm_up else 0,
            log_every=100,
        )
        training.run_supernet(data, folder, SPACE, config)
        model = load_supernet(folder)
        splits = open_split(data, "train"), open_split(data, "validation")
        evaluation = EvaluationConfig(finetune_steps=study.finetune_steps)
        raw, tuned = (
            Evaluator(model, *splits, replace(evaluation, finetune_steps=steps)) for steps in (0, study.finetune_steps)
        )
        losses = [(raw(a).loss, tuned(a).loss) for a in draw(study.architectures)]
        write_text(folder / "result.json", json.dumps(losses))
    return [tuple(pair) for pair in json.loads((folder / "result.json").read_text())]


def report(truth: list[list[float]], inherited: dict[str, list[list[tuple[float, float]]]], out: Path) -> None:
    """Prints the table, and writes results.json and ranks.png."""
    scratch = np.array(truth)
    truths = scratch.mean(axis=1)
    spread = statistics.fmean(np.std(scratch, axis=1, ddof=1)) if scratch.shape[1] > 1 else float("nan")
    print(
        f"{len(truths)} architectures from scratch: validation log loss {truths.min():.4f} to {truths.max():.4f}, "
        f"deviation between architectures {truths.std(ddof=1):.4f}, between seeds {spread:.4f}"
    )
    for first in range(scratch.shape[1]):
        for second in range(first + 1, scratch.shape[1]):
            tau = kendalltau(scratch[:, first], scratch[:, second]).statistic
            print(f"seed {first} against seed {second} from scratch: tau {tau:.2f}")
    print(f"{'supernet':<38} {'seed':>4} {'':<10} {'tau [95 %]':>22} {'r [95 %]':>22} {'loss':>8}")
    rows = []
    for name, runs in inherited.items():
        for seed, pairs in enumerate(runs):
            for index, stage in enumerate(("inherited", "fine-tuned")):
                losses = np.array([pair[index] for pair in pairs])
                tau, r = (_with_interval(kind, losses, truths) for kind in (kendalltau, pearsonr))
                rows.append(
                    {"supernet": name, "seed": seed, "stage": stage, "tau": tau, "r": r, "losses": losses.tolist()}
                )
                print(
                    f"{name:<38} {seed:>4} {stage:<10} "
                    + " ".join(f"{v:>7.2f} [{low:>5.2f}, {high:>5.2f}]" for v, low, high in (tau, r))
                    + f" {losses.mean():>8.4f}"
                )
    write_text(out / "results.json", json.dumps({"scratch": truth, "supernets": rows}, indent=2))
    _draw(truths, scratch, rows, out / "ranks.png")


def _with_interval(statistic, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Formats a correlation with its 95 % bootstrap interval over the architectures."""
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(first), size=len(first)) for _ in range(1000)]
    values = [statistic(first[pick], second[pick]).statistic for pick in picks]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(statistic(first, second).statistic), float(low), float(high)


def _draw(truths: np.ndarray, scratch: np.ndarray, rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["supernet"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 6.5), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey=True)
    true_ranks = rankdata(truths)
    lowest, highest = (ends(rankdata(scratch, axis=0), axis=1) for ends in (np.min, np.max))
    for row in rows:
        axis = axes[("inherited", "fine-tuned").index(row["stage"])][names.index(row["supernet"])]
        ranks = rankdata(row["losses"])
        color = f"C{row['seed']}"
        axis.vlines(ranks, lowest, highest, color=color, linewidth=0.6)
        axis.plot(
            ranks, true_ranks, "o", color=color, markersize=4, label=f"seed {row['seed']}: tau {row['tau'][0]:.2f}"
        )
        axis.legend(fontsize=8, loc="upper left")
        axis.set_ylim(0, 1.35 * len(truths))
        axis.set_title(f"{row['supernet'].replace('_', ' ')},\n{row['stage']}", fontsize=8)
    figure.supxlabel("rank with the supernet's weights")
    figure.supylabel("rank from scratch, and range over the seeds")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    run(main)
