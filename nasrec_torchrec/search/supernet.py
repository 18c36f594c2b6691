"""Loading of the supernet that a search reads."""

from pathlib import Path

import torch
from torchrec.models.dlrm import DLRMTrain

from nasrec_torchrec.distributed.process_group import rank_and_ranks
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.models.stored import load_model, read_description
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.tensors import load_tensors
from nasrec_torchrec.search_space import SearchSpace


def load_supernet(run_dir: Path, device: torch.device | None = None) -> SuperNet:
    """Loads a trained supernet, sharded over the ranks if there are several.

    Args:
        run_dir: folder of its training run.
        device: device of this rank; by default the CPU.

    Returns:
        The supernet.

    Raises:
        ValueError: If the run trained another kind of model, or
            :func:`nasrec_torchrec.models.stored.load_model` refuses it.
    """
    device = device or torch.device("cpu")
    alone = rank_and_ranks() == (0, 1)
    folder = kept_checkpoint(run_dir, collective=not alone)
    description = read_description(folder)
    if not isinstance(description.interaction, SearchSpace):
        kind = type(description.interaction).__name__
        raise ValueError(f"{run_dir}: expected the run of a supernet, found one that trained a model of {kind}")
    if alone:
        _, model = load_model(run_dir)
        assert isinstance(model, SuperNet)
        return model.to(device)
    model = description.build(torch.device("meta"))
    assert isinstance(model, SuperNet)
    dmp = parallelize(DLRMTrain(model), device)
    state = {"model": dmp.state_dict()}
    load_tensors(state, folder)
    dmp.load_state_dict(state["model"])
    return model.eval()
