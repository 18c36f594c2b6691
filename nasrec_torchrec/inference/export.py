"""A trained model as one AOTInductor package that needs PyTorch alone, and a JSON that says how to feed it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import PoolingType

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.files import atomic_path, write_text
from nasrec_torchrec.models.nasrecnet import NASRecNet

PACKAGE_FORMAT = "nasrec-torchrec/package/1"


class ScoringModel(nn.Module):
    """A NASRecNet whose tables are one stacked table, looked up with plain PyTorch.

    Inputs are tensors: dense features ``(B, F_dense)`` (left out when there are none), ``ids`` ``(T,)`` int64 of all
    features, feature by feature, ``lengths`` ``(F_sparse, B)`` int64, and for weighted collections ``weights``
    ``(T,)``.
    Ids outside of a feature's table are looked up as 0, the missing id: no id reads another table.

    Args:
        model: unsharded.
    """

    table: Tensor
    start: Tensor
    rows: Tensor
    mean: Tensor

    def __init__(self, model: NASRecNet) -> None:
        super().__init__()
        sparse_arch = model.sparse_arch
        ebc = sparse_arch.embedding_bag_collection
        configs = {name: config for config in ebc.embedding_bag_configs() for name in config.feature_names}
        tables = {config.name: ebc.embedding_bags[config.name].weight.detach() for config in configs.values()}
        starts, total = {}, 0
        for name, table in tables.items():
            starts[name] = total
            total += table.shape[0]
        features = sparse_arch.feature_names
        self.register_buffer("table", torch.cat(list(tables.values())))
        self.register_buffer("start", torch.tensor([starts[configs[name].name] for name in features]))
        self.register_buffer("rows", torch.tensor([configs[name].num_embeddings for name in features]))
        self.register_buffer("mean", torch.tensor([configs[name].pooling == PoolingType.MEAN for name in features]))
        self.has_mean = bool(self.mean.any())
        self.has_dense = model.interaction_arch.dense_in_features > 0
        self.weighted: bool = ebc.is_weighted()
        self.interaction_arch = model.interaction_arch

    def forward(self, *inputs: Tensor) -> Tensor:
        """
        Args:
            inputs: ``[dense,] ids, lengths[, weights]`` as the class says.

        Returns:
            Tensor: logits ``(B,)``.
        """
        dense = inputs[0] if self.has_dense else None
        ids, lengths, *weights = inputs[1:] if self.has_dense else inputs
        num_features, batch_size = lengths.shape
        ends = lengths.flatten().cumsum(0)
        # Which feature an id belongs to: how many features end at or before its position.
        feature_ends = lengths.sum(1).cumsum(0)
        positions = torch.arange(ids.shape[0], device=ids.device)
        feature = torch.bucketize(positions, feature_ends, right=True)
        known = (ids >= 0) & (ids < self.rows[feature])
        rows = torch.where(known, ids, 0) + self.start[feature]
        offsets = torch.cat([ends.new_zeros(1), ends])
        pooled = F.embedding_bag(
            rows,
            self.table,
            offsets,
            mode="sum",
            per_sample_weights=weights[0] if self.weighted else None,
            include_last_offset=True,
        )
        pooled = pooled.view(num_features, batch_size, -1)
        if self.has_mean:
            divisor = torch.where(self.mean.unsqueeze(1), lengths.clamp(min=1), 1)
            pooled = pooled / divisor.unsqueeze(2).to(pooled.dtype)
        if dense is None:
            dense = pooled.new_zeros(batch_size, 0)
        return self.interaction_arch(dense, pooled.transpose(0, 1)).flatten()


@dataclass(frozen=True)
class ExportedModel:
    """Files of an export: the package and its manifest."""

    package: Path
    manifest: Path


def export(model: NASRecNet, schema: Schema, folder: Path) -> ExportedModel:
    """Compiles a model for the CPU of this machine with AOTInductor; takes some 20 seconds.

    Args:
        model: unsharded; put into evaluation mode.
        schema: of the data that the model reads.
        folder: receives ``model.pt2`` and ``model.json``.

    Returns:
        ExportedModel: where the files are. The package takes any batch size and any number of ids.

    Raises:
        ValueError: when the model and the schema name different features.
    """
    if model.sparse_arch.feature_names != schema.feature_names:
        raise ValueError(
            f"the model reads the features {model.sparse_arch.feature_names}, the schema has {schema.feature_names}"
        )
    scoring = ScoringModel(model.eval()).eval()
    with torch.no_grad():
        program = trace(scoring)
        folder.mkdir(parents=True, exist_ok=True)
        package, manifest = folder / "model.pt2", folder / "model.json"
        # The options allow AOTI_RUNTIME_CHECK_INPUTS=1 to refuse inputs of a wrong type instead of misreading them.
        with atomic_path(package) as temporary:
            compiled = temporary.with_suffix(".pt2")
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(compiled), inductor_configs={"aot_inductor.check_lowerbound": False}
            )
            compiled.rename(temporary)
    names = (["dense"] if scoring.has_dense else []) + ["ids", "lengths"] + (["weights"] if scoring.weighted else [])
    document = {
        "format": PACKAGE_FORMAT,
        "torch": torch.__version__,
        "inputs": names,
        "input_types": {"dense": "float32", "ids": "int64", "lengths": "int64", "weights": "float32"},
        "output": "logits, float32 (batch,); the probability of a click is their sigmoid",
        "schema": json.loads(schema.to_json()),
        "architecture": json.loads(model.architecture.to_json()),
    }
    write_text(manifest, json.dumps(document, indent=2))
    return ExportedModel(package, manifest)


def trace(scoring: ScoringModel) -> torch.export.ExportedProgram:
    """The model as a ``torch.export`` program of any batch size and any number of ids."""
    batch, ids = torch.export.Dim("batch", min=1, max=2**20), torch.export.Dim("ids", min=0, max=2**31 - 1)
    shapes: list[dict[int, Any]] = [{0: batch}] if scoring.has_dense else []
    shapes += [{0: ids}, {1: batch}] + ([{0: ids}] if scoring.weighted else [])
    example = example_inputs(scoring, batch_size=3)
    return torch.export.export(scoring, example, dynamic_shapes=(tuple(shapes),), strict=False)


def example_inputs(scoring: ScoringModel, batch_size: int) -> tuple[Tensor, ...]:
    """Inputs of the right shapes: two ids in every bag."""
    features = scoring.rows.numel()
    count = 2 * features * batch_size
    inputs: tuple[Tensor, ...] = ()
    if scoring.has_dense:
        inputs += (torch.zeros(batch_size, scoring.interaction_arch.dense_in_features),)
    inputs += (torch.zeros(count, dtype=torch.int64), torch.full((features, batch_size), 2))
    return inputs + ((torch.ones(count),) if scoring.weighted else ())
