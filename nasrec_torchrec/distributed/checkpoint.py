"""The name from which scripts outside this repository import :func:`load_model`."""

from nasrec_torchrec.models.stored import load_model

__all__ = ["load_model"]
