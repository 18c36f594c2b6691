"""Settings of a race; importable without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from nasrec_torchrec.search_space import NASREC_2026, SearchSpace
from nasrec_torchrec.spans import seconds_of

Phase = Literal["recipes", "features", "architectures", "polish", "finals"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Source = Literal["baseline", "reference", "random", "mutation", "surrogate"]
# Shares of the budget after which a phase ends; without students, architectures have the time of these too.
WITHOUT_STUDENTS = 0.78
_ENDS = {"recipes": 0.2, "features": 0.35, "architectures": 0.7, "polish": 0.85, "finals": 1.0}


@dataclass(frozen=True)
class RaceConfig:
    """How a race spends its budget.

    Args:
        budget: total time, such as 90s, 5m, 2h or 1d, which all workers share.
        clock: clock of the budget: ``wall`` time, or the processor time (``cpu``) of one process, which compares races
            fairly on a machine that also does other work.
        trials: number of trials that replaces the budget; with one worker the race is then reproducible.
        seed: seed of everything that is sampled.
        monitor: validation loss that decides. ``centered_log_loss`` is the log loss after the mean prediction is moved
            to the click rate of the validation rows; if unset, it decides where that rate differs from the training
            rows' by more than chance explains, and ``log_loss`` decides elsewhere.
        epochs: number of epochs of a full training; if unset, as many as the budget allows, between 2 and 20.
        reduction_factor: number of trials at a rung of which one is promoted.
        features: whether to propose crosses and statistics of the categorical features.
        drop_columns: whether to try models that do not read the columns that the best one gains nothing from.
        reversed_features: whether to propose histories even if their relation to the label is reversed in the
            validation split, which gives away that negatives were sampled and rows were split at random.
        max_features: largest number of added features.
        candidate_features: largest number of sparse features of the data that are combined; those with the largest
            tables come first.
        students: whether the best three trials of the race teach a small MLP, the best model of half the latency and
            the best one, on the training rows.
        sources: sources of models: ``baseline``, ``reference`` (known models that the search space holds), ``random``,
            ``mutation``, ``surrogate``. Recipes and features are judged by a small DLRM in any case.
        finalists: number of models that are repeated with further seeds.
        final_seeds: number of seeds of every finalist.
        ensemble: largest number of trained models, LightGBM among them, whose mean prediction stands beside the
            winner's; 1 for none.
        trees: whether to train LightGBM as a yardstick, which takes at most 6 % of the budget, and at the end once more
            on the winner's columns if these are others; if unset, it is trained if it is installed.
        step_limit: largest duration of a training step relative to the slowest baseline; a slower architecture is not
            trained, nor is one whose full training would take more than a tenth of the budget.
        final_fit: whether to train the winner once more, on the rows of the training and the validation split together,
            for as many epochs as were best; that model is then the result.
        slice: columns by whose values the report divides the rows that are read last, with the winner's metrics of each
            part; numbers are divided into five parts.
        quiet: whether to print only the verdict.
    """

    budget: str = "1h"
    clock: Literal["wall", "cpu"] = "wall"
    trials: int | None = None
    seed: int = 0
    monitor: Literal["log_loss", "centered_log_loss"] | None = None
    epochs: int | None = None
    reduction_factor: int = 3
    features: bool = True
    drop_columns: bool = True
    reversed_features: bool = False
    max_features: int = 8
    candidate_features: int = 12
    students: bool = True
    sources: tuple[Source, ...] = get_args(Source)
    finalists: int = 3
    final_seeds: int = 3
    ensemble: int = 4
    trees: bool | None = None
    step_limit: float = 4.0
    final_fit: bool = False
    slice: tuple[str, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        self.budget_seconds  # noqa: B018 - checks it
        for name in ("trials", "epochs", "max_features", "candidate_features", "finalists", "final_seeds", "ensemble"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a positive number, found {value}")
        for source in self.sources:
            if source not in get_args(Source):
                raise ValueError(f"sources: expected any of {get_args(Source)}, found {source!r}")
        if self.reduction_factor < 2:
            raise ValueError(f"reduction_factor: expected 2 or more, found {self.reduction_factor}")
        if not self.step_limit > 0:
            raise ValueError(f"step_limit: expected a positive number, found {self.step_limit}")

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds."""
        seconds = seconds_of(self.budget)
        if seconds is None:
            raise ValueError(f"budget: expected a number with s, m, h or d, such as 90s or 2h, found {self.budget!r}")
        return seconds

    def phase(self, share: float) -> Phase:
        """Returns the phase in which a new trial is proposed when a share of the budget is spent."""
        phases = [phase for phase in PHASES if self.features or self.drop_columns or phase != "features"]
        ends = _ENDS if self.students else _ENDS | {"architectures": WITHOUT_STUDENTS}
        return next((phase for phase in phases if share < ends[phase]), phases[-1])


@dataclass(frozen=True)
class RaceSpace(SearchSpace):
    """Networks of about the baselines' size: the paper's operators in three blocks."""

    num_blocks: int = 3
    dense_widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    sparse_widths: tuple[int, ...] = (8, 16, 32)


# By the name that a command line has for them.
RACE_SPACES = {
    "nasrec-full": RaceSpace(),
    "nasrec-2026": RaceSpace(
        dense_operators=NASREC_2026.dense_operators,
        sparse_operators=NASREC_2026.sparse_operators,
        outputs=NASREC_2026.outputs,
    ),
}
