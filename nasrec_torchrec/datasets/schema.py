"""What the columns of a data set mean, before and after preparation."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from nasrec_torchrec.runs.files import read_text

_FORMAT = "nasrec-torchrec/schema/2"
Transform = Literal["none", "log1p", "standardize"]
IdRule = Literal["id", "modulo", "hex", "hash", "dictionary", "history"]
# Prepared ids below this are taken: 0 is a missing value, 1 one that the dictionary does not hold.
FIRST_WORD = 2
# A history is one of 12 x 12 buckets of two counts; 0 is a missing value.
HISTORY_LEVELS = 12
HISTORY_IDS = 1 + HISTORY_LEVELS**2


@dataclass(frozen=True)
class DenseFeature:
    """A number per row.

    Args:
        name: of the raw column, the prepared column and the feature.
        transform: ``none``; ``log1p``, which is log(max(x, 0) + 1); ``standardize``, which is (x - mean) / deviation
            with both measured on the training split. A missing number becomes 0 after any of them.
        mean: measured by preparation, for ``standardize``.
        deviation: likewise; never 0.
    """

    name: str
    transform: Transform = "none"
    mean: float | None = None
    deviation: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "dense feature")
        _check_choice(self.transform, Transform, f"{self.name}: transform")
        for what in ("mean", "deviation"):
            value = getattr(self, what)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ValueError(f"{self.name}: {what}: expected a finite number, found {value!r}")
        if self.deviation is not None and self.deviation <= 0:
            raise ValueError(f"{self.name}: deviation: expected a positive number, found {self.deviation!r}")


@dataclass(frozen=True)
class SparseFeature:
    """A categorical feature. Prepared ids are 0..num_embeddings-1; 0 means missing.

    Args:
        name: of the raw column, the prepared column and the feature.
        num_embeddings: rows of its table. With a dictionary it may be left out: preparation counts the words.
        ids: how a raw value becomes an id: ``id`` takes it as it is; ``modulo`` is value % (num_embeddings - 1) + 1 of
            an integer, where -1 counts as missing; ``hex`` the same of hexadecimal text; ``hash`` the same of a hash
            of the text; ``dictionary`` numbers the values of the training split from 2 on, the most frequent first,
            and gives 1 to all others; ``history``, of a cross alone, is how often the combination was seen with and
            without a click, see :mod:`nasrec_torchrec.datasets.history`.
        min_count: a value seen less often in the training split is not put into the dictionary.
        multi_hot: a row holds a list of values instead of one.
        separator: between the values of a list in raw text.
        weighted: a column ``<name>_weights`` holds a number per value.
        pooling: ``sum`` or ``mean`` of a row's embeddings.
        table: name of the embedding table, ``t_<name>`` when left out. Features that name the same table share it,
            and its dictionary.
        cross: names of two or more other features of the schema (one suffices for a ``history``). This feature has no
            raw column then: its value is the combination of their prepared ids, which ``ids`` (``hash``,
            ``dictionary`` or ``history``) turns into an id like any other text. See
            :mod:`nasrec_torchrec.datasets.crosses`.
    """

    name: str
    num_embeddings: int | None = None
    ids: IdRule = "id"
    min_count: int = 1
    multi_hot: bool = False
    separator: str = "|"
    weighted: bool = False
    pooling: Literal["sum", "mean"] = "sum"
    table: str = ""
    cross: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name, "sparse feature")
        _check_choice(self.ids, IdRule, f"{self.name}: ids")
        _check_choice(self.pooling, Literal["sum", "mean"], f"{self.name}: pooling")
        if not self.table:
            object.__setattr__(self, "table", f"t_{self.name}")
        _check_name(self.table, f"{self.name}: table")
        least = {"id": 1, "dictionary": FIRST_WORD}.get(self.ids, 2)
        if self.ids == "history" and self.num_embeddings is None:
            object.__setattr__(self, "num_embeddings", HISTORY_IDS)
        rows = self.num_embeddings
        if self.ids == "history" and rows != HISTORY_IDS:
            raise ValueError(f"{self.name}: num_embeddings: a history has {HISTORY_IDS} ids, found {rows!r}")
        if rows is None and self.ids != "dictionary":
            raise ValueError(f"{self.name}: num_embeddings: only a dictionary can do without")
        if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or not least <= rows < 2**63):
            raise ValueError(f"{self.name}: num_embeddings: expected an integer, {least} or more, found {rows!r}")
        if not isinstance(self.min_count, int) or self.min_count < 1:
            raise ValueError(f"{self.name}: min_count: expected a positive integer, found {self.min_count!r}")
        for flag in ("multi_hot", "weighted"):
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{self.name}: {flag}: expected true or false, found {getattr(self, flag)!r}")
        if not isinstance(self.separator, str) or not self.separator:
            raise ValueError(f"{self.name}: separator: expected some text, found {self.separator!r}")
        if self.weighted and not self.multi_hot:
            raise ValueError(f"{self.name}: weighted: only a multi_hot feature can be weighted")
        if not isinstance(self.cross, (list, tuple)):
            raise ValueError(f"{self.name}: cross: expected a list of names of features, found {self.cross!r}")
        object.__setattr__(self, "cross", tuple(self.cross))
        least_crossed = 1 if self.ids == "history" else 2
        if (self.cross or self.ids == "history") and (
            len(self.cross) < least_crossed or len(set(self.cross)) != len(self.cross)
        ):
            raise ValueError(
                f"{self.name}: cross: expected {'one' if least_crossed == 1 else 'two'} or more different features, "
                f"found {list(self.cross)}"
            )
        if self.cross and (self.ids not in ("hash", "dictionary", "history") or self.multi_hot):
            raise ValueError(
                f"{self.name}: cross: expected ids hash, dictionary or history and one value a row, "
                f"found ids {self.ids}, multi_hot {self.multi_hot}"
            )

    @property
    def weights_column(self) -> str | None:
        return f"{self.name}_weights" if self.weighted else None


@dataclass(frozen=True)
class Schema:
    """Columns of a data set.

    Args:
        label: column of 0 and 1, or of numbers when ``label_above`` is given.
        dense: numeric features; a name alone stands for a feature without transform.
        sparse: categorical features.
        embedding_dim: width E of all tables. It is one number because the interaction modules stack the embeddings.
        label_above: numbers above it are clicks, the others are none.

    Raises:
        ValueError: for repeated names, no sparse feature, features that share a table and disagree about it, or a mix
            of weighted and unweighted features (TorchRec weights a whole collection or none of it).
    """

    label: str
    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = field(default=())
    embedding_dim: int = 16
    label_above: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.label, "label")
        dense = tuple(DenseFeature(entry) if isinstance(entry, str) else entry for entry in self.dense)
        object.__setattr__(self, "dense", dense)
        object.__setattr__(self, "sparse", tuple(self.sparse))
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise ValueError(f"schema: columns named more than once: {repeated}")
        if not self.sparse:
            raise ValueError("schema: sparse: expected at least one feature, found none")
        if not isinstance(self.embedding_dim, int) or self.embedding_dim < 1:
            raise ValueError(f"schema: embedding_dim: expected a positive integer, found {self.embedding_dim!r}")
        if self.label_above is not None and not isinstance(self.label_above, (int, float)):
            raise ValueError(f"schema: label_above: expected a number, found {self.label_above!r}")
        if len({feature.weighted for feature in self.sparse}) > 1:
            raise ValueError("schema: sparse: either every feature is weighted or none is")
        self._check_crosses()
        for table, features in self.features_by_table().items():
            for key in ("num_embeddings", "ids", "min_count", "pooling"):
                values = {feature.name: getattr(feature, key) for feature in features}
                if len(set(values.values())) > 1:
                    raise ValueError(
                        f"schema: table '{table}': expected one {key} for all its features, found {values}"
                    )

    @property
    def weighted(self) -> bool:
        return self.sparse[0].weighted

    @property
    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.sparse]

    @property
    def crosses(self) -> list[SparseFeature]:
        """The features that are computed from the prepared ids of others."""
        return [feature for feature in self.sparse if feature.cross]

    @property
    def raw_columns(self) -> list[str]:
        """Every column that raw data must have: crosses are computed."""
        computed = {feature.name for feature in self.crosses}
        return [name for name in self.columns if name not in computed]

    @property
    def columns(self) -> list[str]:
        """Every column of the prepared data that the schema reads."""
        weights = [feature.weights_column for feature in self.sparse if feature.weights_column]
        return [self.label, *(feature.name for feature in self.dense), *self.feature_names, *weights]

    def _check_crosses(self) -> None:
        plain = {feature.name: feature for feature in self.sparse if not feature.cross}
        for feature in self.crosses:
            allowed = [name for name, other in plain.items() if not other.multi_hot]
            unknown = [name for name in feature.cross if name not in allowed]
            if unknown:
                raise ValueError(
                    f"{feature.name}: cross: expected sparse features of the schema that have one value a row and are "
                    f"no crosses themselves ({allowed}), found {unknown}"
                )
            sharing = [other.name for other in self.sparse if other.table == feature.table and not other.cross]
            if sharing:
                raise ValueError(f"{feature.name}: cross: it cannot share the table {feature.table} with {sharing}")

    def features_by_table(self) -> dict[str, list[SparseFeature]]:
        tables: dict[str, list[SparseFeature]] = {}
        for feature in self.sparse:
            tables.setdefault(feature.table, []).append(feature)
        return tables

    def tables(self) -> list[EmbeddingBagConfig]:
        """The embedding tables, initialised Xavier normal.

        Raises:
            ValueError: when a dictionary was not counted yet.
        """
        return [
            EmbeddingBagConfig(
                name=name,
                embedding_dim=self.embedding_dim,
                num_embeddings=_counted(features[0]),
                feature_names=[feature.name for feature in features],
                pooling=PoolingType.MEAN if features[0].pooling == "mean" else PoolingType.SUM,
                # The deviation is that of the whole table, also where a shard of it is initialised.
                init_fn=partial(
                    torch.nn.init.normal_, std=math.sqrt(2.0 / (_counted(features[0]) + self.embedding_dim))
                ),
            )
            for name, features in self.features_by_table().items()
        ]

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **self.to_dict()}, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; a feature that is no cross is described as before there were any."""
        document = asdict(self)
        for feature in document["sparse"]:
            if not feature["cross"]:
                del feature["cross"]
        return document

    @classmethod
    def read(cls, path: Path) -> "Schema":
        """Reads a JSON or YAML file.

        Raises:
            ValueError: says which file, and what is wrong.
        """
        text = read_text(path)
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Reads what :meth:`to_json` wrote, or the same as YAML; what has a default may be left out.

        Raises:
            ValueError: says which key is missing, unknown or wrong.
        """
        try:
            # Not all JSON is YAML: PyYAML takes 1e+30 for text.
            document = json.loads(text)
        except json.JSONDecodeError:
            try:
                document = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"schema: neither JSON nor YAML: {error}") from None
        if not isinstance(document, dict):
            raise ValueError(f"schema: expected an object with the keys {_keys(cls)}, found {type(document).__name__}")
        found = document.pop("format", _FORMAT)
        if found != _FORMAT:
            raise ValueError(f"schema: expected the format '{_FORMAT}', found {found!r}")
        _check_keys(document, cls, "schema")
        dense = [
            entry if isinstance(entry, str) else _feature(entry, DenseFeature)
            for entry in _list_of(document, "dense", (dict, str))
        ]
        sparse = [_feature(entry, SparseFeature) for entry in _list_of(document, "sparse", (dict,))]
        return cls(**{**document, "dense": tuple(dense), "sparse": tuple(sparse)})


def _counted(feature: SparseFeature) -> int:
    if feature.num_embeddings is None:
        raise ValueError(
            f"{feature.name}: num_embeddings is not known yet: preparation fills it in; take the prepared schema.json"
        )
    return feature.num_embeddings


def _list_of(document: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> list[Any]:
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, kinds) for entry in entries):
        raise ValueError(f"schema: {key}: expected a list of {'objects' if str not in kinds else 'names or objects'}")
    return entries


def _feature(entry: Mapping[str, Any], kind: type) -> Any:
    _check_keys(entry, kind, f"schema: feature {entry.get('name')!r}")
    return kind(**entry)


def _keys(kind: type) -> list[str]:
    return [entry.name for entry in fields(kind)]


def _check_keys(entry: Mapping[str, Any], kind: type, where: str) -> None:
    required = {item.name for item in fields(kind) if item.default is MISSING}
    if not required <= set(entry) or not set(entry) <= set(_keys(kind)):
        raise ValueError(
            f"{where}: expected the keys {_keys(kind)}, of which {sorted(required)} must be there, "
            f"found {sorted(map(str, entry))}"
        )


def _check_name(name: Any, what: str) -> None:
    # TorchRec builds module paths and Parquet builds nested columns from dotted names.
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"{what}: expected a non-empty name without '.', found {name!r}")


def _check_choice(value: Any, kind: Any, what: str) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{what}: expected one of {list(get_args(kind))}, found {value!r}")
