"""Descriptions from which a model can be built again; a run stores one as a small JSON file next to the weights."""

import json
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from nasrec_torchrec.architecture import Architecture, recorded
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.memory import host_memory, require_memory
from nasrec_torchrec.models.baselines import FlatModel, build_baseline
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids
from nasrec_torchrec.search_space import SearchSpace

ClickModel: TypeAlias = NASRecNet | SuperNet | DLRM | FlatModel
_FORMAT = "nasrec-torchrec/model/1"


@dataclass(frozen=True)
class ModelDescription:
    """Describes a model and the data that it reads.

    Args:
        schema: The columns and tables of the data; the model predicts each of its labels.
        interaction: An architecture (for a NASRecNet), a search space (for a SuperNet) or a baseline.
        use_layernorm: Whether to normalize after each linear layer. Baselines ignore it.
        dictionaries: Name and checksum of each dictionary that the training rows' ids come from.

    The tables of the schema get the widths that the architecture chooses, or the largest ones of the search space.
    What it chooses for tables that the schema does not have, those of features that are left out, is dropped.

    Raises:
        ValueError: If an architecture chooses a width that tables cannot have, a search space names an unknown table,
            or the schema of a supernet has several labels.
    """

    schema: Schema
    interaction: Architecture | SearchSpace | Baseline = field(default_factory=Baseline)
    use_layernorm: bool = False
    dictionaries: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        interaction, names = self.interaction, self.schema.table_names
        if isinstance(interaction, SearchSpace) and self.schema.tasks:
            raise ValueError(f"a supernet predicts one label, found the labels {', '.join(self.schema.labels)}")
        if isinstance(interaction, Architecture) and interaction.embedding_widths:
            chosen = {name: width for name, width in interaction.embedding_widths if name in names}
            interaction = replace(interaction, embedding_widths=tuple(chosen.items()))
        elif isinstance(interaction, SearchSpace) and interaction.embedding_widths:
            interaction = interaction.for_tables(names)
            chosen = dict.fromkeys(interaction.width_tables, max(interaction.embedding_widths))
        else:
            return
        object.__setattr__(self, "interaction", interaction)
        object.__setattr__(self, "schema", self.schema.with_widths(chosen))

    def read(self, data: ClickFiles) -> ClickFiles:
        """Returns rows with the features that the model reads; the data set may have further ones.

        Raises:
            ValueError: See :meth:`require_fits`.
        """
        reduced = replace(data, schema=data.schema.reduced_to(self.schema))
        self.require_fits(reduced)
        return reduced

    def require_fits(self, data: ClickFiles) -> None:
        """Refuses rows of another preparation than those that the model was trained on.

        Args:
            data: The rows that the model is to read.

        Raises:
            ValueError: If the schema or the words of a dictionary differ. It names the first difference.
        """
        # A training may choose another width than the data set's schema proposes.
        difference = self.schema.difference(replace(data.schema, embedding_dim=self.schema.embedding_dim))
        if difference is None:
            theirs = dict(data.dictionaries)
            other = [name for name, checksum in self.dictionaries if theirs.get(name, checksum) != checksum]
            difference = f"the dictionary {other[0]} gives other ids to the words" if other else None
        if difference is not None:
            raise ValueError(
                f"{data.files[0].parent}: the model was trained on data of another preparation: {difference}"
            )

    def build(self, device: torch.device | None = None, tables: torch.device | None = None) -> ClickModel:
        """Builds the model.

        Args:
            device: Device of the dense part and, by default, the tables; ``meta`` is allowed.
            tables: Device of the tables, if it is another one.

        Returns:
            The model with initial weights.

        Raises:
            ValueError: If the tables do not fit into this machine's memory.
        """
        tables = device if tables is None else tables
        if tables is None or tables.type == "cpu":
            require_memory(self.schema.tables(), 4, host_memory(), "their weights")
        ebc = self._tables(tables)
        dense, width = len(self.schema.dense), self.schema.embedding_dim
        attention = self.schema.attention
        match self.interaction:
            case Architecture():
                more = attention, len(self.schema.labels)
                return NASRecNet(ebc, dense, self.interaction, self.use_layernorm, device, width, *more)
            case SearchSpace():
                return SuperNet(ebc, dense, self.interaction, self.use_layernorm, device, width, attention)
            case Baseline():
                weights = self.schema.loss_weights
                return build_baseline(self.interaction, ebc, dense, device, width, weights, attention)

    def _tables(self, device: torch.device | None) -> nn.Module:
        """Returns the tables, in the collection that the features need."""
        schema = self.schema
        if schema.attention:
            return EmbeddingCollection(tables=[_of_sequences(config) for config in schema.tables()], device=device)
        lengths = schema.position_lengths
        weighted = schema.weighted or bool(lengths)
        tables = EmbeddingBagCollection(tables=schema.tables(), is_weighted=weighted, device=device)
        if lengths:
            processors = PositionWeightedModuleCollection(lengths, device)
            return FeatureProcessedEmbeddingBagCollection(tables, processors)
        if not schema.dynamic:
            return tables
        dynamic = {name for name, features in schema.features_by_table().items() if features[0].ids == "dynamic"}
        rows = {config.name: config.num_embeddings for config in tables.embedding_bag_configs()}
        return with_dynamic_ids(
            tables, {safe_name(name): DynamicIds(rows[safe_name(name)], device) for name in dynamic}
        )

    def to_json(self) -> str:
        """Converts the description to a JSON document."""
        kind = {Architecture: "nasrecnet", SearchSpace: "supernet", Baseline: "baseline"}[type(self.interaction)]
        interaction = (
            json.loads(self.interaction.to_json())
            if isinstance(self.interaction, Architecture)
            else recorded(self.interaction)
        )
        return json.dumps(
            {
                "format": _FORMAT,
                "kind": kind,
                "interaction": interaction,
                "use_layernorm": self.use_layernorm,
                "schema": json.loads(self.schema.to_json()),
                "dictionaries": dict(self.dictionaries),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelDescription":
        """Reads a document that :meth:`to_json` wrote.

        Args:
            text: The JSON document.

        Returns:
            The description.

        Raises:
            ValueError: If the format or the kind is unknown, or if a part is not valid.
        """
        try:
            document = json.loads(text)
            if document.get("format") != _FORMAT:
                raise ValueError(f"model description: expected format '{_FORMAT}', found {document.get('format')!r}")
            interaction = document["interaction"]
            match document["kind"]:
                case "nasrecnet":
                    part: Architecture | SearchSpace | Baseline = Architecture.from_json(json.dumps(interaction))
                case "supernet":
                    part = SearchSpace(**interaction)
                case "baseline":
                    part = Baseline(**interaction)
                case kind:
                    raise ValueError(
                        f"model description: kind: expected nasrecnet, supernet or baseline, found {kind!r}"
                    )
            # Earlier versions did not keep the checksums.
            dictionaries = tuple(dict(document.get("dictionaries", {})).items())
            return cls(Schema.from_json(json.dumps(document["schema"])), part, document["use_layernorm"], dictionaries)
        except KeyError as error:
            raise ValueError(f"model description: {error} is missing") from None
        except (AttributeError, TypeError) as error:
            raise ValueError(f"model description: {error}") from None


def _of_sequences(config: EmbeddingBagConfig) -> EmbeddingConfig:
    """Returns a table whose embeddings are looked up one by one."""
    return EmbeddingConfig(
        name=config.name,
        embedding_dim=config.embedding_dim,
        num_embeddings=config.num_embeddings,
        feature_names=config.feature_names,
        init_fn=config.init_fn,
    )


def dense_parameters(model: nn.Module) -> int:
    """Counts the parameters outside of the embedding tables."""
    kinds = EmbeddingBagCollection, EmbeddingCollection
    tables = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)
