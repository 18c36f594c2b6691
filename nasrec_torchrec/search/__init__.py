"""Search over a trained supernet: :func:`run` and :func:`write_report` do what the commands do.

The race that ``nasrec auto`` runs is in :mod:`nasrec_torchrec.search.race`.
"""

from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, Limits, Objective
from nasrec_torchrec.search.jobs import SearchResult, run, write_report

__all__ = ["EvaluationConfig", "EvolutionConfig", "Limits", "Objective", "SearchResult", "run", "write_report"]
