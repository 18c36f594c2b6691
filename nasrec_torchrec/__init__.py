"""NASRec for TorchRec: neural architecture search by weight sharing for click-through-rate models."""

import sys

# `python -m nasrec_torchrec.environment` prints the explanation itself.
if "nasrec_torchrec.environment" not in sys.orig_argv:
    from nasrec_torchrec import environment

    environment.require()

    from nasrec_torchrec.architecture import Architecture, BlockArchitecture
    from nasrec_torchrec.models.nasrecnet import NASRecNet
    from nasrec_torchrec.models.published import PUBLISHED, load_research_state_dict
    from nasrec_torchrec.models.supernet import SuperNet
    from nasrec_torchrec.search_space import NASREC_FULL, NASREC_SMALL, SearchSpace

    __all__ = [
        "NASREC_FULL",
        "NASREC_SMALL",
        "PUBLISHED",
        "Architecture",
        "BlockArchitecture",
        "NASRecNet",
        "SearchSpace",
        "SuperNet",
        "load_research_state_dict",
    ]
