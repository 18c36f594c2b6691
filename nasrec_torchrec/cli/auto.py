"""``nasrec auto``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.search.race.config import RACE_SPACES
from nasrec_torchrec.search.race.jobs import auto

PROGRAM = Program(
    auto,
    example="nasrec auto --data DATA --out runs/auto --budget 1h",
    groups={"Results, and where trials are kept": ("storage", "resume")},
    show=lambda results: str(results["verdict"]),
    document=lambda results: results,
    spaces=RACE_SPACES,
    resume="run the same command again to resume with the trials that are finished",
)
