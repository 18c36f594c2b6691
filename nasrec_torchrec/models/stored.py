"""Models that a run trained, built and loaded from its checkpoint."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torchrec.models.dlrm import DLRMTrain

from nasrec_torchrec.models.description import ClickModel, ModelDescription
from nasrec_torchrec.runs.checkpoint import MODEL, kept_checkpoint
from nasrec_torchrec.runs.files import read_text


def read_description(folder: Path) -> ModelDescription:
    """The description of the model in a checkpoint.

    Raises:
        ValueError: when it is damaged.
    """
    file = folder / MODEL
    try:
        return ModelDescription.from_json(read_text(file))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a model description: {error}") from None


def load_model(run_dir: Path) -> tuple[ModelDescription, ClickModel]:
    """Loads a run's checkpoint for use, written by any number of ranks, into an unsharded model on the CPU.

    Args:
        run_dir: folder of a training run.

    Returns:
        The description and the model, in evaluation mode. No process group is needed.

    Raises:
        ValueError: when the run has no complete checkpoint or it cannot be read.
    """
    folder = kept_checkpoint(run_dir)
    description = read_description(folder)
    model = description.build(torch.device("cpu"))
    wrapped = DLRMTrain(model)
    state = {"model": wrapped.state_dict()}
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    except (dcp.api.CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: the checkpoint cannot be read: {str(error).splitlines()[0]}") from None
    wrapped.load_state_dict(state["model"])
    return description, model.eval()
