"""The results of a search for other programs: a table of all candidates, and the best ones and the front as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.drawing import to_svg
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import atomic_path, local_copy, write_text
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import Limits, Objective
from nasrec_torchrec.search.pareto import first_front

_METRICS = ("auc", "log_loss", "normalized_entropy", "rows")
# Given here because a column whose values are all missing would have no type.
_FLOATS = ("auc", "log_loss", "normalized_entropy", "loss", "latency_us", "latency_iqr_us")
_TYPES = dict.fromkeys(_FLOATS, pa.float64()) | {"table_bytes": pa.int64()}


@dataclass(frozen=True)
class SearchResults:
    """The candidates of a search, and what decides which of them are the best.

    Args:
        candidates: candidates in the order of the search.
        objective: what was minimized.
        limits: limits on the cost of the best ones; a latency that another worker measured may exceed them.
        top_k: how many candidates count as the best.
        warnings: what went wrong with the data and the supernet's training, with what to do about it.
        table_rows: number of rows of each table whose width is a choice.
    """

    candidates: tuple[Candidate, ...]
    objective: Objective
    limits: Limits
    top_k: int
    warnings: tuple[str, ...] = ()
    table_rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def eligible(self) -> list[Candidate]:
        """The candidates that were evaluated on all rows, have a finite loss and are within the limits."""
        return [
            candidate
            for candidate in self.candidates
            if not candidate.stopped and not candidate.failed and self.limits.allow(candidate.cost, candidate.latency)
        ]

    @property
    def best(self) -> list[Candidate]:
        """The best candidates by the objective, best first, each network once."""
        ordered = sorted(self.eligible, key=self.objective.values)
        # The same network written in two ways has exactly the same loss and cost.
        distinct = {(c.loss, c.cost.multiply_adds, c.cost.parameters): c for c in reversed(ordered)}
        return list(reversed(distinct.values()))[: self.top_k]

    @property
    def front(self) -> list[Candidate]:
        """The front that a search of several objectives looked for, the lowest loss first."""
        eligible = self.eligible
        if not self.objective.trade_off or not eligible:
            return []
        positions = first_front([self.objective.values(candidate) for candidate in eligible])
        return sorted((eligible[position] for position in positions), key=self.objective.values)


def write_results(results: SearchResults, folder: Path) -> None:
    """Writes what a search found, and replaces the files of an earlier search.

    ``candidates.parquet`` holds all candidates in the order of the search and ``results.json`` the best ones and the
    front. ``architectures/`` holds these as ``rank-01.json``, ``front-01.json``, ... with drawings.

    Args:
        results: results to write.
        folder: folder to write to.
    """
    best, front = results.best, results.front
    numbers = {candidate.architecture: number for number, candidate in enumerate(results.candidates, start=1)}
    document = {
        "evaluated": len(results.candidates),
        "stopped": sum(candidate.stopped for candidate in results.candidates),
        "failed": sum(candidate.failed for candidate in results.candidates),
        "seconds": sum(candidate.seconds for candidate in results.candidates),
        "objective": asdict(results.objective),
        "limits": results.limits.to_dict(),
        "top_k": results.top_k,
        "warnings": list(results.warnings),
        "table_rows": dict(results.table_rows),
        "best": [_record(numbers[candidate.architecture], candidate) for candidate in best],
        "front": [_record(numbers[candidate.architecture], candidate) for candidate in front],
    }
    with atomic_path(folder / names.CANDIDATES) as temporary:
        pq.write_table(_table(results.candidates), temporary)
    _write_architectures(folder / names.ARCHITECTURES, best, front)
    write_text(folder / names.RESULTS, json_text(document, indent=2))


def read_results(folder: Path) -> SearchResults:
    """Reads what :func:`write_results` wrote.

    Raises:
        ValueError: If the folder does not hold the results of a search.
    """
    try:
        rows = pq.read_table(local_copy(folder / names.CANDIDATES)).to_pylist()
        document = json.loads((folder / names.RESULTS).read_text())
        candidates = tuple(_candidate(row) for row in rows)
        objective, limits = Objective(**document["objective"]), Limits(**document["limits"])
        # Older versions wrote none of these.
        top_k, warnings = document.get("top_k", len(document["best"])), tuple(document.get("warnings", ()))
        return SearchResults(candidates, objective, limits, top_k, warnings, document.get("table_rows", {}))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: does not hold the results of a search: {error}") from None


def _record(number: int, candidate: Candidate) -> dict[str, Any]:
    record = candidate.to_record()
    metrics = record.pop("metrics")
    return {"candidate": number} | metrics | record


def _table(candidates: Sequence[Candidate]) -> pa.Table:
    rows = [
        _record(number, candidate) | {"architecture": candidate.architecture.to_json(indent=None)}
        for number, candidate in enumerate(candidates, start=1)
    ]
    table = pa.Table.from_pylist(rows)
    for name, kind in _TYPES.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table.column(name).cast(kind))
    return table


def _candidate(row: dict[str, Any]) -> Candidate:
    metrics = {name: row[name] for name in _METRICS}
    return Candidate.from_record(row | {"metrics": metrics, "architecture": json.loads(row["architecture"])})


def _write_architectures(folder: Path, best: Sequence[Candidate], front: Sequence[Candidate]) -> None:
    named = {f"rank-{rank:02d}": candidate for rank, candidate in enumerate(best, start=1)}
    others = [candidate for candidate in front if candidate not in best]
    named |= {f"front-{place:02d}": candidate for place, candidate in enumerate(others, start=1)}
    for name, candidate in named.items():
        write_text(folder / f"{name}.json", candidate.architecture.to_json())
        write_text(folder / f"{name}.svg", to_svg(candidate.architecture))
    for file in [*folder.glob("rank-*.*"), *folder.glob("front-*.*")]:
        if file.stem not in named:
            file.unlink(missing_ok=True)
