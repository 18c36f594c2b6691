"""A race of recipes, features and architectures for one budget, judged by real training; see docs/search.md."""

from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace
from nasrec_torchrec.search.race.jobs import auto

__all__ = ["RaceConfig", "RaceSpace", "auto"]
