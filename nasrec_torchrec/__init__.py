"""NASRec for TorchRec: neural architecture search by weight sharing for click-through-rate models.

Importing this package is cheap; PyTorch is imported when a name that needs it is used for the first time, after a check
that the installed torch, TorchRec and FBGEMM belong together.

Example:

    >>> from nasrec_torchrec import NASREC_SMALL, PUBLISHED
    >>> len(PUBLISHED["criteo-small"].blocks) == NASREC_SMALL.num_blocks
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasrec_torchrec.architecture import Architecture, BlockArchitecture
    from nasrec_torchrec.models.nasrecnet import NASRecNet
    from nasrec_torchrec.models.published import PUBLISHED, load_research_state_dict
    from nasrec_torchrec.models.reference import REFERENCE
    from nasrec_torchrec.models.supernet import SuperNet
    from nasrec_torchrec.search_space import NASREC_2026, NASREC_FULL, NASREC_SMALL, SearchSpace

__version__ = "0.1.0"
__all__ = [
    "NASREC_2026",
    "NASREC_FULL",
    "NASREC_SMALL",
    "PUBLISHED",
    "REFERENCE",
    "Architecture",
    "BlockArchitecture",
    "NASRecNet",
    "SearchSpace",
    "SuperNet",
    "load_research_state_dict",
]
_WITHOUT_TORCH = {
    "Architecture": "architecture",
    "BlockArchitecture": "architecture",
    "NASREC_2026": "search_space",
    "NASREC_FULL": "search_space",
    "NASREC_SMALL": "search_space",
    "REFERENCE": "models.reference",
    "SearchSpace": "search_space",
}
_WITH_TORCH = {
    "NASRecNet": "models.nasrecnet",
    "PUBLISHED": "models.published",
    "SuperNet": "models.supernet",
    "load_research_state_dict": "models.published",
}
# Packages with the function of each job: `nasrec_torchrec.training.run(...)`.
_PACKAGES = ("datasets", "inference", "runs", "search", "training")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used for the first time."""
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    module = _WITHOUT_TORCH.get(name) or _WITH_TORCH.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _WITH_TORCH:
        import_module(f"{__name__}.environment").require()
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
