"""Embedding tables for inference, looked up from plain tensors: in float32, or quantized row by row."""

from collections.abc import Mapping
from typing import get_args

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from nasrec_torchrec.inference.config import TablePrecision

_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8, "int4": SparseType.INT4}
_BITS = {"int8": 8, "int4": 4}


class Tables(nn.Module):
    """Pools the ids of every feature; the base of both forms.

    Ids outside a feature's table are looked up as 0, the missing id, so no id reads beyond a table or from another one.

    Args:
        ebc: unsharded EmbeddingBagCollection.
        features: names of the features in the order of the inputs.
    """

    rows: Tensor
    mean: Tensor
    feature_of_column: Tensor

    def __init__(self, ebc: EmbeddingBagCollection, features: list[str]) -> None:
        super().__init__()
        of_feature = {name: config for config in ebc.embedding_bag_configs() for name in config.feature_names}
        self.configs: list[EmbeddingBagConfig] = list({c.name: c for c in of_feature.values()}.values())
        names = [config.name for config in self.configs]
        self.table_of_feature = [names.index(of_feature[name].name) for name in features]
        configs = [of_feature[name] for name in features]
        self.register_buffer("rows", torch.tensor([config.num_embeddings for config in configs]))
        self.register_buffer("mean", torch.tensor([config.pooling == PoolingType.MEAN for config in configs]))
        self.has_mean = bool(self.mean.any())
        self.dims = [config.embedding_dim for config in configs]
        # Features by the dimension of their table.
        self.groups = {
            dim: [i for i, other in enumerate(self.dims) if other == dim] for dim in dict.fromkeys(self.dims)
        }
        self.mixed = len(self.groups) > 1
        if self.mixed:
            feature = torch.arange(len(self.dims)).repeat_interleave(torch.tensor(self.dims))
            self.register_buffer("feature_of_column", feature)

    def forward(self, ids: Tensor, lengths: Tensor, weights: Tensor | None) -> Tensor:
        """Looks up and pools embeddings.

        Args:
            ids: int64 ids ``(T,)`` of all features, feature by feature.
            lengths: int64 lengths ``(F_sparse, B)`` of the bags.
            weights: weights ``(T,)`` of the ids, or None.

        Returns:
            Tensor: Pooled embeddings in float32: ``(B, F_sparse, E)``, or side by side ``(B, columns)`` if the
            dimensions of the tables differ.
        """
        # Which feature an id belongs to: how many features end at or before its position.
        feature_ends = lengths.sum(1).cumsum(0)
        positions = torch.arange(ids.shape[0], device=ids.device)
        feature = torch.bucketize(positions, feature_ends, right=True)
        known = (ids >= 0) & (ids < self.rows[feature])
        ends = lengths.flatten().cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        pooled = self.pool(torch.where(known, ids, 0), feature, offsets, lengths.shape[1], weights)
        if self.has_mean:
            divisor = torch.where(self.mean.unsqueeze(1), lengths.clamp(min=1), 1).t().to(pooled.dtype)
            pooled = pooled / (divisor[:, self.feature_of_column] if self.mixed else divisor.unsqueeze(2))
        return pooled

    def pool(self, ids: Tensor, feature: Tensor, offsets: Tensor, batch_size: int, weights: Tensor | None) -> Tensor:
        """Returns the sum of each bag, in the shape of the result; all ids must be inside their tables."""
        raise NotImplementedError

    @property
    def weight_names(self) -> list[str]:
        """The names of the buffers that hold the weights."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Returns the number of bytes of the weights."""
        return sum(self.get_buffer(name).nbytes for name in self.weight_names)


class FloatTables(Tables):
    """Float32 tables that plain PyTorch looks up, so that the package needs nothing but PyTorch.

    All tables of one dimension are stacked into one. If there are several dimensions, each of the stacked tables is
    asked for all bags, with a weight of 0 for the ids of other tables: slices whose sizes depend on the data would not
    compile.
    """

    start: Tensor
    columns: Tensor

    def __init__(self, ebc: EmbeddingBagCollection, features: list[str]) -> None:
        super().__init__(ebc, features)
        start: dict[str, int] = {}
        for dim in self.groups:
            configs = [config for config in self.configs if config.embedding_dim == dim]
            rows = 0
            for config in configs:
                start[config.name], rows = rows, rows + config.num_embeddings
            tables = [ebc.embedding_bags[config.name].weight.detach() for config in configs]
            self.register_buffer(self._name("table", dim), torch.cat(tables))
            if self.mixed:
                self.register_buffer(f"has_{dim}", torch.tensor([other == dim for other in self.dims]))
                self.register_buffer(f"features_{dim}", torch.tensor(self.groups[dim]))
        self.register_buffer(
            "start", torch.tensor([start[self.configs[table].name] for table in self.table_of_feature])
        )
        if self.mixed:
            grouped = [feature for features in self.groups.values() for feature in features]
            ends = torch.tensor(self.dims)[grouped].cumsum(0).tolist()
            last = dict(zip(grouped, ends, strict=True))
            order = [torch.arange(last[i] - dim, last[i]) for i, dim in enumerate(self.dims)]
            self.register_buffer("columns", torch.cat(order))

    def pool(self, ids: Tensor, feature: Tensor, offsets: Tensor, batch_size: int, weights: Tensor | None) -> Tensor:
        rows = ids + self.start[feature]
        if not self.mixed:
            return self._pool(self.dims[0], rows, offsets, batch_size, weights).transpose(0, 1)
        groups = []
        for dim in self.groups:
            inside = getattr(self, f"has_{dim}")[feature]
            weight = inside.float() if weights is None else torch.where(inside, weights, 0.0)
            pooled = self._pool(dim, torch.where(inside, rows, 0), offsets, batch_size, weight)
            groups.append(pooled[getattr(self, f"features_{dim}")].transpose(0, 1).flatten(1))
        return torch.cat(groups, dim=1)[:, self.columns]

    def embeddings(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Returns the embedding of each id ``(T, E)``, of tables of one dimension; that of 0 for ids outside of them.

        Args:
            ids: ids ``(T,)``.
            feature: place of the feature ``(T,)`` of each.
        """
        known = (ids >= 0) & (ids < self.rows[feature])
        return self.get_buffer("table")[torch.where(known, ids, 0) + self.start[feature]]

    def _pool(self, dim: int, rows: Tensor, offsets: Tensor, batch_size: int, weights: Tensor | None) -> Tensor:
        """Returns the sum of each bag from the tables of one dimension, ``(F_sparse, B, dim)``."""
        table = getattr(self, self._name("table", dim))
        pooled = F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
        return pooled.view(self.rows.shape[0], batch_size, dim)

    def _name(self, kind: str, dim: int) -> str:
        return f"{kind}_{dim}" if self.mixed else kind

    @property
    def weight_names(self) -> list[str]:
        return [self._name("table", dim) for dim in self.groups]


class QuantizedTables(Tables):
    """Tables of mixed precision in one buffer, which FBGEMM's inference kernel looks up.

    Args:
        ebc: unsharded EmbeddingBagCollection.
        features: names of the features in the order of the inputs.
        precisions: precision of every table.
    """

    weights_host: Tensor

    def __init__(self, ebc: EmbeddingBagCollection, features: list[str], precisions: Mapping[str, str]) -> None:
        super().__init__(ebc, features)
        kernel = IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (c.name, c.num_embeddings, c.embedding_dim, _TYPES[precisions[c.name]], EmbeddingLocation.HOST)
                for c in self.configs
            ],
            feature_table_map=self.table_of_feature,
            device="cpu",
            pooling_mode=PoolingMode.SUM,
            output_dtype=SparseType.FP32,
            # More would make int8 rows as long as fp16 ones.
            row_alignment=1,
        )
        kernel.initialize_weights()
        kernel.assign_embedding_weights(
            [_quantize(ebc.embedding_bags[c.name].weight.detach(), precisions[c.name]) for c in self.configs]
        )
        # The module itself cannot be exported; what its operator needs can.
        for name in (
            "weights_host",
            "weights_uvm",
            "weights_placements",
            "weights_offsets",
            "weights_tys",
            "D_offsets",
        ):
            self.register_buffer(name, getattr(kernel, name).detach().clone())
        self._sizes = {
            name: getattr(kernel, name)
            for name in ("total_D", "max_int2_D", "max_int4_D", "max_int8_D", "max_float16_D", "max_float32_D")
        }

    def pool(self, ids: Tensor, feature: Tensor, offsets: Tensor, batch_size: int, weights: Tensor | None) -> Tensor:
        pooled = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=self.weights_host,
            uvm_weights=self.weights_uvm,
            weights_placements=self.weights_placements,
            weights_offsets=self.weights_offsets,
            weights_tys=self.weights_tys,
            D_offsets=self.D_offsets,
            **self._sizes,
            indices=ids.int(),
            offsets=offsets.int(),
            pooling_mode=int(PoolingMode.SUM),
            indice_weights=weights,
            output_dtype=SparseType.FP32.as_int(),
            row_alignment=1,
        )
        return pooled if self.mixed else pooled.view(batch_size, self.rows.shape[0], self.dims[0])

    @property
    def weight_names(self) -> list[str]:
        return ["weights_host"]


def table_precisions(
    ebc: EmbeddingBagCollection, default: TablePrecision, of_table: Mapping[str, str]
) -> dict[str, str]:
    """Determines the precision of every table.

    Args:
        ebc: EmbeddingBagCollection with the tables.
        default: precision of the tables that ``of_table`` does not name.
        of_table: precisions of individual tables by name.

    Returns:
        The precision of every table by name.

    Raises:
        ValueError: If a table or precision is unknown.
    """
    names = [config.name for config in ebc.embedding_bag_configs()]
    unknown = sorted(set(of_table) - set(names))
    if unknown:
        raise ValueError(f"table_precisions: unknown tables {unknown}; the model has {names}")
    precisions = {name: of_table.get(name, default) for name in names}
    for name, precision in precisions.items():
        if precision not in get_args(TablePrecision):
            expected = list(get_args(TablePrecision))
            raise ValueError(f"table_precisions: {name}: expected one of {expected}, found {precision!r}")
    return precisions


def make_tables(ebc: EmbeddingBagCollection, features: list[str], precisions: Mapping[str, str]) -> Tables:
    """Returns plain tables if all are float32, and quantized ones otherwise."""
    if set(precisions.values()) == {"fp32"}:
        return FloatTables(ebc, features)
    return QuantizedTables(ebc, features, precisions)


def _quantize(weight: Tensor, precision: str) -> tuple[Tensor, Tensor | None]:
    """Returns rows in the kernel's format, with a scale and a bias of 16 bits each per quantized row."""
    if precision in _BITS:
        fused = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight.float(), _BITS[precision])
        return fused[:, :-4].contiguous(), fused[:, -4:].contiguous()
    typed = weight.to(torch.float16 if precision == "fp16" else torch.float32).contiguous()
    return typed.view(torch.uint8).view(len(weight), -1), None
