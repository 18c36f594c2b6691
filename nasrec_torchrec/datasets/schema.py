"""What the columns of a prepared data set mean."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

_FORMAT = "nasrec-torchrec/schema/1"


@dataclass(frozen=True)
class SparseFeature:
    """A categorical feature. Prepared ids are 0..num_embeddings-1; 0 means missing or unknown.

    Args:
        name: column and feature name.
        num_embeddings: rows of its table.
        multi_hot: the column holds a list of ids per row instead of one.
        weighted: a column ``<name>_weights`` holds a float per id.
        pooling: ``sum`` or ``mean`` of a row's embeddings.
    """

    name: str
    num_embeddings: int
    multi_hot: bool = False
    weighted: bool = False
    pooling: str = "sum"

    def __post_init__(self) -> None:
        if not self.name or "." in self.name:
            raise ValueError(f"sparse feature: name: expected a non-empty name without '.', found {self.name!r}")
        if not isinstance(self.num_embeddings, int) or self.num_embeddings < 1:
            raise ValueError(f"{self.name}: num_embeddings: expected a positive integer, found {self.num_embeddings!r}")
        if self.pooling not in ("sum", "mean"):
            raise ValueError(f"{self.name}: pooling: expected 'sum' or 'mean', found {self.pooling!r}")
        if self.weighted and not self.multi_hot:
            raise ValueError(f"{self.name}: weighted: only a multi_hot feature can be weighted")


@dataclass(frozen=True)
class Schema:
    """Columns of a prepared data set.

    Args:
        label: column of 0 and 1.
        dense: columns of floats, already transformed.
        sparse: categorical features, one table each.
        embedding_dim: width E of all tables.

    Raises:
        ValueError: for repeated names, no sparse feature, or a mix of weighted and unweighted features (TorchRec
            weights a whole collection or none of it).
    """

    label: str
    dense: tuple[str, ...]
    sparse: tuple[SparseFeature, ...]
    embedding_dim: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense", tuple(self.dense))
        object.__setattr__(self, "sparse", tuple(self.sparse))
        names = [self.label, *self.dense, *(feature.name for feature in self.sparse)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"schema: columns named more than once: {repeated}")
        if not self.sparse:
            raise ValueError("schema: sparse: expected at least one feature, found none")
        if not isinstance(self.embedding_dim, int) or self.embedding_dim < 1:
            raise ValueError(f"schema: embedding_dim: expected a positive integer, found {self.embedding_dim!r}")
        if len({feature.weighted for feature in self.sparse}) > 1:
            raise ValueError("schema: sparse: either every feature is weighted or none is")

    @property
    def weighted(self) -> bool:
        return self.sparse[0].weighted

    @property
    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.sparse]

    def tables(self) -> list[EmbeddingBagConfig]:
        """One table per sparse feature, initialised Xavier normal."""
        return [
            EmbeddingBagConfig(
                name=f"t_{feature.name}",
                embedding_dim=self.embedding_dim,
                num_embeddings=feature.num_embeddings,
                feature_names=[feature.name],
                pooling=PoolingType.MEAN if feature.pooling == "mean" else PoolingType.SUM,
                # The deviation is that of the whole table, also where a shard of it is initialised.
                init_fn=partial(
                    torch.nn.init.normal_, std=math.sqrt(2.0 / (feature.num_embeddings + self.embedding_dim))
                ),
            )
            for feature in self.sparse
        ]

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: says which key is missing, unknown or wrong.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"schema: not a JSON document: {error}") from None
        if not isinstance(document, dict) or document.pop("format", _FORMAT) != _FORMAT:
            raise ValueError(f"schema: expected an object of format '{_FORMAT}'")
        _check_keys(document, cls, "schema")
        sparse = document["sparse"]
        if not isinstance(sparse, list) or not all(isinstance(entry, dict) for entry in sparse):
            raise ValueError("schema: sparse: expected a list of objects")
        for entry in sparse:
            _check_keys(entry, SparseFeature, f"schema: sparse feature {entry.get('name')!r}")
        return cls(**{**document, "sparse": tuple(SparseFeature(**entry) for entry in sparse)})


def _check_keys(entry: Mapping[str, Any], kind: type, where: str) -> None:
    allowed = [field.name for field in fields(kind)]
    required = {"label", "dense", "sparse"} if kind is Schema else {"name", "num_embeddings"}
    if not required <= set(entry) or not set(entry) <= set(allowed):
        raise ValueError(f"{where}: expected the keys {allowed}, found {sorted(entry)}")
