"""Finds the best model for a prepared data set within a budget of seconds: the main job."""

import sys
from pathlib import Path
from typing import Literal

from nasrec_torchrec.cli import run
from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace


def main(
    data: Path,
    out: Path,
    config: RaceConfig,
    space: RaceSpace,
    limits: Limits,
    storage: str | None = None,
    resume: Literal["auto", "never"] = "auto",
) -> None:
    """Finds the best model for a prepared data set within a budget.

    Recipes, features and architectures race, a tuned baseline always among them. Every candidate is really trained and
    judged on the validation split; the test split is read once, at the end. A race that was killed goes on when the
    same command is given again; given several times at once, its processes race together.

    Args:
        data: prepared data set.
        out: run folder; receives the study, results.json, report.html, and the best model, ready for export.
        storage: where the Optuna study is, as a URL (sqlite:///race.db, postgresql://...); unset, OUT/race.journal.
        resume: auto goes on where an earlier race stopped, never drops it first.
    """
    from nasrec_torchrec.search.race.run import auto

    results = auto(data, out, config, space, limits, storage, resume)
    if results is not None:
        print(results["verdict"])
        print(f"see {out / 'report.html'}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
