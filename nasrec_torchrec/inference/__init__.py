"""Inference: :func:`export`, :func:`patch`, :func:`score`, :func:`score_on_ranks` and :func:`serve` do what
the commands do.

A package scores in a process without this project: copy :mod:`nasrec_torchrec.inference.predictor` there.
"""

from nasrec_torchrec.inference.config import ExportConfig, ScoringConfig, ServingConfig
from nasrec_torchrec.inference.jobs import ExportedPackage, export, patch, score, score_on_ranks, serve

__all__ = [
    "ExportConfig",
    "ExportedPackage",
    "ScoringConfig",
    "ServingConfig",
    "export",
    "patch",
    "score",
    "score_on_ranks",
    "serve",
]
