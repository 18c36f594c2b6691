"""Compares evolution, random search and Pareto search, and measures what racing saves.

    python benchmarks/search_algorithms.py --supernet runs/demo/supernet --data runs/demo/data --out runs/algorithms

All searches with the same objective share a study, so no candidate is evaluated twice. A run that was killed can be
resumed, and giving the command twice at once halves the time. The best architecture of all single-objective searches
and the best one on the front of a Pareto search with less than half of its FLOPs are then trained from scratch.
"""

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau, ttest_ind
from tqdm import tqdm

from nasrec_torchrec import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.names import JOURNAL
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, Objective
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.evolution import evolve
from nasrec_torchrec.search.pareto import first_front
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trials import Splits, train_best

FRONT = Objective(trade_off=("multiply_adds",))


@dataclass(frozen=True)
class Budget:
    """How much to do.

    Args:
        population: Population of evolution and of the Pareto search.
        generations: Generations of both.
        tournament: Tournament size of evolution.
        children: Children per generation of both. A random search samples as many candidates as they evaluate.
        seeds: Seeds of the searches.
        final_seeds: Seeds of the trainings from scratch.
        raced: Number of candidates that race, sampled at random.
        confidence: Confidence of the races.
        skip: Parts to skip: some of searches, finals and racing.
    """

    population: int = 40
    generations: int = 25
    tournament: int = 20
    children: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    final_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    raced: int = 60
    confidence: float = 0.999
    skip: tuple[str, ...] = ()


def main(
    supernet: Path, data: Path, out: Path, budget: Budget, evaluation: EvaluationConfig, training: TrainConfig
) -> None:
    """Prints and plots the results.

    Args:
        supernet: Folder of the run that trained the supernet.
        data: The prepared data set.
        out: Folder for the studies, the trainings, algorithms.json and algorithms.png.
    """
    model = load_supernet(supernet)
    rows = open_split(data, "train"), open_split(data, "validation")
    results: dict[str, object] = {}
    if "searches" not in budget.skip:
        evaluator = Evaluator(model, *rows, evaluation)
        single, pareto = (_searches(evaluator, model.search_space, out, budget, o) for o in (Objective(), FRONT))
        results |= _compare(single, pareto, out)
        best = min((c for found in single["evolution"] for c in found), key=lambda c: c.loss)
        fronted = [c for found in pareto["evolution"] for c in found]
        thrifty = min((c for c in fronted if 2 * c.cost.multiply_adds <= best.cost.multiply_adds), key=lambda c: c.loss)
        if "finals" not in budget.skip:
            results["finals"] = _finals({"best": best, "under half of its FLOPs": thrifty}, data, out, budget, training)
    if "racing" not in budget.skip:
        results["racing"] = _race(model, rows, budget, evaluation)
    write_text(out / "algorithms.json", json.dumps(results, indent=2))


def _searches(evaluator, space, out: Path, budget: Budget, objective: Objective) -> dict[str, list[list[Candidate]]]:
    """Returns the candidates of every seed by kind of search, in the order in which they were found."""
    study = CandidateStudy(out / JOURNAL, "_".join(objective.names), space, asdict(evaluator.config), objective)
    found: dict[str, list[list[Candidate]]] = {}
    with study.worker() as worker:
        for kind in ("evolution", "random") if not objective.trade_off else ("evolution",):
            found[kind] = []
            for seed in budget.seeds:
                config = EvolutionConfig(
                    budget.population, budget.generations, budget.children, budget.tournament, seed
                )
                if kind == "random":
                    config = replace(config, population=config.evaluations, generations=0)
                batches = study.evaluating(worker, lambda group, _: evaluator.several(group), [kind, asdict(config)])
                steps = evolve(space, batches, config, objective)
                title = f"{kind} for {' and '.join(objective.names)}, seed {seed}"
                found[kind].append(list(tqdm(steps, desc=title, total=config.evaluations, mininterval=10)))
    return found


def _compare(
    single: dict[str, list[list[Candidate]]], pareto: dict[str, list[list[Candidate]]], out: Path
) -> dict[str, object]:
    count = len(single["random"][0])
    print("\nbest validation log loss after so many candidates, mean and deviation over the seeds")
    marks = [count // 4, count // 2, count]
    table: dict[str, object] = {}
    for kind, runs in single.items():
        best = {mark: [min(c.loss for c in found[:mark]) for found in runs] for mark in marks}
        table[kind] = best
        cells = (f"{mark}: {statistics.fmean(v):.5f} ± {statistics.stdev(v):.5f}" for mark, v in best.items())
        print(f"  {kind:10} {'   '.join(cells)}")
    last = [[min(c.loss for c in found) for found in single[kind]] for kind in ("evolution", "random")]
    p = float(ttest_ind(*last, equal_var=False, alternative="less").pvalue)
    print(
        f"  evolution below random: {sum(a < b for a, b in zip(*last, strict=True))} of {len(last[0])} seeds, p {p:.4f}"
    )
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_time, over_cost = figure.subplots(1, 2)
    for (kind, runs), color in zip(single.items(), ("tab:blue", "tab:gray"), strict=True):
        curves = [[min(c.loss for c in found[: n + 1]) for n in range(count)] for found in runs]
        for index, curve in enumerate(curves):
            over_time.step(range(1, count + 1), curve, color=color, alpha=0.25)
            label = f"{kind}, mean of {len(runs)}" if not index else None
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            over_time.step(range(1, count + 1), mean, color=color, label=label, lw=2)
    over_time.set(xlabel="candidates evaluated", ylabel="best validation log loss")
    over_time.legend()
    low = min(last[0])
    over_time.set_ylim(low - 0.1 * (statistics.fmean(last[1]) - low), low + 4 * (statistics.fmean(last[1]) - low))
    for label, groups, color in (
        ("evolution", single["evolution"], "tab:blue"),
        ("random", single["random"], "tab:gray"),
        ("Pareto search", pareto["evolution"], "tab:orange"),
    ):
        candidates = [c for found in groups for c in found]
        values = [FRONT.values(c) for c in candidates]
        steps = sorted((cost, loss) for loss, cost in (values[i] for i in first_front(values)))
        over_cost.step(*zip(*steps, strict=True), where="post", color=color, marker="o", ms=3, label=f"{label}: front")
    over_cost.set(xlabel="multiply-adds per example", xscale="log", ylabel="validation log loss")
    over_cost.legend()
    with atomic_path(out / "algorithms.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return {"best_after": table, "p": p}


def _finals(chosen: dict[str, Candidate], data: Path, out: Path, budget: Budget, training: TrainConfig) -> object:
    """Trains both architectures from scratch with every seed."""
    print("\ntrained from scratch, mean and deviation over the seeds")
    results = {}
    for name, candidate in chosen.items():
        with process_group() as device:
            description = ModelDescription(load_schema(data), candidate.architecture, use_layernorm=True)
            splits = Splits(*(open_split(data, split) for split in SPLITS))
            folder = out / name.replace(" ", "-")
            trial = train_best(
                [description], [training.learning_rate], budget.final_seeds, training, folder, device, splits
            )
        assert trial is not None
        losses = [run["validation"]["log_loss"] for run in trial["runs"]]
        results[name] = {
            "multiply_adds": candidate.cost.multiply_adds,
            "in the supernet": candidate.loss,
            "validation_log_loss": losses,
            "architecture": json.loads(candidate.architecture.to_json()),
        }
        print(
            f"  {name:24} {candidate.cost.multiply_adds:9,} multiply-adds, in the supernet {candidate.loss:.5f}, "
            f"from scratch {statistics.fmean(losses):.5f} ± {statistics.stdev(losses):.5f}",
            flush=True,
        )
    return results


def _race(model, rows, budget: Budget, evaluation: EvaluationConfig) -> dict[str, float]:
    """Evaluates the same candidates with and without racing against the best earlier one, in turns."""
    racing = Evaluator(model, *rows, replace(evaluation, race_confidence=budget.confidence))
    whole = Evaluator(model, *rows, evaluation)
    generator = torch.Generator().manual_seed(1)
    architectures: dict[Architecture, None] = {}
    while len(architectures) < budget.raced:
        architectures[model.search_space.sample(generator)] = None
    raced: list[Candidate] = []
    truth: list[Candidate] = []
    for architecture in tqdm(architectures, desc="races", mininterval=10):
        done = [candidate for candidate in raced if not candidate.stopped]
        raced.append(racing(architecture, min(done, key=lambda c: c.loss, default=None)))
        truth.append(whole(architecture))
    best = min(range(len(truth)), key=lambda i: truth[i].loss)
    result = {
        "candidates": len(raced),
        "stopped": sum(c.stopped for c in raced),
        "share_of_rows_seen": statistics.fmean(
            c.metrics.rows / t.metrics.rows for c, t in zip(raced, truth, strict=True)
        ),
        "share_of_seconds": sum(c.seconds for c in raced) / sum(c.seconds for c in truth),
        "kendall_tau_with_whole": float(kendalltau([c.loss for c in raced], [c.loss for c in truth]).statistic),
        "best_was_stopped": raced[best].stopped,
    }
    print(f"\nracing: {json.dumps(result)}")
    return result


if __name__ == "__main__":
    run(main)
