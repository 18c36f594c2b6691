"""Loading of the model that a run trained from its checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torchrec.models.dlrm import DLRMTrain

from nasrec_torchrec.models.description import ClickModel, ModelDescription
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.files import read_json, read_text
from nasrec_torchrec.runs.names import CONFIG, DESCRIPTION
from nasrec_torchrec.runs.paths import to_path
from nasrec_torchrec.runs.tensors import load_tensors


def read_description(folder: Path) -> ModelDescription:
    """Reads the description of the model in a checkpoint.

    Args:
        folder: The folder of the checkpoint.

    Returns:
        The description.

    Raises:
        ValueError: If the file is damaged.
    """
    file = folder / DESCRIPTION
    document = read_json(file, dict[str, Any])
    try:
        return ModelDescription.from_json(json.dumps(document))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a model description: {error}") from None


def recorded_data(run_dir: Path) -> Path | None:
    """Returns the folder of prepared data that a run's record says it was trained on; None if it names none."""
    record = run_dir / CONFIG
    recorded = yaml.safe_load(read_text(record)) if record.exists() else None
    given = recorded.get("data") if isinstance(recorded, dict) else None
    return to_path(given) if isinstance(given, str) else None


def load_model(run_dir: Path) -> tuple[ModelDescription, ClickModel]:
    """Loads the model of a training run for inference.

    The checkpoint may have been written by any number of ranks. The model is not sharded and is on the CPU, and no
    process group is needed.

    Args:
        run_dir: The folder of the training run.

    Returns:
        The description, and the model in evaluation mode.

    Raises:
        ValueError: If the run has no complete checkpoint, or if it cannot be read.
    """
    folder = kept_checkpoint(run_dir)
    description = read_description(folder)
    model = description.build(torch.device("cpu"))
    wrapped = DLRMTrain(model)
    state = {"model": wrapped.state_dict()}
    load_tensors(state, folder, collective=False)
    wrapped.load_state_dict(state["model"])
    return description, model.eval()
