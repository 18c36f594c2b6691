"""What a training is made of: a run is only continued, or taken as done, where all of it is the same."""

from collections.abc import Mapping
from typing import Any

from nasrec_torchrec.architecture import recorded
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.fingerprint import Fingerprint, code_of, digest, fingerprint
from nasrec_torchrec.runs.record import COMMAND
from nasrec_torchrec.training.config import TrainConfig, settings_of


def inputs_of(
    splits: Mapping[str, ClickFiles | None], config: TrainConfig, description: ModelDescription, **more: Any
) -> Fingerprint:
    """Returns the fingerprint of a training.

    Args:
        splits: rows by the name of their split; None for one that takes no part.
        config: how it is trained.
        description: the model.
        more: further inputs.
    """
    return fingerprint(
        data={name: None if files is None else files.digest for name, files in splits.items()},
        model={
            "schema": digest(description.schema.to_json()),
            "kind": type(description.interaction).__name__,
            "interaction": digest(repr(recorded(description.interaction))),
            "use_layernorm": description.use_layernorm,
        },
        settings=settings_of(config),
        code=code_of(COMMAND.plugins),
        **more,
    )
