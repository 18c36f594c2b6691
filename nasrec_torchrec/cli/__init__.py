"""The command ``nasrec``: one small file per job, which imports PyTorch only when the job runs."""

from nasrec_torchrec.cli.program import Program, run

__all__ = ["Program", "run"]
