"""The collections of embedding tables that a model can be built on, and what each of them tells about its tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.fp_embeddingbag import ShardedFeatureProcessedEmbeddingBagCollection
from torchrec.distributed.mc_embeddingbag import ShardedManagedCollisionEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModule, PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionModule

from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, KnownIds

SUPPORTED = (
    "EmbeddingBagCollection",
    "FeatureProcessedEmbeddingBagCollection",
    "ManagedCollisionEmbeddingBagCollection",
    "EmbeddingCollection",
)
_PROCESSED = FeatureProcessedEmbeddingBagCollection, ShardedFeatureProcessedEmbeddingBagCollection
_MANAGED = ManagedCollisionEmbeddingBagCollection, ShardedManagedCollisionEmbeddingBagCollection
_SEQUENCES = EmbeddingCollection, ShardedEmbeddingCollection
Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class TableCollection:
    """A collection and what a model has to know about it.

    Args:
        module: The module to call with a KeyedJaggedTensor.
        configs: The tables.
        sequences: Whether the module returns an embedding for each id instead of pooled ones.
        managed: Whether the module maps raw ids to rows by itself, and returns its output in a tuple.
        longest: The most ids that a bag may have, for features that are weighted by position.
        limits: The number of ids of each feature, which are 0 to one less. Features that take any id are left out.
    """

    module: nn.Module
    configs: list[BaseEmbeddingConfig]
    sequences: bool = False
    managed: bool = False
    longest: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


def describe_collection(collection: nn.Module) -> TableCollection:
    """Describes a collection of tables.

    Args:
        collection: One of ``SUPPORTED``, as it is, quantized, or sharded by DistributedModelParallel.

    Returns:
        The description.

    Raises:
        TypeError: If the collection is of another kind.
    """
    module = collection.module if isinstance(collection, DistributedModelParallel) else collection
    # TorchRec's other collections, such as those of hash tables, return something else than the ones that they hold.
    inside: Iterable[nn.Module] = module.modules() if isinstance(module, (*_PROCESSED, *_MANAGED)) else [module]
    configs = next((found for found in map(_configs, inside) if found is not None), None)
    if configs is None:
        raise TypeError(
            f"embedding_bag_collection: a {type(collection).__name__} is not supported; expected one of "
            f"{', '.join(SUPPORTED)}, or one of these sharded by DistributedModelParallel"
        )
    sequences, managed = isinstance(module, _SEQUENCES), isinstance(module, _MANAGED)
    return TableCollection(module, configs, sequences, managed, _longest(module), _limits(module, configs, managed))


def bags_of(collection: nn.Module) -> EmbeddingBagCollection:
    """Returns the tables of a collection that is not sharded, behind its feature processors and maps of ids.

    Args:
        collection: An ``EmbeddingBagCollection``, or one of the collections around it.

    Returns:
        The ``EmbeddingBagCollection``.

    Raises:
        TypeError: If there is none.
    """
    found = [module for module in collection.modules() if isinstance(module, EmbeddingBagCollection)]
    if len(found) != 1:
        raise TypeError(f"expected a collection around one EmbeddingBagCollection, found a {type(collection).__name__}")
    return found[0]


def tables_of(collection: nn.Module) -> EmbeddingBagCollection | EmbeddingCollection:
    """Returns the tables of a collection that is not sharded: of sequences, or as :func:`bags_of` does."""
    return collection if isinstance(collection, EmbeddingCollection) else bags_of(collection)


def table_configs(tables: EmbeddingBagCollection | EmbeddingCollection) -> list[BaseEmbeddingConfig]:
    """Returns the configurations of the tables."""
    return list(
        tables.embedding_configs() if isinstance(tables, EmbeddingCollection) else tables.embedding_bag_configs()
    )


def table_weights(tables: EmbeddingBagCollection | EmbeddingCollection) -> dict[str, nn.Parameter]:
    """Returns the weights of the tables by their names."""
    modules = tables.embeddings if isinstance(tables, EmbeddingCollection) else tables.embedding_bags
    return {name: module.weight for name, module in modules.items()}


def parts_of(module: nn.Module, kind: type[Part]) -> dict[str, Part]:
    """Returns the submodules of a kind by their own names, which are those of their tables or features."""
    return {path.rpartition(".")[2]: part for path, part in module.named_modules() if isinstance(part, kind)}


def _configs(module: nn.Module) -> list[BaseEmbeddingConfig] | None:
    for method in ("embedding_bag_configs", "embedding_configs"):
        if callable(configs := getattr(module, method, None)):
            return list(configs())
    # TorchRec's sharded collections have no method for it.
    if isinstance(module, ShardedEmbeddingBagCollection):
        return list(module._embedding_bag_configs)
    if isinstance(module, ShardedEmbeddingCollection):
        return list(module._embedding_configs)
    return None


def _limits(collection: nn.Module, configs: Iterable[BaseEmbeddingConfig], managed: bool) -> dict[str, int]:
    limits: dict[str, int] = {}
    modules = parts_of(collection, ManagedCollisionModule)
    for config in configs:
        ids = modules.get(config.name)
        rows = ID_SPACE if isinstance(ids, DynamicIds) else config.num_embeddings
        for name in config.feature_names if not managed or isinstance(ids, DynamicIds | KnownIds) else ():
            limits[name] = min(limits.get(name, rows), rows)
    return limits


def _longest(collection: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, module in collection.named_modules():
        if isinstance(module, PositionWeightedModuleCollection):
            found |= module.max_feature_lengths
        elif isinstance(module, PositionWeightedModule):
            found[path.rpartition(".")[2]] = module.position_weight.numel()
    return found
