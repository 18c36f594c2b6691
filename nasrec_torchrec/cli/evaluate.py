"""``nasrec evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.training import jobs

if TYPE_CHECKING:
    from nasrec_torchrec.training.evaluation import Evaluation


def evaluate(
    model: Path,
    data: Path,
    split: Literal["train", "validation", "test"] = "test",
    batch_size: int | None = None,
    slice: tuple[str, ...] = (),
    sharding_type: str | None = None,
    importance: int = 0,
    report: Path | None = None,
) -> "tuple[str, Evaluation] | None":
    """Measures a trained model, whatever number of ranks trained it.

    With several ranks of torchrun, each holds a part of the tables alone, and the memory of each is printed. If the
    schema of the data names a column of weights, all metrics are weighted by it.

    Args:
        slice: features by whose values the rows are divided, to measure each part; numbers are divided into five parts.

    The other arguments are those of :func:`~nasrec_torchrec.training.jobs.evaluate`.
    """
    found = jobs.evaluate(model, data, split, batch_size, slice, sharding_type, importance, report)
    return None if found is None else (split, found)


def _document(result: "tuple[str, Evaluation]") -> dict[str, Any]:
    split, found = result
    return {split: found.to_json()}


PROGRAM = Program(
    evaluate,
    example="nasrec evaluate --model runs/model --data DATA --split validation --slice country --importance 3",
    show=lambda result: f"{result[0]} split\n{result[1]}",
    document=_document,
)
