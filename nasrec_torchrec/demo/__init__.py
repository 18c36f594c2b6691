"""Everything end to end on MovieLens-100K, as ``nasrec demo`` and :func:`run` show it."""

from nasrec_torchrec.demo.jobs import run

__all__ = ["run"]
