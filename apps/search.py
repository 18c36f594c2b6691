"""Searches a trained supernet for the best architectures."""

import hashlib
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from tqdm import tqdm

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import MANIFEST, open_split, sha256
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.progress import update_interval
from nasrec_torchrec.runs.paths import RemotePath
from nasrec_torchrec.runs.record import record_start
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, Limits, Objective
from nasrec_torchrec.search.evaluator import Candidate, Evaluator
from nasrec_torchrec.search.evolution import evolve
from nasrec_torchrec.search.report import REPORT, write_results
from nasrec_torchrec.search.study import JOURNAL, CandidateStudy
from nasrec_torchrec.search.supernet import load_supernet

# Settings of the evaluation that change no loss.
_FREE = ("chunk_size", "cache_memory")


def main(
    supernet: Path,
    data: Path,
    out: Path,
    evolution: EvolutionConfig,
    evaluation: EvaluationConfig,
    objective: Objective,
    limits: Limits,
    top_k: int = 15,
    storage: str | None = None,
    study: str = "search",
    resume: Literal["auto", "never"] = "auto",
) -> None:
    """Searches a trained supernet: regularized evolution, or NSGA-II where costs are traded off.

    Every candidate's last layer is fine-tuned before it is ranked on the validation split. A search that was killed
    goes on when the same command is given again; given several times at once, its processes search together. Started
    on several ranks, each rank holds a share of the tables and of the rows.

    Args:
        supernet: run folder of a supernet's training.
        data: prepared data set.
        out: receives study.journal, report.html, candidates.parquet, results.json and the best architectures as
            architectures/rank-01.json, ...
        top_k: architectures to write.
        storage: where the Optuna study is, as a URL (sqlite:///search.db, postgresql://...); unset, OUT/study.journal.
        study: name of the study there.
        resume: auto takes from the study what it holds, never drops that first.
    """
    if evaluation.race_confidence is not None and objective.names != ("log_loss",):
        raise ValueError("race_confidence: candidates race for the loss alone, without trade_off and latency_target_us")
    if storage is None and isinstance(out, RemotePath):
        raise ValueError(f"storage: expected a database's URL, since no process can lock the file {out / JOURNAL}")
    with process_group() as device:
        model = load_supernet(supernet, device)
        with_latency = objective.needs_latency or limits.max_latency_us is not None
        settings = {
            "supernet": _fingerprint(model),
            "data": sha256(data / MANIFEST),
            "evaluation": {name: value for name, value in asdict(evaluation).items() if name not in _FREE},
        }
        rows = open_split(data, "train"), open_split(data, "validation")
        if dist.get_rank() != 0:
            Evaluator(model, *rows, evaluation).follow()
            return
        candidates = CandidateStudy(
            storage or out / JOURNAL, study, model.search_space, settings, objective, anew=resume == "never"
        )
        record_start(out)
        if candidates.candidates:
            print(f"{candidates.place}: holds {len(candidates.candidates)} candidates", file=sys.stderr)
        evaluator = Evaluator(model, *rows, evaluation)

        def allowed(architecture: Architecture) -> bool:
            cost = evaluator.cost(architecture)
            counted = cost.multiply_adds, cost.parameters, cost.activation_bytes
            if not limits.allow(*counted, None):
                return False
            return limits.max_latency_us is None or limits.allow(*counted, evaluator.latency(architecture).median_us)

        def evaluate(architecture: Architecture, incumbent: Candidate | None) -> Candidate:
            return evaluator(architecture, incumbent, with_latency)

        found: list[Candidate] = []
        best = math.inf
        with (
            evaluator,
            candidates.worker() as worker,
            tqdm(total=evolution.evaluations, desc="search", unit="candidate", mininterval=update_interval()) as bar,
        ):
            batches = candidates.evaluating(worker, evaluate, [asdict(evolution), asdict(limits)])
            for candidate in evolve(model.search_space, batches, evolution, objective, allowed):
                found.append(candidate)
                bar.update()
                best = min(best, math.inf if candidate.stopped else candidate.loss)
                bar.set_postfix(best=f"{best:.5f}", refresh=False)
        write_results(found, out, top_k, objective, limits)
        print(f"best validation log loss {best:.5f}; see {out / REPORT}")


def _fingerprint(model: SuperNet) -> str:
    """Tells supernets apart by their last layer, which every training step changes."""
    digest = hashlib.sha256()
    for parameter in model.interaction_arch.storage.over_arch.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run(main)
