"""Searches a trained supernet for the best architectures."""

import hashlib
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import MANIFEST, open_split, sha256
from nasrec_torchrec.distributed.checkpoint import load_supernet
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.progress import update_interval
from nasrec_torchrec.search.cost import Limits
from nasrec_torchrec.search.evaluator import Candidate, EvaluationConfig, Evaluator
from nasrec_torchrec.search.evolution import EvolutionConfig, evolve
from nasrec_torchrec.search.report import write_results
from nasrec_torchrec.search.study import JOURNAL, CandidateStudy


def main(
    supernet: Path,
    data: Path,
    out: Path,
    evolution: EvolutionConfig,
    evaluation: EvaluationConfig,
    limits: Limits,
    top_k: int = 15,
    storage: str | None = None,
    study: str = "search",
    resume: Literal["auto", "never"] = "auto",
) -> None:
    """Runs regularized evolution over a trained supernet.

    Every candidate's last layer is fine-tuned before it is ranked on the validation split. A search that was killed
    goes on when the same command is given again.

    Args:
        supernet: run folder of a supernet's training.
        data: prepared data set.
        out: receives study.journal, results.json, search.png and the best architectures as architectures/rank-01.json,
            ...
        top_k: architectures to write.
        storage: where the Optuna study is, as a URL (sqlite:///search.db, postgresql://...); unset, OUT/study.journal.
        study: name of the study there.
        resume: auto takes from the study what it holds, never drops that first.
    """
    model = load_supernet(supernet)
    settings = {
        "supernet": _fingerprint(model),
        "data": sha256(data / MANIFEST),
        "evaluation": {name: value for name, value in asdict(evaluation).items() if name != "chunk_size"},
    }
    candidates = CandidateStudy(storage or out / JOURNAL, study, model.search_space, settings, anew=resume == "never")
    if candidates.candidates:
        print(f"{candidates.place}: holds {len(candidates.candidates)} candidates", file=sys.stderr)
    evaluator = Evaluator(model, open_split(data, "train").load(), open_split(data, "validation").load(), evaluation)

    def allowed(architecture: Architecture) -> bool:
        cost = evaluator.cost(architecture)
        return limits.allow(cost.multiply_adds, cost.parameters)

    found: list[Candidate] = []
    best = math.inf
    search = evolve(model.search_space, candidates.remembering(evaluator), evolution, allowed)
    with tqdm(total=evolution.evaluations, desc="search", unit="candidate", mininterval=update_interval()) as bar:
        for candidate in search:
            found.append(candidate)
            bar.update()
            best = min(best, candidate.metrics.log_loss)
            bar.set_postfix(best=f"{best:.5f}", refresh=False)
    write_results(found, out, top_k)
    print(f"best validation log loss {best:.5f}; see {out}/results.json")


def _fingerprint(model: SuperNet) -> str:
    """Tells supernets apart by their last layer, which every training step changes."""
    digest = hashlib.sha256()
    for parameter in model.interaction_arch.storage.over_arch.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run(main)
