"""Warm start: a new training that begins with the weights of an earlier run, after tables grew and features came.

What is copied is decided by meaning, not by position: rows by what their ids stand for, and the columns of the layers
that read the input by the names of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from nasrec_torchrec.datasets.features import FIRST_WORD, UNKNOWN, SparseFeature
from nasrec_torchrec.datasets.labels import Task
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.prepared import check_sum, read_manifest
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary
from nasrec_torchrec.models.description import ClickModel, ModelDescription
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.stored import load_model, recorded_data
from nasrec_torchrec.modules.dynamic_ids import DynamicIds
from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.table_collection import parts_of, table_weights, tables_of
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.files import read_text
from nasrec_torchrec.runs.fingerprint import digest
from nasrec_torchrec.runs.names import DIGESTS
from nasrec_torchrec.training.config import FrozenPart

# The attention over lists, which has a number for each list.
_ATTENTION = ".pooling."
_NEW = "dense part: new"
_FROZEN_PARTS = {"tables": "tables; a row that is new keeps its initial weights", "interaction": "dense part"}
_FROZEN = "freeze: {} would keep random weights that {} has not trained: {}"


@dataclass(frozen=True)
class WarmStart:
    """An earlier run to begin with.

    Args:
        run: Folder of the earlier run.
        data: Folder of the prepared data that it is continued on.
        earlier_data: Folder of the data that the earlier run was trained on. It is needed where the words of a
            dictionary have other ids now; by default, the folder that the run's record names.
        unknown_rows: Whether the row of a word that the earlier run did not know begins as its row of unknown words, so
            that the model predicts what the earlier one would have. By default, it begins with its initial weights.
    """

    run: Path
    data: Path
    earlier_data: Path | None = None
    unknown_rows: bool = False

    def inputs(self) -> dict[str, str]:
        """Returns what identifies the earlier weights, for the fingerprint of a run that begins with them."""
        return {"init_from": digest(read_text(kept_checkpoint(self.run) / DIGESTS))}

    @torch.no_grad()
    def copy_into(
        self, model: ClickModel, description: ModelDescription, freeze: FrozenPart | None = None
    ) -> list[str]:
        """Copies weights into a model that is not sharded.

        Args:
            model: The new model, with initial weights.
            description: What it is.
            freeze: The part that will not be trained.

        Returns:
            Lines that say what was copied and what is new.

        Raises:
            ValueError: If the earlier run cannot be read, the words of its dictionaries are needed and not found, or a
                table or weight of the part that will not be trained is new.
        """
        theirs, earlier = load_model(self.run)
        lines = [f"warm start from {self.run}"]
        my_sums = read_manifest(self.data)["dictionaries"]
        mine = description.schema.features_by_table()
        their_tables = theirs.schema.features_by_table()
        tables, earlier_tables = (
            table_weights(tables_of(one.sparse_arch.embedding_bag_collection)) for one in (model, earlier)
        )
        ids, earlier_ids = (parts_of(one, DynamicIds) for one in (model, earlier))
        renumbered: set[str] = set()
        # A cross is made of the ids of other features, so that it comes after them.
        for table, features in sorted(mine.items(), key=lambda item: bool(item[1][0].cross)):
            name, feature = safe_name(table), features[0]
            if table not in their_tables:
                lines.append(f"table {table}: new")
                if freeze == "tables":
                    raise ValueError(_FROZEN.format("tables", self.run, lines[-1]))
                continue
            weight, old = tables[name], earlier_tables[name]
            sums = dict(theirs.dictionaries), my_sums
            rows = self._rows(name, feature, their_tables[table][0], *sums, renumbered)
            if isinstance(rows, Tensor) and weight.shape[1] != old.shape[1]:
                rows = f"its width was {old.shape[1]} and is {weight.shape[1]}"
            if isinstance(rows, str):
                renumbered.update(feature.name for feature in features)
                lines.append(f"table {table}: new, because {rows}")
                if freeze == "tables":
                    raise ValueError(_FROZEN.format("tables", self.run, lines[-1]))
                continue
            known = rows >= 0
            if not torch.equal(rows, torch.arange(len(rows))):
                renumbered.update(feature.name for feature in features)
            weight[: len(rows)][known] = old[rows[known]]
            if feature.ids == "dynamic":
                ids[name].load_state_dict(earlier_ids[name].state_dict())
            if self.unknown_rows and feature.ids == "dictionary":
                weight[: len(rows)][~known] = old[UNKNOWN]
            copied = int(known.sum())
            lines.append(f"table {table}: {copied:,} of {len(weight):,} rows copied, {len(weight) - copied:,} new")
        of_dense = self._copy_dense(model, description, earlier, theirs)
        if freeze == "interaction" and (new := [line for line in of_dense if line.startswith(_NEW)]):
            more = f", and {len(new) - 1} more weights" if len(new) > 1 else ""
            raise ValueError(_FROZEN.format("interaction", self.run, new[0]) + more)
        kept = [] if freeze is None else [f"frozen: {_FROZEN_PARTS[freeze]}"]
        return [*lines, *of_dense, *kept]

    def _rows(
        self,
        name: str,
        mine: SparseFeature,
        theirs: SparseFeature,
        their_sums: Mapping[str, str],
        my_sums: Mapping[str, str],
        renumbered: set[str],
    ) -> Tensor | str:
        """Returns the earlier row of each row of a table, -1 for none; or why there are none."""
        assert mine.num_embeddings is not None and theirs.num_embeddings is not None
        for key in ("ids", "values", "cross"):
            if getattr(mine, key) != getattr(theirs, key):
                return f"{key} was {getattr(theirs, key)} and is {getattr(mine, key)}"
        if mine.edges != theirs.edges:
            return "its buckets have other edges"
        if changed := [parent for parent in mine.cross if parent in renumbered]:
            return f"it crosses {', '.join(changed)}, whose ids have changed"
        if mine.ids in ("modulo", "hex", "hash") and mine.num_embeddings != theirs.num_embeddings:
            return f"its ids are taken modulo {mine.num_embeddings - 1:,} and were modulo {theirs.num_embeddings - 1:,}"
        if mine.ids == "dynamic" and mine.num_embeddings != theirs.num_embeddings:
            return f"its ids share {mine.num_embeddings:,} rows, and shared {theirs.num_embeddings:,}"
        file = f"{name}.parquet"
        if mine.ids != "dictionary" or my_sums.get(file) == their_sums.get(file) is not None:
            return torch.arange(min(mine.num_embeddings, theirs.num_embeddings))
        words = read_dictionary(self.data / DICTIONARIES / file)
        found = pc.index_in(words, value_set=self._earlier_words(file, their_sums))
        places = torch.tensor(found.fill_null(-1 - FIRST_WORD).to_pylist(), dtype=torch.int64) + FIRST_WORD
        rows = torch.cat([torch.arange(FIRST_WORD), places])[: mine.num_embeddings]
        return torch.where(rows < theirs.num_embeddings, rows, -1)

    def _earlier_words(self, file: str, their_sums: Mapping[str, str]) -> Any:
        folder = self.earlier_data or recorded_data(self.run)
        if folder is None or not (folder / DICTIONARIES / file).exists():
            raise ValueError(
                f"{self.run}: the words of {file} have other ids now, and the data that it was trained on is not at "
                f"{folder}; pass --init_data with its folder"
            )
        if file in their_sums:
            check_sum(folder / DICTIONARIES / file, their_sums[file])
        return read_dictionary(folder / DICTIONARIES / file)

    @staticmethod
    def _copy_dense(
        model: ClickModel, description: ModelDescription, earlier: ClickModel, theirs: ModelDescription
    ) -> list[str]:
        if (description.interaction, description.use_layernorm) != (theirs.interaction, theirs.use_layernorm):
            return [f"{_NEW}, because it is another model"]
        inputs = [_inputs(one) for one in (description, theirs)]
        same = inputs[0] == inputs[1]
        if not same and not isinstance(model, NASRecNet):
            return [f"{_NEW}, because the features are others"]
        if description.schema.embedding_dim != theirs.schema.embedding_dim:
            return [f"{_NEW}, because embedding_dim is another"]
        old = {name: value for name, value in earlier.state_dict().items() if not _is_table(name)}
        labels = [one.schema.labels for one in (description, theirs)]
        of_labels = _last_layers(description) if labels[0] != labels[1] else set()
        # Where only the names differ, a layer may have a weight for each feature, by its position.
        replaced = not same and list(map(len, inputs[0])) == list(map(len, inputs[1]))
        same_lists = list(description.schema.attention.items()) == list(theirs.schema.attention.items())
        reading = _read_inputs(model) if replaced and isinstance(model, NASRecNet) else set()
        new, copied = [], 0
        for name, value in model.state_dict().items():
            if _is_table(name):
                continue
            path, _, kind = name.rpartition(".")
            module = model.get_submodule(path)
            if name in of_labels:
                missing = _copy_labels(value, old[name], *labels) if name in old else labels[0]
                done = not missing
                if missing and len(missing) < len(labels[0]):
                    new.append(f"{name}, of label {', '.join(missing)}")
                    continue
            elif not same and kind == "weight_0" and isinstance(module, MultiSourceLinear) and name in old:
                done = _copy_columns(value, old[name], *inputs)
            else:
                by_position = kind == "weight" and any(path.startswith(f"{block}.") for block in reading)
                numbered = _ATTENTION in name and not same_lists
                fits = name in old and old[name].shape == value.shape and not (by_position or numbered)
                done = fits and _copy(value, old[name])
            copied += done
            if not done:
                new.append(name)
        lines = [f"dense part: {copied:,} of {copied + len(new):,} weights copied"]
        return lines + [f"{_NEW}: {name}" for name in new]


def _inputs(description: ModelDescription) -> tuple[list[str], list[str]]:
    """Returns the names of the dense features and, in the order of the tokens, of the sparse ones."""
    schema = description.schema
    tokens = [feature.name for features in schema.features_by_table().values() for feature in features]
    return [feature.name for feature in schema.dense], tokens


def _is_table(name: str) -> bool:
    # Beside tables and the maps of their ids, there is what weighs lists.
    return "sparse_arch." in name and not any(part in name for part in (_ATTENTION, ".position_weights."))


def _read_inputs(model: NASRecNet) -> set[str]:
    """Returns the paths of the blocks that read the input."""
    return {
        f"interaction_arch.blocks.{index}"
        for index, block in enumerate(model.architecture.blocks)
        if 0 in (*block.dense_inputs, *block.sparse_inputs, *block.left_inputs, *block.right_inputs)
    }


def _copy(target: Tensor, source: Tensor) -> bool:
    target.copy_(source)
    return True


def _last_layers(description: ModelDescription) -> set[str]:
    """Returns the names of the weights that have a row for each label."""
    schema = description.schema
    unused = next(str(number) for number in count() if str(number) not in schema.columns)
    one_more = replace(schema, tasks=(*schema.tasks, Task(unused)))
    described = (description, replace(description, schema=one_more))
    shapes = [
        {name: value.shape for name, value in one.build(torch.device("meta")).state_dict().items()} for one in described
    ]
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}


def _copy_labels(target: Tensor, source: Tensor, mine: list[str], theirs: list[str]) -> list[str]:
    """Copies the rows of labels that there were before, and returns the others, which keep their initial weights."""
    if target.shape[1:] != source.shape[1:] or (len(target), len(source)) != (len(mine), len(theirs)):
        return mine
    known = [name for name in mine if name in theirs]
    target[[mine.index(name) for name in known]] = source[[theirs.index(name) for name in known]]
    return [name for name in mine if name not in theirs]


def _copy_columns(
    target: Tensor, source: Tensor, mine: tuple[list[str], list[str]], theirs: tuple[list[str], list[str]]
) -> bool:
    """Copies the columns of features that there were before; those of new features begin with zeros.

    The model then computes what it did, and learns of the new features from there.
    """
    sizes = [len(names) for names in (*mine, *theirs)]
    kinds = [kind for kind in (0, 1) if (target.shape[1], source.shape[1]) == (sizes[kind], sizes[2 + kind])]
    if len(kinds) != 1 or target.shape[0] != source.shape[0]:
        return False  # it cannot be told whether the columns are dense features or tokens
    names, known = mine[kinds[0]], theirs[kinds[0]]
    target.zero_()
    for column, name in enumerate(names):
        if name in known:
            target[:, column] = source[:, known.index(name)]
    return True
