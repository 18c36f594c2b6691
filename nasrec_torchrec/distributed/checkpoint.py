"""Checkpoints of sharded models, readable by one process without sharding."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.keyed import KeyedOptimizer

from nasrec_torchrec.files import read_text, write_text
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.supernet import SuperNet

_MODEL_FILE = "model.json"


def save_checkpoint(
    run_dir: Path,
    step: int,
    description: ModelDescription,
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer,
) -> Path:
    """Writes all ranks' shards to ``run_dir/checkpoints/step-<step>`` and drops older checkpoints; collective.

    The folder takes its name only when it is complete: with the description of the model in it, it can be loaded
    whatever happens to the run afterwards.
    """
    folder = run_dir / "checkpoints"
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=str(temporary))
    if dist.get_rank() == 0:
        write_text(temporary / _MODEL_FILE, description.to_json())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for other in folder.glob("step-*"):
            if other != final:
                shutil.rmtree(other)
    dist.barrier()
    return final


def load_checkpoint(folder: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer) -> None:
    """Restores what :func:`save_checkpoint` wrote, on any number of ranks; collective."""
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=str(folder))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        ValueError: when the run has none.
    """
    complete = sorted(p.parent for p in (run_dir / "checkpoints").glob("step-*/.metadata"))
    if not complete:
        raise ValueError(f"{run_dir}: no complete checkpoint found under checkpoints/")
    return complete[-1]


def load_description(run_dir: Path) -> ModelDescription:
    """What the newest checkpoint of a run holds.

    Raises:
        ValueError: when the run has no complete checkpoint or its description is damaged.
    """
    file = latest_checkpoint(run_dir) / _MODEL_FILE
    try:
        return ModelDescription.from_json(read_text(file))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a model description: {error}") from None


def load_model(run_dir: Path) -> tuple[ModelDescription, NASRecNet | SuperNet | DLRM]:
    """Loads a run's newest checkpoint, written by any number of ranks, into an unsharded model on the CPU.

    Args:
        run_dir: folder of a training run.

    Returns:
        The description and the model, in evaluation mode. No process group is needed.

    Raises:
        ValueError: when the run has no complete checkpoint or it cannot be read.
    """
    description = load_description(run_dir)
    folder = latest_checkpoint(run_dir)
    model = description.build(torch.device("cpu"))
    wrapped = DLRMTrain(model)
    state = {"model": wrapped.state_dict()}
    try:
        dcp.load(state, checkpoint_id=str(folder), no_dist=True)
    except (dcp.api.CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: the checkpoint cannot be read: {str(error).splitlines()[0]}") from None
    wrapped.load_state_dict(state["model"])
    return description, model.eval()
