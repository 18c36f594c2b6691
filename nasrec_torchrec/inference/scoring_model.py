"""A trained model in the form for serving, and its graph."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.nn import functional as F
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModule, PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.inference.id_map import IdMap, has_known_maps
from nasrec_torchrec.inference.recalibration import Recalibration
from nasrec_torchrec.inference.tables import FloatTables, Tables, make_tables, table_precisions
from nasrec_torchrec.models.baselines import FlatModel
from nasrec_torchrec.models.boosted_trees import BoostedTrees
from nasrec_torchrec.models.description import ClickModel
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.modules.sequence_pooling import TargetAttention
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.modules.table_collection import bags_of, parts_of, table_weights


class ScoringModel(nn.Module):
    """A model in the form for serving: fused, with tables that are looked up from plain tensors.

    Inputs are dense features ``(B, F_dense)`` (left out when there are none), ``ids`` ``(T,)`` int64 of all features,
    feature by feature, ``lengths`` ``(F_sparse, B)`` int64, and for weighted collections ``weights`` ``(T,)``.
    Ids outside of a feature's table are looked up as 0, the missing id; dynamic ids, as they were at the end of
    training.

    Args:
        model: unsharded NASRecNet or baseline; it is not changed.
        precision: precision of every table; by default float32.
        bf16: whether to run the dense part in bfloat16.
        features: order of the sparse features in the inputs; by default the model's own.
        recalibration: map that the logits go through, if any.
        others: further models of the same features in the same form, or trees; the probability is the mean of all.

    Raises:
        ValueError: If the model is of another kind, or the features are not those of the model.
    """

    order: Tensor

    def __init__(
        self,
        model: ClickModel,
        precision: Mapping[str, str] | None = None,
        bf16: bool = False,
        features: Sequence[str] | None = None,
        recalibration: Recalibration | None = None,
        others: Sequence["ScoringModel | ScoringTrees"] = (),
    ) -> None:
        super().__init__()
        ebc, own = tables_of(model), feature_names(model)
        given = list(features or own)
        if sorted(given) != sorted(own):
            raise ValueError(f"the model reads the features {own}, the schema has {given}")
        self.precisions = dict(precision or table_precisions(ebc, "fp32", {}))
        self.tables = make_tables(ebc, given, self.precisions)
        self.id_map = IdMap.of(model, self.tables)
        interaction, self.dense_in_features = _interaction(model)
        self.has_dense = self.dense_in_features > 0
        position_weights = _position_weights(model, given)
        self.attention = AttentionPooling.of(model, given, self.tables)
        self.positions: PositionWeights | None = None if position_weights is None else PositionWeights(position_weights)
        self.weighted: bool = ebc.is_weighted() and self.positions is None
        self.interaction_arch = fuse(interaction)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.interaction_arch.to(self.dtype)
        self.recalibration = None if recalibration is None else recalibration.module()
        self.others = nn.ModuleList(others)
        # Features that share a table stand together in the model, wherever they are in the schema.
        self.reordered = given != own
        order = torch.tensor([given.index(name) for name in own])
        # Where dimensions differ, the model projects the embeddings, which it reads side by side.
        self.projects = bool(getattr(model.sparse_arch, "tables", ()))
        if self.projects:
            columns = torch.arange(sum(self.tables.dims)).split(self.tables.dims)
            order = torch.cat([columns[feature] for feature in order.tolist()])
        self.register_buffer("order", order)

    @property
    def every_tables(self) -> list[Tables]:
        """The tables of the model and of the others."""
        return [self.tables, *(other.tables for other in self.others if isinstance(other, ScoringModel))]

    def table_weights(self) -> dict[str, Tensor]:
        """Returns the weights of all tables, by the names of their buffers."""
        places = [(place, tables) for place, tables in self.named_modules() if isinstance(tables, Tables)]
        return {f"{place}.{name}": tables.get_buffer(name) for place, tables in places for name in tables.weight_names}

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs, in order."""
        return (["dense"] if self.has_dense else []) + ["ids", "lengths"] + (["weights"] if self.weighted else [])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Computes logits.

        Args:
            inputs: ``[dense,] ids, lengths[, weights]``, as described at the class.

        Returns:
            Tensor: Logits in float32, ``(B,)``, or ``(B, T)`` of a model of T labels.
        """
        ids, lengths, *weights = inputs[1:] if self.has_dense else inputs
        if self.id_map is not None:
            ids = self.id_map(ids, lengths)
        by_id = weights[0] if self.weighted else None
        if self.positions is not None:
            by_id = self.positions(ids, lengths)
        pooled = self.tables(ids, lengths, by_id)
        if self.attention is not None:
            pooled = self.attention(self.tables, ids, lengths, pooled)
        if self.projects:
            pooled = pooled.flatten(1)
        if self.reordered:
            pooled = pooled.index_select(1, self.order)
        dense = inputs[0] if self.has_dense else pooled.new_zeros(lengths.shape[1], 0)
        logits = self.interaction_arch(dense.to(self.dtype), pooled.to(self.dtype)).squeeze(-1).float()
        if len(self.others):
            logits = mean_prediction([logits, *(other(*inputs) for other in self.others)])
        return logits if self.recalibration is None else self.recalibration(logits)


class ScoringTrees(nn.Module):
    """Trees in the form for serving, with the inputs of :class:`ScoringModel`.

    Args:
        trees: the trees.
        features: order of the sparse features in the inputs.

    Raises:
        ValueError: If the features are not those of the trees.
    """

    def __init__(self, trees: BoostedTrees, features: Sequence[str]) -> None:
        super().__init__()
        if list(features) != trees.features:
            raise ValueError(f"the trees read the features {trees.features}, the schema has {list(features)}")
        self.trees = trees

    def forward(self, *inputs: Tensor) -> Tensor:
        """Computes logits ``(B,)`` in float32."""
        dense, (ids, lengths, *_) = (inputs[0], inputs[1:]) if self.trees.has_dense else (None, inputs)
        return self.trees.logits(dense, ids, lengths)


class ScoringWithTables(nn.Module):
    """A model whose tables are no part of it: their weights are further inputs.

    Args:
        model: the model.
        names: names of the buffers that the further inputs take the place of, in their order.
    """

    def __init__(self, model: ScoringModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Computes logits from the inputs of the model and the weights of its tables."""
        own = len(inputs) - len(self.names)
        return torch.func.functional_call(self.model, dict(zip(self.names, inputs[own:], strict=True)), inputs[:own])


class PositionWeights(nn.Module):
    """Weights of ids by their position in a bag, as a feature processor learnt them.

    Args:
        weights: Weights ``(F_sparse, positions)``. Those of the last position hold for all that follow.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns a weight for each of the ids ``(T,)`` of bags of the given lengths ``(F_sparse, B)``."""
        ends = lengths.flatten().cumsum(0)
        places = torch.arange(ids.shape[0], device=ids.device)
        bag = torch.bucketize(places, ends, right=True)
        position = places - (ends - lengths.flatten())[bag]
        feature = torch.bucketize(places, lengths.sum(1).cumsum(0), right=True)
        return self.weights[feature, position.clamp(max=self.weights.shape[1] - 1)]


class AttentionPooling(nn.Module):
    """Pools lists by attention against the embedding of another feature, for all ids of a batch at once.

    Slices whose sizes depend on the data would not compile; so every list's unit looks at all ids, and those of other
    features weigh nothing.

    Args:
        units: The trained unit of each list, by its place in the inputs.
        targets: The place of the target of each list.
    """

    def __init__(self, units: Mapping[int, TargetAttention], targets: Mapping[int, int]) -> None:
        super().__init__()
        self._places = [(place, targets[place]) for place in units]
        self._units = [copy.deepcopy(unit) for unit in units.values()]
        self.units = nn.ModuleList(self._units)

    @classmethod
    def of(cls, model: ClickModel, features: Sequence[str], tables: Tables) -> "AttentionPooling | None":
        """Returns the pooling of a model, None if it has no attention.

        Raises:
            ValueError: If the tables are quantized, whose rows are looked up in bags alone.
        """
        pooling = getattr(model.sparse_arch, "pooling", None)
        if pooling is None or not pooling.targets:
            return None
        if not isinstance(tables, FloatTables):
            raise ValueError("tables: expected fp32 for a model with attention over lists, found quantized ones")
        places = {name: place for place, name in enumerate(features)}
        units = {places[name]: pooling.unit(name) for name in pooling.targets}
        return cls(units, {places[name]: places[target] for name, target in pooling.targets.items()})

    def forward(self, tables: FloatTables, ids: Tensor, lengths: Tensor, means: Tensor) -> Tensor:
        """Returns pooled embeddings ``(B, F_sparse, E)``, given those that are pooled by their mean.

        Args:
            tables: The tables.
            ids: int64 ids ``(T,)`` of all features, feature by feature.
            lengths: int64 lengths ``(F_sparse, B)`` of the bags.
            means: Mean of each bag ``(B, F_sparse, E)``.
        """
        rows = lengths.shape[1]
        bag = torch.bucketize(torch.arange(ids.shape[0], device=ids.device), lengths.flatten().cumsum(0), right=True)
        feature, row = bag // rows, bag % rows
        embeddings = tables.embeddings(ids, feature)
        pooled = list(means.unbind(1))
        for (place, target), unit in zip(self._places, self._units, strict=True):
            weights = unit.weights(embeddings, means[:, target][row]) * (feature == place).unsqueeze(1)
            pooled[place] = torch.zeros_like(pooled[place]).index_add(0, row, weights * embeddings)
        return torch.stack(pooled, dim=1)


class DlrmInteraction(nn.Module):
    """The part of TorchRec's DLRM or DLRM_DCN above the tables.

    Args:
        model: model whose modules are copied.
    """

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.dense_arch, self.inter_arch = copy.deepcopy(model.dense_arch), copy.deepcopy(model.inter_arch)
        self.over_arch = copy.deepcopy(model.over_arch)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """``(B, F_dense)`` and ``(B, F_sparse, E)`` to logits ``(B, 1)``."""
        embedded_dense = self.dense_arch(dense_features)
        return self.over_arch(self.inter_arch(dense_features=embedded_dense, sparse_features=embedded_features))


def tables_of(model: ClickModel) -> EmbeddingBagCollection:
    """Returns the tables of a model, behind their feature processors.

    Raises:
        TypeError: If the model was built on another collection, or on a sharded one.
    """
    collection = model.sparse_arch.embedding_bag_collection
    if isinstance(collection, EmbeddingCollection):
        return _pooled_by_mean(collection)
    if isinstance(collection, FeatureProcessedEmbeddingBagCollection) or has_known_maps(collection):
        collection = bags_of(collection)
    if not isinstance(collection, EmbeddingBagCollection):
        raise TypeError(
            f"a model on a {type(collection).__name__} cannot be exported; expected an EmbeddingBagCollection, an "
            "EmbeddingCollection, a FeatureProcessedEmbeddingBagCollection or a ManagedCollisionEmbeddingBagCollection "
            "whose ids are DynamicIds, that is not sharded"
        )
    return collection


def _pooled_by_mean(sequences: EmbeddingCollection) -> EmbeddingBagCollection:
    """Returns tables with the weights of those of sequences."""
    configs = [
        EmbeddingBagConfig(
            name=config.name,
            embedding_dim=config.embedding_dim,
            num_embeddings=config.num_embeddings,
            feature_names=config.feature_names,
            pooling=PoolingType.MEAN,
        )
        for config in sequences.embedding_configs()
    ]
    tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    for name, weight in table_weights(sequences).items():
        tables.embedding_bags[name].weight = weight
    return tables


def _position_weights(model: ClickModel, features: Sequence[str]) -> Tensor | None:
    """Returns the weights ``(F_sparse, positions)`` of a model's feature processors, if it has any.

    Raises:
        TypeError: If they do something else than weigh ids by their position.
    """
    collection = model.sparse_arch.embedding_bag_collection
    if not isinstance(collection, FeatureProcessedEmbeddingBagCollection):
        return None
    processors = collection.split()[0]
    if isinstance(processors, PositionWeightedModuleCollection):
        found = {key: weight.detach() for key, weight in processors.position_weights.items()}
    else:
        parts = parts_of(processors, PositionWeightedModule)
        found = {name: part.position_weight.detach() for name, part in parts.items()}
    if not found:
        raise TypeError(
            f"feature processors: only position weights can be exported, found a {type(processors).__name__} without"
        )
    longest = 1 + max(len(weight) for weight in found.values())  # what is beyond the last one weighs nothing
    every = torch.ones(longest)  # ids of a feature without such weights count alike
    return torch.stack(
        [F.pad(found[name], (0, longest - len(found[name]))) if name in found else every for name in features]
    )


def feature_names(model: ClickModel) -> list[str]:
    """Returns the sparse features of a model, in the order in which it stacks their embeddings."""
    sparse_arch = model.sparse_arch
    return list(sparse_arch.feature_names if isinstance(sparse_arch, SparseArch) else sparse_arch.sparse_feature_names)


def scoring_model(
    model: ClickModel,
    config: ExportConfig,
    features: Sequence[str] | None = None,
    recalibration: Recalibration | None = None,
    others: Sequence[ClickModel | BoostedTrees] = (),
) -> ScoringModel:
    """Returns the form of a model that ``config`` asks for, not compiled yet.

    Args:
        model: unsharded model.
        config: configuration with the precisions.
        features: order of the sparse features in the inputs; by default the model's own.
        recalibration: map that the logits go through, if any.
        others: further models of the same features; the probability is then the mean of all.

    Raises:
        ValueError: If a table or precision is unknown, or :class:`ScoringModel` refuses the model.
    """
    _interaction(model)
    precisions = table_precisions(tables_of(model), config.tables, config.table_precisions)
    order = features or feature_names(model)
    members = [
        ScoringTrees(other, order) if isinstance(other, BoostedTrees) else scoring_model(other, config, order)
        for other in others
    ]
    return ScoringModel(model, precisions, config.dense == "bf16", features, recalibration, members).eval()


def trace(scoring: ScoringModel, with_tables: bool = False) -> torch.export.ExportedProgram:
    """Exports the model with ``torch.export`` for any batch size and any number of ids.

    Args:
        scoring: the model.
        with_tables: whether the weights of the tables are further inputs, see :meth:`ScoringModel.table_weights`.
    """
    batch, ids = torch.export.Dim("batch", min=1, max=2**20), torch.export.Dim("ids", min=0, max=2**31 - 1)
    shapes: list[dict[int, Any] | None] = [{0: batch}] if scoring.has_dense else []
    shapes += [{0: ids}, {1: batch}] + ([{0: ids}] if scoring.weighted else [])
    example = example_inputs(scoring, batch_size=3)
    model: nn.Module = scoring
    if with_tables:
        weights = scoring.table_weights()
        model = ScoringWithTables(scoring, list(weights))
        example += tuple(weights.values())
        shapes += [None] * len(weights)
    program = torch.export.export(model, example, dynamic_shapes=(tuple(shapes),), strict=False)
    # Operators that read the same tokens each write down how these lie side by side: once is enough.
    shared = CSEPass()(program.graph_module)
    assert shared is not None
    program.graph_module.graph = shared.graph_module.graph
    return program


def example_inputs(scoring: ScoringModel, batch_size: int) -> tuple[Tensor, ...]:
    """Returns example inputs with two ids in every bag."""
    features = scoring.tables.rows.numel()
    count = 2 * features * batch_size
    inputs: tuple[Tensor, ...] = ()
    if scoring.has_dense:
        inputs += (torch.zeros(batch_size, scoring.dense_in_features),)
    inputs += (torch.zeros(count, dtype=torch.int64), torch.full((features, batch_size), 2))
    return inputs + ((torch.ones(count),) if scoring.weighted else ())


def _interaction(model: ClickModel) -> tuple[nn.Module, int]:
    """Returns the part of the model above the tables, and how many dense features it reads."""
    match model:
        case NASRecNet() | FlatModel():
            dense_in_features = model.interaction_arch.dense_in_features
            assert dense_in_features is not None
            return model.interaction_arch, dense_in_features
        case DLRM():
            first = next(module for module in model.dense_arch.modules() if isinstance(module, nn.Linear))
            return DlrmInteraction(model), first.in_features
    raise ValueError(
        f"expected a NASRecNet or a baseline, found a {type(model).__name__}; what a supernet is searched for is a "
        "network that is trained by itself: export that"
    )
