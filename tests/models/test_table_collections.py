"""NASRecNet and SuperNet on tables of different dimensions, and on TorchRec's other collections of tables."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import SMALL_SPACE, make_ebc, make_kjt, run_ranks
from torch import fx, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModule, PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import PUBLISHED, NASRecNet, SuperNet
from nasrec_torchrec.distributed.sharding import table_sharders
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids
from nasrec_torchrec.search.cost import cost, cost_in_supernet
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

ROWS = 50
FEATURES = [f"f{i}" for i in range(5)]
DIMS = {"t0": 8, "t1": 16, "t2": 32, "t3": 64}
ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(3))
PROJECTED = sum(16 * dim for dim in (8, 8, 32, 64))


def _tables(dims: dict[str, int] = DIMS, mean: bool = True) -> list[EmbeddingBagConfig]:
    """Four tables, of which the first is shared and the second is pooled by mean."""
    features = {"t0": ["f0", "f4"], "t1": ["f1"], "t2": ["f2"], "t3": ["f3"]}
    return [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=dim,
            num_embeddings=ROWS,
            feature_names=features[name],
            pooling=PoolingType.MEAN if mean and name == "t1" else PoolingType.SUM,
        )
        for name, dim in dims.items()
    ]


def _mixed(is_weighted: bool = False) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=_tables(mean=not is_weighted), is_weighted=is_weighted)


def _processed() -> FeatureProcessedEmbeddingBagCollection:
    return FeatureProcessedEmbeddingBagCollection(
        _mixed(is_weighted=True), PositionWeightedModuleCollection(dict.fromkeys(FEATURES, 3))
    )


def _managed() -> ManagedCollisionEmbeddingBagCollection:
    tables = _mixed()
    modules = {
        name: MCHManagedCollisionModule(ROWS, torch.device("cpu"), DistanceLFU_EvictionPolicy(), 2, 2**40, buckets=2)
        for name in DIMS
    }
    return ManagedCollisionEmbeddingBagCollection(
        tables, ManagedCollisionCollection(modules, tables.embedding_bag_configs())
    )


def _sequences() -> EmbeddingCollection:
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=f"t{i}", embedding_dim=16, num_embeddings=ROWS, feature_names=[feature])
            for i, feature in enumerate(FEATURES)
        ]
    )


def _dynamic() -> ManagedCollisionEmbeddingBagCollection:
    """The first table's ids are not known beforehand, those of the others are rows."""
    tables = _tables()
    tables[0].num_embeddings = 512
    return with_dynamic_ids(EmbeddingBagCollection(tables=tables), {"t0": DynamicIds(512)})


ATTENTION = {"f2": "f0", "f3": "f0"}
COLLECTIONS = {
    "mixed": _mixed,
    "weighted": lambda: _mixed(is_weighted=True),
    "processed": _processed,
    "managed": _managed,
    "dynamic": _dynamic,
    "sequences": _sequences,
    "attention": _sequences,
}


def _model(kind: str) -> NASRecNet:
    attention = ATTENTION if kind == "attention" else None
    return NASRecNet(COLLECTIONS[kind](), 3, ARCHITECTURE, interaction_dim=16, attention=attention)


def _batch(kind: str, rows: int, seed: int = 0) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    ids = 2**40 if kind == "managed" else ROWS
    dense = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return dense, make_kjt(5, rows, seed, ids, max_length=3, weighted=kind == "weighted")


def test_a_projected_table_is_one_of_full_width_and_lower_rank():
    model = NASRecNet(_mixed(), 3, ARCHITECTURE, interaction_dim=16)
    whole = NASRecNet(EmbeddingBagCollection(tables=_tables(dict.fromkeys(DIMS, 16))), 3, ARCHITECTURE)
    project = model.interaction_arch.projection.project
    assert set(project) == {"t0", "t2", "t3"}, "a table of the right width has no projection"
    with torch.no_grad():
        for name, table in whole.sparse_arch.embedding_bag_collection.embedding_bags.items():
            weight = model.sparse_arch.embedding_bag_collection.embedding_bags[name].weight
            table.weight.copy_(weight @ project[name].weight.t() if name in project else weight)
    whole.interaction_arch.load_state_dict(model.interaction_arch.state_dict(), strict=False)
    dense, kjt = _batch("mixed", 16)
    torch.testing.assert_close(model(dense, kjt), whole(dense, kjt), rtol=1e-5, atol=1e-5)


def test_no_projection_where_dimensions_agree():
    model = NASRecNet(make_ebc(5), 3, ARCHITECTURE)
    assert model.interaction_arch.projection is None
    assert not [name for name in model.state_dict() if "project." in name and "projection" in name]
    assert NASRecNet(make_ebc(5), 3, ARCHITECTURE, interaction_dim=16).interaction_arch.projection is None
    narrow = NASRecNet(make_ebc(5), 3, ARCHITECTURE, interaction_dim=8).interaction_arch
    assert narrow.embedding_dim == 8 and len(narrow.projection.project) == 5


def test_without_a_width_no_embedding_is_narrowed():
    assert NASRecNet(_mixed(), 3, ARCHITECTURE).interaction_arch.embedding_dim == 64
    for wrong in (0, -8, 16.0):
        with pytest.raises(ValueError, match="interaction_dim: expected a positive integer or None, found"):
            NASRecNet(_mixed(), 3, ARCHITECTURE, interaction_dim=wrong)
    with pytest.raises(ValueError, match="attention needs an embedding_dim that is a multiple of 8, found 12"):
        NASRecNet(_mixed(), 3, PUBLISHED["criteo-full"], interaction_dim=12)


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_every_weight_of_every_collection_learns(kind: str):
    attention = ATTENTION if kind == "attention" else None
    model = NASRecNet(COLLECTIONS[kind](), 3, "criteo-small", interaction_dim=16, attention=attention)
    model(*_batch(kind, 32)).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name in without if "sparse_arch" in name or "projection" in name]


def test_the_traced_and_the_fused_form_and_the_device_meta():
    model = NASRecNet(_mixed(), 3, ARCHITECTURE, interaction_dim=16)
    dense, kjt = _batch("mixed", 8)
    expected, embedded = model(dense, kjt), model.sparse_arch(kjt)
    torch.testing.assert_close(fx.symbolic_trace(model.interaction_arch)(dense, embedded), expected)
    torch.testing.assert_close(fuse(model.interaction_arch)(dense, embedded), expected, rtol=1e-5, atol=1e-5)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model.interaction_arch, (dense, embedded), dynamic_shapes=({0: batch}, {0: batch})
    ).module()
    torch.testing.assert_close(exported(dense[:3], embedded[:3]), expected[:3])
    on_meta = NASRecNet(
        EmbeddingBagCollection(tables=_tables(), device=torch.device("meta")),
        *(3, ARCHITECTURE, False, torch.device("meta"), 16),
    )
    assert {n: p.shape for n, p in on_meta.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_cost_includes_the_projections():
    model = NASRecNet(_mixed(), 3, ARCHITECTURE, interaction_dim=16)
    plain = cost(ARCHITECTURE, 3, 5, 16)
    projected = cost(ARCHITECTURE, 3, 5, 16, tables=model.sparse_arch.tables)
    assert projected.multiply_adds - plain.multiply_adds == PROJECTED
    assert projected.parameters - plain.parameters == 16 * (8 + 32 + 64)
    supernet = SuperNet(_mixed(), 3, SMALL_SPACE, interaction_dim=16)
    with_norm = cost(ARCHITECTURE, 3, 5, 16, True, tables=model.sparse_arch.tables)
    size = sum(4 * table.num_embeddings * table.embedding_dim for table in _tables())
    assert cost_in_supernet(supernet, ARCHITECTURE) == replace(with_norm, table_bytes=size)


def test_a_supernet_shares_its_projections():
    supernet = SuperNet(_mixed(), 3, SMALL_SPACE, interaction_dim=16)
    optimizer = ActiveSliceAdagrad(supernet.interaction_arch.parameters(), supernet.active_parameters, lr=0.1)
    dense, kjt = _batch("mixed", 8)
    generator = torch.Generator().manual_seed(0)
    weight = supernet.interaction_arch.storage.projection.project["t3"].weight
    for _ in range(3):
        architecture, before = SMALL_SPACE.sample(generator), weight.detach().clone()
        supernet.set_architecture(architecture)
        torch.testing.assert_close(supernet(dense, kjt), supernet.extract(architecture)(dense, kjt))
        optimizer.zero_grad()
        supernet(dense, kjt).sum().backward()
        optimizer.step()
        assert not torch.equal(weight, before)


def test_features_are_weighted_by_their_position():
    processed = _processed()
    weights = {key: torch.rand(3, generator=torch.Generator().manual_seed(i)) for i, key in enumerate(FEATURES)}
    with torch.no_grad():
        for key, weight in weights.items():
            processed.split()[0].position_weights[key].copy_(weight)
    model = NASRecNet(processed, 3, ARCHITECTURE, interaction_dim=16)
    plain = NASRecNet(processed.split()[1], 3, ARCHITECTURE, interaction_dim=16)
    plain.interaction_arch.load_state_dict(model.interaction_arch.state_dict())
    dense, kjt = _batch("processed", 8)
    by_hand = torch.cat([weights[key][:length] for key in FEATURES for length in kjt[key].lengths().tolist()])
    weighted = KeyedJaggedTensor(FEATURES, kjt.values(), by_hand, kjt.lengths())
    torch.testing.assert_close(model(dense, kjt), plain(dense, weighted))


def test_a_bag_that_is_longer_than_its_position_weights_is_one_clear_error():
    one_each = FeatureProcessedEmbeddingBagCollection(
        _mixed(is_weighted=True), {feature: PositionWeightedModule(3) for feature in FEATURES}
    )
    kjt = KeyedJaggedTensor(FEATURES, torch.zeros(8, dtype=torch.int64), lengths=torch.tensor([1, 1, 4, 1, 1]))
    for collection in (_processed(), one_each):
        model = NASRecNet(collection, 3, ARCHITECTURE, interaction_dim=16)
        with pytest.raises(
            ValueError, match="feature 'f2': a bag has 4 ids, and its feature processor has weights for 3"
        ):
            model(torch.zeros(1, 3), kjt)


def test_sequences_are_pooled_by_their_mean():
    sequences = _sequences()
    means = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=config.name,
                embedding_dim=16,
                num_embeddings=ROWS,
                feature_names=config.feature_names,
                pooling=PoolingType.MEAN,
            )
            for config in sequences.embedding_configs()
        ]
    )
    model, expected = NASRecNet(sequences, 3, ARCHITECTURE), NASRecNet(means, 3, ARCHITECTURE)
    with torch.no_grad():
        for name, table in sequences.embeddings.items():
            means.embedding_bags[name].weight.copy_(table.weight)
    expected.interaction_arch.load_state_dict(model.interaction_arch.state_dict())
    dense, kjt = _batch("sequences", 8)
    assert kjt.lengths().eq(0).any(), "an empty sequence is a token of zeros"
    torch.testing.assert_close(model(dense, kjt), expected(dense, kjt))


def test_a_sequence_is_pooled_by_attention_against_its_target():
    model = _model("attention")
    _, kjt = _batch("attention", 8)
    tables = model.sparse_arch.embedding_bag_collection.embeddings
    for feature, table, unit in (("f2", "t2", "unit_0"), ("f3", "t3", "unit_1")):
        attention = model.sparse_arch.pooling.get_submodule(unit)
        for row, token in enumerate(model.sparse_arch(kjt)[:, FEATURES.index(feature)]):
            sequence, targets = (
                tables[name].weight[kjt[key].values()[kjt[key].offsets()[row] : kjt[key].offsets()[row + 1]]]
                for name, key in ((table, feature), ("t0", "f0"))
            )
            target = targets.mean(0) if len(targets) else torch.zeros(16)
            expected = torch.zeros(16)
            for one in sequence:
                hidden = torch.relu(attention.hidden(torch.cat([one, target, one - target, one * target])))
                expected = expected + attention.score(hidden) * one
            torch.testing.assert_close(token, expected, atol=1e-5, rtol=1e-5)


def test_a_supernet_trains_its_attention():
    supernet = SuperNet(_sequences(), 3, SMALL_SPACE, attention=ATTENTION)
    optimizer = ActiveSliceAdagrad(
        [*supernet.interaction_arch.parameters(), *supernet.sparse_arch.pooling.parameters()],
        supernet.active_parameters,
        lr=0.1,
    )
    dense, kjt = _batch("attention", 8)
    before = {name: value.clone() for name, value in supernet.sparse_arch.pooling.state_dict().items()}
    supernet(dense, kjt).square().sum().backward()
    optimizer.step()
    assert not any(
        torch.equal(value, before[name]) for name, value in supernet.sparse_arch.pooling.state_dict().items()
    )
    torch.testing.assert_close(supernet.extract(supernet.architecture)(dense, kjt), supernet(dense, kjt))


@pytest.mark.parametrize(
    ("collection", "attention", "kind", "message"),
    [
        (_mixed, ATTENTION, TypeError, "expected an EmbeddingCollection, .*, found a EmbeddingBagCollection"),
        (_sequences, {"f2": "f9"}, ValueError, "expected some of the features .*, found 'f9'"),
    ],
)
def test_attention_that_is_impossible(collection: Any, attention: dict, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        NASRecNet(collection(), 3, ARCHITECTURE, attention=attention)


def test_a_managed_collection_takes_any_id_and_maps_it_the_same_way_again():
    model = NASRecNet(_managed(), 3, ARCHITECTURE, interaction_dim=16)
    dense, kjt = _batch("managed", 8)
    for _ in range(4):
        model(dense, kjt)  # in training mode, ids get rows of their own
    model.eval()
    assert torch.equal(model(dense, kjt), model(dense, kjt))
    with pytest.raises(ValueError, match=r"missing \['f4'\]"):
        model(dense, kjt.permute([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("collection", "name"),
    [(nn.ModuleDict({"t": nn.EmbeddingBag(4, 8)}), "ModuleDict"), (nn.EmbeddingBag(4, 8), "EmbeddingBag")],
)
def test_any_other_collection_is_one_type_error(collection: nn.Module, name: str):
    message = f"a {name} is not supported; expected one of EmbeddingBagCollection, FeatureProcessedEmbeddingBagColl"
    for build in (
        lambda: NASRecNet(collection, 3, ARCHITECTURE),
        lambda: SuperNet(collection, 3, SMALL_SPACE),
    ):
        with pytest.raises(TypeError, match=message):
            build()


def test_dense_and_sparse_rows_of_different_batches_are_one_clear_error():
    for model in (NASRecNet(_mixed(), 3, ARCHITECTURE), SuperNet(_mixed(), 3, SMALL_SPACE)):
        _, kjt = _batch("mixed", 6)
        with pytest.raises(ValueError, match="expected rows of one batch, found 4 rows and 6"):
            model(torch.zeros(4, 3), kjt)


@pytest.mark.parametrize(
    ("architecture", "kind", "message"),
    [
        (
            "criteo-smal",
            ValueError,
            "expected one of avazu-full, .*, found 'criteo-smal'; did you mean 'criteo-small'",
        ),
        ("best.json", ValueError, r"pass Architecture.from_json\(text\)"),
        ({"blocks": []}, TypeError, "expected an Architecture or a name, found a dict"),
    ],
)
def test_an_architecture_that_is_none(architecture: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        NASRecNet(make_ebc(5), 3, architecture)


def test_architectures_by_name():
    assert NASRecNet(make_ebc(5), 3, "criteo-small").architecture == PUBLISHED["criteo-small"]
    dense, kjt = torch.randn(4, 3), make_kjt(5, 4)
    assert NASRecNet(make_ebc(5), 3, "wukong")(dense, kjt).shape == (4, 1)


def _train(kind: str) -> list[float]:
    """Trains in TorchRec's own idiom, with its default planner, sharders and pipeline.

    TorchRec's sharder of managed collisions has no sharding type for the CPU.
    """
    torch.manual_seed(0)
    device, model = torch.device("cpu"), DLRMTrain(_model(kind))
    collection = model.model.sparse_arch.embedding_bag_collection
    tables = [parameter for name, parameter in collection.named_parameters() if "position" not in name]
    apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": 0.02})
    sharders = table_sharders() if kind in ("managed", "dynamic") else None
    dmp = DistributedModelParallel(model, device=device, sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())), lambda p: torch.optim.Adagrad(p, lr=0.02)
    )
    pipeline = TrainPipelineSparseDist(dmp, CombinedOptimizer([dmp.fused_optimizer, dense]), device)
    dense_features, kjt = _batch(kind, 64)
    batches = iter([Batch(dense_features, kjt, (kjt.lengths()[:64] > 1).float())] * 15)
    losses = [float(pipeline.progress(batches)[0]) for _ in range(15)]
    pipelined = [module for module in dmp.modules() if type(module.forward).__name__ == "PipelinedForward"]
    assert len(pipelined) == 1, "the collection must take part in the pipeline"
    return losses


def _train_all(kinds: list[str]) -> dict[str, list[float]]:
    return {kind: _train(kind) for kind in kinds}


def test_collections_train_in_torchrecs_pipeline_on_two_ranks():
    for losses in run_ranks(2, _train_all, list(COLLECTIONS)):
        for kind in COLLECTIONS:
            assert losses[kind][-1] < 0.5 * losses[kind][0], kind


def _on_sharded_tables() -> torch.Tensor:
    plain = NASRecNet(_mixed(), 3, ARCHITECTURE, interaction_dim=16)
    tables = plain.sparse_arch.embedding_bag_collection
    weights = {name: value.clone() for name, value in tables.state_dict().items()}
    dense, kjt = _batch("mixed", 8)
    expected = plain(dense, kjt)
    dmp = DistributedModelParallel(tables, device=torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in dmp.named_parameters():
            parameter.copy_(weights[name])
    found = []
    for sharded in (dmp, dmp.module):
        model = NASRecNet(sharded, 3, ARCHITECTURE, interaction_dim=16)
        model.interaction_arch.load_state_dict(plain.interaction_arch.state_dict())
        found.append(torch.allclose(model(dense, kjt), expected, atol=1e-6))
    return torch.tensor(found)


def test_tables_that_are_sharded_already():
    assert run_ranks(1, _on_sharded_tables)[0].tolist() == [True, True]
