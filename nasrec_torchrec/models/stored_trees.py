"""The folder of trained trees: LightGBM's model as text, and a record of what it is."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.models.boosted_trees import BoostedTrees
from nasrec_torchrec.models.description import ClickModel
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import read_json, write_text


@dataclass(frozen=True)
class TreeRecord:
    """What trees are, and what they reached.

    Args:
        title: name for tables.
        recipe: how they were trained.
        features: names of the added features that they read.
        seconds: duration of the training.
        sha256: checksum of the model's text.
        validation: metrics on the validation split, as JSON values.
        schema: columns that they were trained on, as JSON values.
        dictionaries: name and checksum of each dictionary that the ids come from.
    """

    title: str
    recipe: str
    features: list[str]
    seconds: float
    sha256: str
    validation: list[dict[str, float | None]]
    schema: dict[str, Any]
    dictionaries: dict[str, str]

    @property
    def columns(self) -> Schema:
        """The columns that they were trained on."""
        return Schema.from_json(json_text(self.schema))


def trees_are_installed() -> bool:
    """Whether LightGBM can be imported."""
    return importlib.util.find_spec("lightgbm") is not None


def read_record(folder: Path) -> TreeRecord | None:
    """Returns the record of trained trees, or None if there are none.

    Raises:
        ValueError: If it is damaged.
    """
    if not (folder / names.TREES).exists() or not (folder / names.RESULT).exists():
        return None
    return read_json(folder / names.RESULT, TreeRecord, "remove it to train the tree again")


def write_record(folder: Path, record: TreeRecord) -> None:
    """Writes the record once the trees are there."""
    write_text(folder / names.RESULT, json_text(vars(record)))


def load_booster(folder: Path) -> Any:
    """Returns trained trees as a LightGBM booster.

    Raises:
        ValueError: If the model is not the one that was trained, or LightGBM is not installed.
    """
    if not trees_are_installed():
        raise ValueError(f"{folder}: LightGBM is not installed; install nasrec-torchrec[trees]")
    import lightgbm

    record = read_record(folder)
    if record is None or sha256(folder / names.TREES) != record.sha256:
        raise ValueError(f"{folder / names.TREES}: damaged, its checksum is another one than when it was written")
    return lightgbm.Booster(model_file=folder / names.TREES)


def load_trees(folder: Path) -> BoostedTrees:
    """Loads trained trees as a module, for inference.

    Args:
        folder: folder of the trees.

    Raises:
        ValueError: If they are damaged, or LightGBM, which reads them, is not installed.
    """
    booster, record = load_booster(folder), read_record(folder)
    assert record is not None
    return BoostedTrees(record.columns, booster.dump_model()["tree_info"]).eval()


def load_member(folder: Path) -> tuple[Schema, dict[str, str], ClickModel | BoostedTrees]:
    """Loads a model that is to predict together with others: that of a run, or trees.

    Args:
        folder: run folder of a training, or folder of trained trees.

    Returns:
        tuple: The columns that it reads, name and checksum of the dictionaries of their ids, and the model.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    if (record := read_record(folder)) is not None:
        return record.columns, record.dictionaries, load_trees(folder)
    description, model = load_model(folder)
    return description.schema, dict(description.dictionaries), model
