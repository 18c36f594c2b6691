"""The race as a function: what ``nasrec auto`` does, for notebooks and scripts; PyTorch loads when it is called."""

from pathlib import Path
from typing import Any, Literal

from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace

_DEFAULT_RACE = RaceConfig()
_DEFAULT_RACE_SPACE = RaceSpace()
_NO_LIMITS = Limits()


def auto(
    data: Path | str,
    out: Path | str,
    config: RaceConfig = _DEFAULT_RACE,
    space: RaceSpace = _DEFAULT_RACE_SPACE,
    limits: Limits = _NO_LIMITS,
    storage: str | None = None,
    resume: Literal["auto", "never"] = "auto",
) -> dict[str, Any] | None:
    """Finds the best model for a prepared data set within a budget.

    Recipes, features and architectures race, always together with tuned baselines. Every candidate is actually trained
    and judged on the validation split; the test split is read once, at the end. A race that was killed resumes when it
    is started again. If it is started several times at once, the processes share the work.

    Args:
        data: folder of a prepared data set.
        out: run folder; receives the study, results.json, report.html, and the best model, ready for export.
        config: how the budget is spent.
        space: search space of random architectures.
        limits: what a proposed architecture may cost.
        storage: URL of a database that holds the Optuna study (sqlite:///race.db, postgresql://...); unset, the file
            race.journal in the output folder.
        resume: auto resumes where an earlier race stopped, never deletes that race first.

    Returns:
        The results as results.json records them, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the settings do not fit the data or the race that the folder holds.

    Example::

        from nasrec_torchrec.search.race import RaceConfig, auto
        print(auto("data/clicks", "runs/auto", RaceConfig(budget="30m"))["verdict"])
    """
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.search.race.run import auto as race

    return race(to_path(data), to_path(out), config, space, limits, storage, resume)
