"""The schema of a data set: its labels, its features, and how files are read and rows are split."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasrec_torchrec.datasets.config import SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.labels import Task, check_rule
from nasrec_torchrec.datasets.names import check_column, check_distinct, safe_name
from nasrec_torchrec.datasets.schema_document import FORMAT, arguments_of
from nasrec_torchrec.table_widths import check_tables, check_width

if TYPE_CHECKING:
    from torchrec.modules.embedding_configs import EmbeddingBagConfig

# Weights by position belong to the features, whose embeddings are then added up.
_POOLED_AS = {"position": "sum"}


@dataclass(frozen=True)
class Schema:
    """Columns of a data set.

    Args:
        label: name of the label's column, which holds 0 and 1, numbers if ``label_above`` is given, or the values of
            ``label_values``.
        dense: numeric features; a name alone stands for a feature without transformation.
        sparse: categorical features.
        embedding_dim: width E of the tokens that the interaction modules stack, and of all tables that do not name
            another one. A multiple of 4, because FBGEMM reads four columns at once.
        label_above: threshold above which a number is a click.
        label_values: meaning of each value of the label, 1 for a click and 0 for none.
        text: how text files were read, which is also how raw rows are read when they are scored.
        split: how preparation divides the rows, unless it is told otherwise.
        weight: name of a column of numbers, 0 or more: how much a row counts in training and in metrics, where a row of
            weight 2 counts as two rows. Unset, all rows count alike. Serving never asks for it.
        tasks: further labels, which one model predicts together with the label; a name alone stands for a column of 0
            and 1. Whatever needs one number judges by the label alone.

    Raises:
        ValueError: If names are repeated, there is no sparse feature, features that share a table disagree about it, or
            weighted and unweighted features are mixed (TorchRec weights a whole collection or none of it).
    """

    label: str
    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = field(default=())
    embedding_dim: int = 16
    label_above: float | None = None
    label_values: tuple[tuple[str, int], ...] = ()
    text: TextFormat = field(default_factory=TextFormat)
    split: SplitConfig | None = None
    weight: str | None = None
    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        check_column(self.label, "label")
        if self.weight is not None:
            check_column(self.weight, "weight")
        object.__setattr__(self, "label_values", check_rule(self, "schema"))
        object.__setattr__(self, "tasks", tuple(Task(task) if isinstance(task, str) else task for task in self.tasks))
        dense = tuple(DenseFeature(entry) if isinstance(entry, str) else entry for entry in self.dense)
        object.__setattr__(self, "dense", dense)
        object.__setattr__(self, "sparse", tuple(self.sparse))
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise ValueError(f"schema: columns named more than once: {repeated}")
        if not self.sparse:
            raise ValueError("schema: sparse: expected at least one feature, found none")
        check_width(self.embedding_dim, "schema: embedding_dim")
        if len({feature.weighted for feature in self.sparse}) > 1:
            raise ValueError("schema: sparse: either every feature is weighted or none is")
        self._check_crosses()
        for table, features in self.features_by_table().items():
            for key in ("num_embeddings", "ids", "min_count", "values", "embedding_dim"):
                values = {feature.name: getattr(feature, key) for feature in features}
                if len(set(values.values())) > 1:
                    raise ValueError(
                        f"schema: table '{table}': expected one {key} for all its features, found {values}"
                    )
            pooled = {feature.name: feature.pooling for feature in features}
            if not self.attention and len({_POOLED_AS.get(pooling, pooling) for pooling in pooled.values()}) > 1:
                raise ValueError(f"schema: table '{table}': expected one pooling for all its features, found {pooled}")
        self._check_sequences()
        check_distinct(self.features_by_table(), "schema: tables")

    @property
    def weighted(self) -> bool:
        return self.sparse[0].weighted

    @property
    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.sparse]

    @property
    def crosses(self) -> list[SparseFeature]:
        """Features that are computed from the prepared values of others."""
        return [feature for feature in self.sparse if feature.cross]

    @property
    def raw_columns(self) -> list[str]:
        """Every column that raw data must have; crosses are computed."""
        labels = self.label, *(task.raw_column for task in self.tasks)
        return list(dict.fromkeys([*labels, *self.input_columns, *self._weight]))

    @property
    def input_columns(self) -> list[str]:
        """Every raw column that features are read from, which is what scoring needs."""
        features: list[DenseFeature | SparseFeature] = [*self.dense, *self.sparse]
        return list(dict.fromkeys(name for feature in features for name in feature.raw_columns))

    @property
    def labels(self) -> list[str]:
        """The prepared columns of the label and of the tasks."""
        return [self.label, *(task.name for task in self.tasks)]

    @property
    def loss_weights(self) -> list[float]:
        """The weights of the losses of the label and of the tasks."""
        return [1.0, *(task.loss_weight for task in self.tasks)]

    def with_loss_weights(self, weights: Mapping[str, float]) -> "Schema":
        """Gives tasks another weight in the loss.

        Args:
            weights: weights by the names of tasks, the others keep theirs; 0 leaves a task out.

        Raises:
            ValueError: If there is no such task, or a weight is below 0 or no number.
        """
        names = [task.name for task in self.tasks]
        if unknown := sorted(set(weights) - set(names)):
            found = f"the further labels {', '.join(names)}" if names else "no further label in the data"
            raise ValueError(f"loss_weights: expected names of {found}, found {', '.join(unknown)}")
        kept = (task for task in self.tasks if weights.get(task.name, task.loss_weight) != 0)
        return replace(self, tasks=tuple(replace(t, loss_weight=weights.get(t.name, t.loss_weight)) for t in kept))

    @property
    def parsed_columns(self) -> list[str]:
        """Every column of the prepared data that depends on its row alone, which leaves out the crosses."""
        computed = {feature.name for feature in self.crosses}
        return [name for name in self.columns if name not in computed]

    @property
    def moment_columns(self) -> list[str]:
        """The raw columns whose moments features are computed from."""
        found = [name for feature in self.dense if feature.age_of for name in feature.raw_columns]
        return list(dict.fromkeys([*found, *(feature.of for feature in self.sparse if feature.of)]))

    @property
    def columns(self) -> list[str]:
        """Every column of the prepared data that the schema reads."""
        weights = [feature.weights_column for feature in self.sparse if feature.weights_column]
        of_features = [*(feature.name for feature in self.dense), *self.feature_names, *weights]
        return [*self.labels, *of_features, *self._weight]

    @property
    def _weight(self) -> list[str]:
        return [] if self.weight is None else [self.weight]

    def _check_crosses(self) -> None:
        plain = {feature.name: feature for feature in self.sparse if not feature.cross}
        for feature in self.crosses:
            if feature.ids == "buckets":
                self._check_buckets(feature)
                continue
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

    def _check_sequences(self) -> None:
        """Checks what TorchRec's collections of sequences and of position weights ask of all features."""
        if self.attention and self.position_lengths:
            raise ValueError(
                f"schema: sparse: expected pooling attention or position, found {sorted(self.attention)} and "
                f"{sorted(self.position_lengths)}: TorchRec has no collection of tables for both"
            )
        if not self.attention and not self.position_lengths:
            return
        kind = "attention" if self.attention else "position"
        if self.weighted or self.dynamic:
            found = "features are weighted" if self.weighted else "ids are dynamic"
            raise ValueError(f"schema: sparse: pooling {kind}: expected unweighted ids that are known, but {found}")
        for name, target in self.attention.items():
            if target not in self.feature_names or target in self.attention:
                known = [other for other in self.feature_names if other not in self.attention]
                raise ValueError(f"{name}: target: expected one of the features {known}, found {target!r}")
        if not self.attention:
            means = [f.name for f in self.sparse if f.pooling == "mean"]
            if means:  # PyTorch's weighted look-ups add up alone
                raise ValueError(f"{means[0]}: pooling: expected sum or position beside a list by position, found mean")
            return
        summed = [f.name for f in self.sparse if f.multi_hot and f.pooling == "sum"]
        widths = {f.name: f.embedding_dim for f in self.sparse if f.embedding_dim not in (None, self.embedding_dim)}
        if summed:
            raise ValueError(
                f"{summed[0]}: pooling: expected mean or attention beside a list with attention, found sum"
            )
        if widths:
            raise ValueError(
                f"schema: sparse: pooling attention: TorchRec needs tables of one width, {self.embedding_dim}; found "
                f"{widths}"
            )

    def _check_buckets(self, feature: SparseFeature) -> None:
        dense = [other.name for other in self.dense]
        if feature.cross[0] not in dense:
            raise ValueError(
                f"{feature.name}: cross: expected a dense feature of the schema ({dense}), found {feature.cross[0]!r}"
            )
        if sharing := [other.name for other in self.sparse if other.table == feature.table and other != feature]:
            raise ValueError(f"{feature.name}: buckets cannot share the table {feature.table} with {sharing}")

    @property
    def attention(self) -> dict[str, str]:
        """The target of each list that is pooled by attention."""
        return {feature.name: feature.target for feature in self.sparse if feature.target}

    @property
    def position_lengths(self) -> dict[str, int]:
        """The number of positions of each list whose values are weighted by their position."""
        return {f.name: f.max_length for f in self.sparse if f.pooling == "position" and f.max_length is not None}

    @property
    def dynamic(self) -> bool:
        """Whether a feature has ids that are not known beforehand."""
        return any(feature.ids == "dynamic" for feature in self.sparse)

    def features_by_table(self) -> dict[str, list[SparseFeature]]:
        tables: dict[str, list[SparseFeature]] = {}
        for feature in self.sparse:
            tables.setdefault(feature.table, []).append(feature)
        return tables

    @property
    def table_names(self) -> list[str]:
        """The names of the embedding tables in :meth:`tables`."""
        return [safe_name(name) for name in self.features_by_table()]

    def with_widths(self, widths: Mapping[str, int]) -> "Schema":
        """Gives tables another width.

        Args:
            widths: Embedding dimension by the name of a table; the other tables keep theirs.

        Returns:
            The schema with these tables.

        Raises:
            ValueError: If a table does not exist, or a width is not a positive multiple of 4.
        """
        check_tables(widths, self.table_names)

        def sized(feature: SparseFeature) -> SparseFeature:
            width = widths.get(safe_name(feature.table), feature.embedding_dim or self.embedding_dim)
            return replace(feature, embedding_dim=None if width == self.embedding_dim else width)

        return replace(self, sparse=tuple(map(sized, self.sparse)))

    def as_prepared(self) -> "Schema":
        """Returns a schema that reads features of prepared rows as if they were raw, with all values as they are."""
        rules = {"ids": "id", "min_count": 1, "values": "text", "cross": (), "of": "", "column": "", "edges": ()}
        return replace(
            self,
            tasks=(),
            dense=tuple(replace(feature, transform="none", age_of="", at="", column="") for feature in self.dense),
            sparse=tuple(
                replace(feature, **rules, num_embeddings=feature.id_limit)  # type: ignore[arg-type]
                for feature in self.sparse
            ),
        )

    def without_tasks(self) -> "Schema":
        """Returns the schema with the label alone."""
        return replace(self, tasks=())

    def without(self, names: Collection[str]) -> "Schema":
        """Leaves features out, so that a model neither has their tables nor asks for them.

        Args:
            names: Dense and sparse features that are not to be read.

        Returns:
            The schema of the other features.

        Raises:
            ValueError: If a name is none of a feature, or a feature that is left needs it.
        """
        known = [*(feature.name for feature in self.dense), *self.feature_names]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"features to leave out: expected some of {known}, found {unknown}")
        return replace(
            self,
            dense=tuple(feature for feature in self.dense if feature.name not in names),
            sparse=tuple(feature for feature in self.sparse if feature.name not in names),
        )

    def difference(self, other: "Schema") -> str | None:
        """Finds the first reason why a model with this schema cannot read rows that were prepared with another one.

        How files were read, what was merely counted, how much rows and tasks count, and the width of single tables make
        no difference.

        Args:
            other: schema of the data.

        Returns:
            str: What differs, with both values; None if nothing does.
        """
        for key in ("label", "label_above", "label_values", "embedding_dim"):
            if getattr(self, key) != getattr(other, key):
                return f"{key} is {getattr(self, key)!r} here and {getattr(other, key)!r} there"
        tasks, of_other = ([task.meaning for task in schema.tasks] for schema in (self, other))
        if tasks != of_other:
            return f"tasks are {tasks} here and {of_other} there"
        kinds: list[tuple[str, Sequence[Any], Sequence[Any]]] = [
            ("dense", self.dense, other.dense),
            ("sparse", self.sparse, other.sparse),
        ]
        for kind, mine, others in kinds:
            names, there = [feature.name for feature in mine], [feature.name for feature in others]
            if names != there:
                return f"the {kind} features are {names} here and {there} there"
            for feature, theirs in zip(mine, others, strict=True):
                for item in fields(feature):
                    here, found = getattr(feature, item.name), getattr(theirs, item.name)
                    if item.name not in ("missing", "unknown", "embedding_dim") and here != found:
                        return f"'{feature.name}': {item.name} is {here!r} here and {found!r} there"
        return None

    def reduced_to(self, other: "Schema") -> "Schema":
        """Leaves out the features that another schema does not have, if this one has all of that one's; so of tasks."""
        mine, theirs = (
            [*(feature.name for feature in schema.dense), *schema.feature_names] for schema in (self, other)
        )
        reduced = self.without([name for name in mine if name not in theirs]) if set(theirs) < set(mine) else self
        if set(other.labels) < set(self.labels):
            reduced = replace(reduced, tasks=tuple(task for task in self.tasks if task.name in other.labels))
        return reduced

    def tables(self) -> "list[EmbeddingBagConfig]":
        """Returns the configurations of the embedding tables, with Xavier normal initialization.

        Raises:
            ValueError: If a dictionary is not counted yet.
        """
        # Preparation reads schemas too, and starts faster without PyTorch.
        import torch
        from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

        by_table = self.features_by_table()
        widths = {name: features[0].embedding_dim or self.embedding_dim for name, features in by_table.items()}
        return [
            EmbeddingBagConfig(
                name=safe_name(name),
                embedding_dim=widths[name],
                num_embeddings=_counted(features[0]),
                feature_names=[feature.name for feature in features],
                pooling=PoolingType.MEAN if features[0].pooling == "mean" else PoolingType.SUM,
                # The deviation is that of the whole table, also where a shard of it is initialised.
                init_fn=partial(torch.nn.init.normal_, std=math.sqrt(2.0 / (_counted(features[0]) + widths[name]))),
            )
            for name, features in by_table.items()
        ]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **self.to_dict()}, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values; what is not used looks the same as in older versions."""
        document = {**asdict(self), "label_values": dict(self.label_values)}
        if self.split is None:
            del document["split"]
        else:
            document["split"] = self.split.to_dict()
        if self.weight is None:
            del document["weight"]
        for task, written in zip(self.tasks, document["tasks"], strict=True):
            written["label_values"] = dict(task.label_values)
        if not self.tasks:
            del document["tasks"]
        for feature in document["sparse"]:
            for unused in ("cross", "of", "column", "edges", "embedding_dim", "max_length", "target"):
                if not feature[unused]:
                    del feature[unused]
        for feature in document["dense"]:
            for unused in ("age_of", "at", "column"):
                if not feature[unused]:
                    del feature[unused]
        return document

    @classmethod
    def infer(cls, table: Any, label: str | None = None, **options: Any) -> "Schema":
        """Proposes a schema for a table in memory, as ``nasrec prepare init`` does for files.

        Args:
            table: PyArrow table, or a dataframe of a library such as pandas or Polars.
            label: column that says what was clicked; unset, one that is called label, clicked, target or the like.
            options: see :func:`nasrec_torchrec.datasets.proposal.propose`.

        Raises:
            ValueError: If there is no label of two values, or no column to learn from.
        """
        from nasrec_torchrec.datasets.proposal import propose
        from nasrec_torchrec.datasets.sampling import sample_table

        return propose(sample_table(table), label, **options).schema

    @classmethod
    def read(cls, path: Path, embedding_dim: int | None = None) -> "Schema":
        """Reads a JSON or YAML file.

        Args:
            path: path of the file.
            embedding_dim: width of all tables, in place of the file's own.

        Raises:
            ValueError: If the file is not valid. The message names the file and says what is wrong.
        """
        # Only here, so that the schema of a package can be read without what reads remote storage.
        from nasrec_torchrec.runs.files import read_text

        text = read_text(path)
        try:
            return cls.from_json(text, embedding_dim)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, text: str, embedding_dim: int | None = None) -> "Schema":
        """Reads what :meth:`to_json` wrote, or the same as YAML. Whatever has a default may be left out.

        Raises:
            ValueError: If a key is missing, unknown or wrong. The message names it.
        """
        found = arguments_of(text, cls)
        return cls(**found if embedding_dim is None else found | {"embedding_dim": embedding_dim})


def _counted(feature: SparseFeature) -> int:
    if feature.num_embeddings is None:
        raise ValueError(
            f"{feature.name}: num_embeddings is not known yet: preparation fills it in; take the prepared schema.json"
        )
    return feature.num_embeddings
