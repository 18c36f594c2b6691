"""``nasrec score``."""

from pathlib import Path

from nasrec_torchrec.cli.program import Program, as_json
from nasrec_torchrec.datasets.config import TextFlags
from nasrec_torchrec.inference import jobs
from nasrec_torchrec.inference.config import ScoringConfig


def score(
    data: str,
    out: Path,
    config: ScoringConfig,
    text: TextFlags,
    package: Path | None = None,
    model: Path | None = None,
    words: Path | None = None,
    sharding_type: str | None = None,
) -> dict[str, int] | None:
    """Writes the click probability of every row of files; a scoring that was killed resumes when it is started again.

    With a package, one process scores. With the run folder of a training, all ranks of torchrun do, each with a part of
    the tables.

    Args:
        model: run folder of a training, to score without an export where the tables fit into no single machine.
        words: folder of the prepared data that the model was trained on, which --model needs for the words of its
            dictionaries if rows are raw; unset, the one that the run's record names.
        sharding_type: sharding type of all tables with --model; unset, the planner chooses.

    The other arguments are those of :func:`~nasrec_torchrec.inference.jobs.score`.
    """
    if (package is None) == (model is None):
        raise ValueError("expected either --package, an exported model, or --model, the run folder of a training")
    if model is not None:
        return jobs.score_on_ranks(model, data, out, config, text, words, sharding_type)
    assert package is not None
    return jobs.score(package, data, out, config, text)


def _counted(counts: dict[str, int]) -> str:
    listed = ", see _rejects.jsonl there" if counts["rejected"] else ""
    return f"{counts['rows']:,} rows scored, {counts['rejected']:,} rejected{listed}"


PROGRAM = Program(
    score,
    example="nasrec score --package runs/export --data 'logs/*.csv.gz' --raw --out runs/scores",
    show=_counted,
    piped=as_json,
    document=lambda counts: counts,
    resume="run the same command again to resume after the last finished piece",
)
