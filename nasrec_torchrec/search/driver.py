"""One search from end to end: the supernet, the study that its workers share, the evolution and the results."""

import hashlib
import math
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.prepared import MANIFEST, data_warnings, label_alone, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.stored import read_description
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.files import require_local
from nasrec_torchrec.runs.fingerprint import code_of
from nasrec_torchrec.runs.log import warnings_of
from nasrec_torchrec.runs.names import JOURNAL
from nasrec_torchrec.runs.ranks import on_first_rank, writing
from nasrec_torchrec.runs.record import COMMAND, record_start
from nasrec_torchrec.search.asynchronous import Litters, evolve_asynchronously
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, EvolutionFlags, Limits, Objective
from nasrec_torchrec.search.cost import cost_in_supernet
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.evolution import evolve
from nasrec_torchrec.search.limits import narrowing, require_reachable
from nasrec_torchrec.search.report import write_report
from nasrec_torchrec.search.results import SearchResults, write_results
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.stopping import StopRequest

# Evaluation settings that do not change any loss.
_FREE = ("chunk_size", "cache_memory", "together")


def search_supernet(
    supernet: Path,
    data: Path,
    out: Path,
    evolution: EvolutionFlags,
    evaluation: EvaluationConfig,
    objective: Objective,
    limits: Limits,
    top_k: int = 15,
    storage: str | None = None,
    study: str = "search",
    resume: Literal["auto", "never"] = "auto",
) -> list[Candidate] | None:
    """Searches a trained supernet over all processes that the launcher started, and writes the results.

    Args:
        supernet: run folder of a trained supernet.
        data: prepared data set.
        out: folder that receives the study, the report and the best architectures.
        evolution: how the search proceeds; what it leaves open follows from the validation rows.
        evaluation: how candidates are evaluated.
        objective: what is minimized.
        limits: what a candidate may cost.
        top_k: number of architectures to write.
        storage: URL of the database that holds the study; None keeps it in a journal file in ``out``.
        study: name of the study in the storage.
        resume: ``auto`` reuses the candidates in the study; ``never`` deletes them first.

    Returns:
        The candidates in the order in which they were drawn, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the settings contradict each other, or do not fit the study, the supernet or the data.
        SystemExit: after SIGTERM or Ctrl-C, when the candidates so far are in the study and in the report.
    """
    request = StopRequest()
    if objective.names != ("log_loss",):
        if evaluation.race_confidence is not None:
            raise ValueError(
                "race_confidence: candidates race for the loss alone, without trade_off and latency_target_us"
            )
        evaluation = replace(evaluation, race_tolerance=0.0)
    if storage is None:
        require_local(out / JOURNAL, "storage: expected a database's URL, since no process can lock a remote file")
    # To drop what is in the storage is refused while others search.
    drop = (lambda: None) if resume == "never" else None
    with process_group() as device, writing(out, "search", workers=True, drop=drop):
        model = load_supernet(supernet, device)
        with_latency = objective.needs_latency or limits.max_latency_us is not None
        settings = {
            "supernet": _fingerprint(model),
            "data": sha256(data / MANIFEST),
            **({"code": code} if (code := code_of(COMMAND.plugins)) else {}),
            "evaluation": {name: value for name, value in asdict(evaluation).items() if name not in _FREE},
        }
        # Counted alike on every rank, before the rows are looked up.
        require_reachable(model.search_space, limits, partial(cost_in_supernet, model))
        rows = open_split(data, "train"), open_split(data, "validation")
        checkpoint = kept_checkpoint(supernet, collective=dist.get_world_size() > 1)
        read_description(checkpoint).require_fits(rows[1])
        first = dist.get_rank() == 0
        # Opened on the first rank alone; where it is refused, all ranks say why.
        opened: list[CandidateStudy] = []
        place = storage or out / JOURNAL
        never = resume == "never"
        on_first_rank(
            lambda: opened.append(CandidateStudy(place, study, model.search_space, settings, objective, never))
        )
        evaluator = Evaluator(model, *rows, evaluation)
        if not first:
            with request.listening():  # rank 0 gets the same signal, and says when to end
                evaluator.follow()
            return None
        print("\n".join(filter(None, [label_alone(data), evaluator.chosen])), file=sys.stderr)
        seen = min(len(rows[1]), evaluation.evaluation_rows)
        config = evolution.fitted(seen)
        if None in asdict(evolution).values():
            print(_explained(config, seen), file=sys.stderr)
        (candidates,) = opened
        record_start(out)
        warnings = _warnings(supernet, data)
        candidates.describe(config.evaluations, warnings)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if candidates.candidates:
            print(f"{candidates.place}: holds {len(candidates.candidates)} candidates", file=sys.stderr)

        def allowed(architecture: Architecture) -> bool:
            cost = evaluator.cost(architecture)
            if not limits.allow(cost, None):
                return False
            return limits.max_latency_us is None or limits.allow(cost, evaluator.latency(architecture))

        pending: dict[Architecture, Candidate] = {}  # evaluated here, and not in the list yet

        def evaluate(architectures: list[Architecture], incumbent: Candidate | None) -> list[Candidate]:
            evaluated = evaluator.several(architectures, incumbent, with_latency)
            pending.update((candidate.architecture, candidate) for candidate in evaluated)
            return evaluated

        found: list[Candidate] = []
        best = math.inf
        with (
            request.listening(),
            evaluator,
            candidates.worker() as worker,
            progress_bar(config.evaluations, "search", "candidate") as bar,
        ):
            # Measured on this rank alone; the evaluator ends the others with the same error.
            require_reachable(model.search_space, limits, evaluator.cost, evaluator.latency)
            search, space = [asdict(config), limits.to_dict()], model.search_space
            fit = narrowing(space, limits, model.sparse_arch.configs)
            if config.asynchronous:
                litters = Litters(space, config, objective, allowed, fit)
                proceeding = evolve_asynchronously(candidates, worker, evaluate, search, litters, evaluation.together)
            else:
                batches = candidates.evaluating(worker, evaluate, search, evaluation.together)
                proceeding = evolve(space, batches, config, objective, allowed, fit)
            for candidate in proceeding:
                found.append(candidate)
                pending.pop(candidate.architecture, None)
                bar.update()
                best = best if candidate.stopped else min(best, candidate.loss)
                bar.set_postfix(best=f"{best:.5f}", refresh=False)
                if request.signal:
                    found.extend(pending.values())
                    break
            if all(candidate.failed for candidate in found):
                raise ValueError(
                    f"{supernet}: no candidate has a finite validation loss, so there is nothing to choose from; the "
                    "supernet has diverged, and a lower learning_rate for its training may help"
                )
            stopped = ""
            if request.signal and len(found) < config.evaluations:
                stopped = f"asked to end; {len(found)} of {config.evaluations} candidates are evaluated"
                warnings = (f"{stopped}; the same command resumes the search", *warnings)
            tables = [table for table in model.sparse_arch.configs if table.name in space.width_tables]
            sizes = {table.name: table.num_embeddings for table in tables}
            write_results(SearchResults(tuple(found), objective, limits, top_k, warnings, sizes), out)
            write_report(out)
    if stopped:
        print(f"{out}: {stopped} and in the report; run the same command again to resume", file=sys.stderr)
        raise SystemExit(request.exit_code)
    return found


def _explained(config: EvolutionConfig, rows: int) -> str:
    """Says how large the search is, and why."""
    return (
        f"{rows:,} validation rows: {config.evaluations:,} candidates, a population of {config.population} and "
        f"{config.generations} generations of {config.children} (--recipe paper takes the paper's settings)"
    )


def _warnings(supernet: Path, data: Path) -> tuple[str, ...]:
    """What went wrong with the data and the training of the supernet."""
    known = dict.fromkeys(data_warnings(data))
    return (*known, *(f"supernet: {said}" for said in warnings_of(supernet) if said not in known))


def _fingerprint(model: SuperNet) -> str:
    """Returns a hash that identifies a supernet by its last layer, which every training step changes."""
    digest = hashlib.sha256()
    for parameter in model.interaction_arch.storage.over_arch.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
