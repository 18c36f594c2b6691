"""Training: :func:`run`, :func:`run_incremental`, :func:`run_supernet` and :func:`evaluate` do what the commands do."""

from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.jobs import evaluate, run, run_incremental, run_supernet

__all__ = ["TrainConfig", "evaluate", "run", "run_incremental", "run_supernet"]
