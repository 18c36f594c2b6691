"""Searching as functions: what ``nasrec search`` and ``nasrec report`` do, for notebooks and scripts.

PyTorch is imported when one of them is called.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nasrec_torchrec.search.config import EvaluationConfig, EvolutionFlags, Limits, Objective
from nasrec_torchrec.training.config import RecipeName

if TYPE_CHECKING:
    from nasrec_torchrec.search.candidate import Candidate

_NO_FLAGS = EvolutionFlags()
_DEFAULT_EVALUATION = EvaluationConfig()
_DEFAULT_OBJECTIVE = Objective()
_NO_LIMITS = Limits()


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        candidates: all evaluated candidates, in the order in which they were drawn.
        report: the page that shows them.
    """

    candidates: "list[Candidate]"
    report: Path

    @property
    def best(self) -> "Candidate":
        """The candidate with the lowest validation log loss, of those that were evaluated on all rows."""
        whole = [candidate for candidate in self.candidates if not candidate.stopped and not candidate.failed]
        return min(whole, key=lambda candidate: candidate.loss)

    def __str__(self) -> str:
        return f"best validation log loss {self.best.loss:.5f}; see {self.report}"


def run(
    supernet: Path | str,
    data: Path | str,
    out: Path | str,
    evolution: EvolutionFlags = _NO_FLAGS,
    evaluation: EvaluationConfig = _DEFAULT_EVALUATION,
    objective: Objective = _DEFAULT_OBJECTIVE,
    limits: Limits = _NO_LIMITS,
    top_k: int = 15,
    storage: str | None = None,
    study: str = "search",
    resume: Literal["auto", "never"] = "auto",
    recipe: RecipeName = "fitted",
) -> SearchResult | None:
    """Searches a trained supernet: regularized evolution, or NSGA-II where costs are traded off.

    Every candidate's last layer is fine-tuned before it is ranked on the validation split. A search that was killed
    resumes when it is started again; started several times at once, its processes search together. Started on several
    ranks, each rank holds a share of the tables and of the rows.

    Args:
        supernet: run folder of a supernet's training.
        data: folder of a prepared data set.
        out: folder that receives study.journal, report.html, candidates.parquet, results.json and the best
            architectures as architectures/rank-01.json, ...
        evolution: how the search proceeds; what it leaves open follows from the recipe. An EvolutionConfig leaves
            nothing open.
        evaluation: how candidates are evaluated.
        objective: what is minimized.
        limits: what a candidate may cost.
        top_k: number of architectures to write.
        storage: URL of a database that holds the Optuna study (sqlite:///search.db, postgresql://...); unset, the file
            study.journal in the output folder.
        study: name of the study in the storage.
        resume: auto continues with what the study holds, never deletes that first.
        recipe: what decides the size of the search where it is not given: fitted derives it from the number of
            validation rows, and prints it; paper takes that of the NASRec paper for Criteo.

    Returns:
        The candidates and the report, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the settings contradict each other, or do not fit the study, the supernet or the data.

    Example::

        from nasrec_torchrec import search
        from nasrec_torchrec.search import EvolutionConfig
        found = search.run("runs/supernet", "data/criteo", "runs/search", EvolutionConfig(generations=20))
        print(found.best.architecture.to_json())
    """
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.search.driver import search_supernet
    from nasrec_torchrec.search.report import REPORT

    folders = to_path(supernet), to_path(data), to_path(out)
    evolution = evolution.as_paper() if recipe == "paper" else evolution
    found = search_supernet(*folders, evolution, evaluation, objective, limits, top_k, storage, study, resume)
    return None if found is None else SearchResult(found, to_path(out) / REPORT)


def write_report(search: Path | str, finalists: tuple[Path | str, ...] = ()) -> Path:
    """Shows a search, with its finalists beside the supernet's predictions, as one page.

    Args:
        search: folder of a search; report.html in it is written again, and finalists.json where there are finalists.
        finalists: run folders of trainings, each with one or several of the search's architectures.

    Returns:
        The page.

    Raises:
        ValueError: If a folder does not hold the results of a search or a training.
    """
    from nasrec_torchrec.finite import json_text
    from nasrec_torchrec.runs.files import write_text
    from nasrec_torchrec.runs.names import FINALISTS
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.search import report
    from nasrec_torchrec.search.finalists import agreement, read_finalists
    from nasrec_torchrec.search.results import read_results

    folder = to_path(search)
    candidates = read_results(folder).candidates
    trained = read_finalists([to_path(finalist) for finalist in finalists], candidates)
    if trained:
        records = [asdict(finalist) | {"mean": finalist.mean} for finalist in trained]
        # The test split is for the winner alone: who chooses by it must not report it.
        for record in records[1:]:
            del record["test_log_loss"], record["test_auc"]
        write_text(folder / FINALISTS, json_text({"kendall_tau": agreement(trained), "finalists": records}, indent=2))
    report.write_report(folder, trained)
    return folder / report.REPORT
