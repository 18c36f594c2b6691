"""Gives whole procedures the same seconds on the same data, so that what each would have shipped can be compared.

    python benchmarks/equal_seconds.py --data '[data/movielens100k]' --out runs/equal-seconds --budget 15m
    python benchmarks/equal_seconds_report.py --runs runs/equal-seconds/movielens100k

The procedures are `auto`; `auto` with the operators of NASREC_2026; `auto` on exactly the data's own columns; the same
with random architectures alone; the baselines alone, tuned; and the paper's procedure: a supernet, evolution in it, and
the training of its best architectures. LightGBM with its own early stopping stands beside them. Each procedure chooses
on the validation split, and the one model that it would have shipped is measured on the test split.

Every run, which is a data set, a procedure and a seed, is written to a JSON file of its own once it is over, and is not
repeated when the command is given again. Files from several machines may be put into one folder for the report, if the
machines are alike. With `--parallel N`, N runs at a time have a core each. Seconds are then best those of the clock
(`--clock wall`). Processor seconds of the one process, the default, do not depend on other work on the machine.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from equal_seconds_report import TITLES, Procedure

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import digest_of, load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored_trees import trees_are_installed
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.runs.fingerprint import digest
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.evolution import evolve, one_by_one
from nasrec_torchrec.search.race.config import RACE_SPACES, RaceConfig, RaceSpace
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import Recipe, usual_batch_size
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.tree import measure_tree, train_tree
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

# Shares of the budget after which the paper's supernet and its search end; the rest trains the best architectures.
_SUPERNET_ENDS, _SEARCH_ENDS = 0.3, 0.6
_FINALISTS, _EPOCHS = 3, 4
# A run ends this much later than its budget at the latest, or is not begun before the limit.
_OVERRUN = 1.1
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Run:
    """A procedure with a seed on a data set."""

    data: Path
    procedure: Procedure
    seed: int

    def folder(self, work: Path) -> Path:
        """Returns the run folder."""
        return work / self.data.name / f"{self.procedure}-{self.seed}"

    def file(self, out: Path) -> Path:
        """Returns the file of the result."""
        return out / self.data.name / f"{self.procedure}-{self.seed}.json"


def main(
    data: list[Path],
    out: Path,
    budget: str = "15m",
    seeds: list[int] | None = None,
    only: list[Procedure] | None = None,
    clock: Literal["wall", "cpu"] = "cpu",
    parallel: int = 0,
    limit: str = "1d",
    work: Path | None = None,
    quick: bool = False,
) -> None:
    """Runs every procedure with every seed on every data set.

    Args:
        data: prepared data sets, whose folders have different names.
        out: receives a folder for every data set, with a JSON file for every procedure and seed.
        budget: seconds of each run, with s, m, h or d.
        seeds: seeds of the procedures; unset, 0, 1 and 2.
        only: procedures to run; unset, all.
        clock: clock of the budget: ``wall`` time, or the processor time (``cpu``) of the process.
        parallel: number of runs at a time, each on a core of its own and in a process of its own; 0 runs one after
            another in this process.
        limit: time after which everything ends with ``parallel``, with s, m, h or d; a run that would not end before
            is not begun.
        work: receives the run folders; unset, ``out``.
        quick: three trials of one epoch instead of the budget, and two seeds.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a core of the CPU is what is shared out
    torch.set_num_threads(1)
    config = RaceConfig(budget=budget, clock=clock, trees=trees_are_installed(), quiet=True)
    seconds = RaceConfig(budget=limit).budget_seconds
    if len({folder.name for folder in data}) < len(data):
        raise ValueError(f"data: expected folders with different names, found {[str(folder) for folder in data]}")
    chosen = [name for name in TITLES if name in (only or TITLES) and (name != "lightgbm" or config.trees)]
    wanted = seeds or ([0, 1] if quick else [0, 1, 2])
    runs = [_Run(folder, name, seed) for seed in wanted for folder in data for name in chosen]
    runs = [run for run in runs if not run.file(out).exists()]
    if parallel:
        flags = [
            "--out",
            str(out),
            "--work",
            str(work or out),
            "--budget",
            budget,
            "--clock",
            clock,
            "--quick",
            str(quick).lower(),
        ]
        _in_parallel(runs, out, flags, config.budget_seconds, parallel, seconds)
        return
    for one in runs:
        found = _result(one, work or out, config, quick)
        # Of the rows alone: a manifest also says where the raw files were.
        rows = digest([digest_of(one.data, split) for split in ("train", "validation", "test")])
        described = {"procedure": one.procedure, "seed": one.seed, "data": rows}
        write_text(one.file(out), json.dumps({**described, "budget": budget, "clock": clock, **_here(), **found}))


def _result(job: _Run, work: Path, whole: RaceConfig, quick: bool) -> dict[str, Any]:
    whole = replace(whole, seed=job.seed)
    if quick:
        whole = replace(whole, trials=3, epochs=1, final_seeds=1)
    plain = replace(whole, features=False, drop_columns=False, trees=False, students=False)
    folder = job.folder(work)
    now = time.process_time if whole.clock == "cpu" else time.monotonic
    match job.procedure:
        case "auto":
            return _race(job.data, whole, folder)
        case "auto-2026":
            return _race(job.data, whole, folder, RACE_SPACES["nasrec-2026"])
        case "auto-plain":
            return _race(job.data, plain, folder)
        case "random":
            return _race(job.data, replace(plain, sources=("random",)), folder)
        case "baselines":
            return _race(job.data, replace(plain, sources=("baseline",)), folder)
        case "paper":
            return _paper(job.data, folder, 5.0 if quick else whole.budget_seconds, job.seed, now)
        case "lightgbm":
            return _tree(job.data, folder, job.seed, now)


def _in_parallel(
    runs: Sequence[_Run], out: Path, flags: Sequence[str], budget: float, parallel: int, limit: float
) -> None:
    """Does the runs in processes of their own, a core each, and ends those that are not over at the limit."""
    cores = sorted(os.sched_getaffinity(0))
    if parallel > len(cores):
        raise ValueError(f"parallel: expected at most {len(cores)}, one for each core, found {parallel}")
    started = time.monotonic()
    waiting = list(runs)
    free = cores[:parallel]
    busy: dict[int, tuple[_Run, subprocess.Popen[bytes]]] = {}
    try:
        while busy or (waiting and time.monotonic() - started + _OVERRUN * budget < limit):
            while waiting and free and time.monotonic() - started + _OVERRUN * budget < limit:
                core = free.pop(0)
                busy[core] = waiting[0], _start(waiting.pop(0), out, flags, core)
            for core, (job, process) in list(busy.items()):
                if process.poll() is not None:
                    del busy[core]
                    free.append(core)
                    _say(job, out, started)
            if time.monotonic() - started > limit:
                break
            time.sleep(_POLL_SECONDS)
    finally:
        for _, process in busy.values():
            process.kill()
            process.wait()
    if missing := [str(job.file(out)) for job in runs if not job.file(out).exists()]:
        raise ValueError(f"{len(missing)} runs have failed or were not over at the limit: {', '.join(missing)}")


def _start(job: _Run, out: Path, flags: Sequence[str], core: int) -> subprocess.Popen[bytes]:
    one = ["--data", f"[{job.data}]", "--seeds", f"[{job.seed}]", "--only", f"[{job.procedure}]"]
    log = job.file(out).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, *one, *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
    with suppress(ProcessLookupError):
        os.sched_setaffinity(process.pid, {core})
    return process


def _say(job: _Run, out: Path, started: float) -> None:
    file = job.file(out)
    if file.exists():
        found = json.loads(file.read_text())
        what = f"test log loss {found['log_loss']:.5f}, {found['seconds']:.0f} s, {found.get('title', '')}"
    else:
        what = "failed: " + "".join(file.with_suffix(".log").read_text().splitlines()[-1:])
    title = f"{job.data.name}, {TITLES[job.procedure]}, seed {job.seed}"
    print(f"{time.monotonic() - started:4.0f} s: {title}: {what}", flush=True)


def _here() -> dict[str, str]:
    """Returns the machine and the versions, by which the runs of a report are compared."""
    information = Path("/proc/cpuinfo")
    names: Iterator[str] = iter(())
    if information.exists():
        names = (line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line)
    return {
        "machine": next(names, platform.machine()),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrec")),
    }


def _race(data: Path, config: RaceConfig, folder: Path, space: RaceSpace | None = None) -> dict[str, Any]:
    results = auto(data, folder, config, space)
    assert results is not None, "one rank"
    best = results["measured"]["winner"]
    place = best["seeds"].index(results["model"]["seed"])
    phases: dict[str, float] = {}
    for trial in results["trials"]:
        phase = trial["trial"]["phase"]
        phases[phase] = phases.get(phase, 0.0) + sum(trial["seconds"])
    return {
        "log_loss": best["test"][place]["log_loss"],
        "auc": best["test"][place]["auc"],
        "validation": best["validation"][place]["log_loss"],
        "seconds": results["seconds"],
        "trials": len(results["trials"]),
        "title": best["title"],
        "recipe": best["recipe"],
        "features": best["features"],
        "dropped": best["dropped"],
        "together": results["ensemble"],
        "spent": {phase: round(seconds, 1) for phase, seconds in phases.items()},
        "sources": results["sources"],
        "suspicious": results["suspicious"],
    }


def _tree(data: Path, folder: Path, seed: int, now: Callable[[], float]) -> dict[str, Any]:
    tree = train_tree(data, load_schema(data), folder, None, seed, now)
    test = measure_tree(folder, open_split(data, "test"))
    return {**_picked(test), "validation": tree.validation[0]["log_loss"], "seconds": tree.seconds, "trials": 1}


def _picked(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("log_loss", "auc")}


def _paper(data: Path, folder: Path, budget: float, seed: int, now: Callable[[], float]) -> dict[str, Any]:
    """A supernet by the paper's kind of recipe, regularized evolution in it, and the training of its best."""
    started = now()
    spent: dict[str, float] = {}

    def seconds() -> float:
        return now() - started

    schema, space = load_schema(data), SearchSpace(**asdict(RaceSpace()))
    train, validation = open_split(data, "train"), open_split(data, "validation")
    batch = usual_batch_size(len(train))
    with process_group() as device:
        supernet = ModelDescription(schema, space, use_layernorm=True)
        probe = TrainConfig(1, batch, 0.05, full_path_steps=1, resume="never", seed=seed)
        began = now()
        Trainer(supernet, probe, folder / "probe", device).train(train, None, lambda *_: True, (0.2,))
        epoch = (now() - began) / 0.2
        epochs = max(1, int((_SUPERNET_ENDS * budget - seconds()) / epoch))
        config = TrainConfig(epochs, batch, 0.05, full_path_steps=100, seed=seed)
        Trainer(supernet, config, folder / "supernet", device).train(train, None)
        spent["supernet"] = round(seconds(), 1)
        evaluation = EvaluationConfig(60, 256)
        evolution = EvolutionConfig(32, 64, 8, 16, seed)
        candidates = []
        with Evaluator(load_supernet(folder / "supernet", device), train, validation, evaluation) as evaluator:
            for candidate in evolve(space, one_by_one(evaluator), evolution):
                candidates.append(candidate)
                if seconds() > _SEARCH_ENDS * budget:
                    break
        spent["search"] = round(seconds() - spent["supernet"], 1)
        candidates.sort(key=lambda candidate: candidate.loss)
        recipe = Recipe(0.1, _EPOCHS, batch, "adagrad", warmup_fraction=0.1)
        losses: dict[int, float] = {}
        rows = RaceData((data,), schema)
        for number, candidate in enumerate(candidates[:_FINALISTS]):
            trial = Trial("finals", "supernet", candidate.architecture, recipe, (), seed)
            curve: list[tuple[float, float]] = []

            def report(epoch: int, loss: float, auc: float, took: float, curve: list[Any] = curve) -> bool:
                curve.append((loss, took))
                return seconds() + took > budget

            if losses and seconds() + spent["first finalist"] > budget:
                break
            train_trial(trial, _EPOCHS, rows, folder / f"{number}", device, report, now)
            losses[number] = min(loss for loss, _ in curve)
            spent.setdefault("first finalist", round(sum(took for _, took in curve), 1))
        best = min(losses, key=lambda number: losses[number])
        spent["training"] = round(seconds() - spent["supernet"] - spent["search"], 1)
        test = asdict(click_metrics(*predict(folder / f"{best}", open_split(data, "test"))))
        architecture = candidates[best].architecture
        assert isinstance(architecture, Architecture)
        return {
            **_picked(test),
            "validation": losses[best],
            "seconds": round(seconds(), 1),
            "trials": len(losses),
            "title": f"nasrecnet, place {best + 1} of {len(candidates)} in the supernet",
            "architecture": json.loads(architecture.to_json(None)),
            "spent": spent,
        }


if __name__ == "__main__":
    run(main)
