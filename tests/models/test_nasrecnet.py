"""NASRecNet as a drop-in for torchrec.models.dlrm.DLRM (test_parity.py compares it with the research code)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL_SPACE, make_ebc, make_kjt, run_ranks
from torch import fx
from torch.nn import functional as F
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_2026, NASREC_FULL, NASREC_SMALL, PUBLISHED, NASRecNet, load_research_state_dict
from nasrec_torchrec.search.cost import cost


def test_research_weights_that_do_not_fit_are_refused():
    model = NASRecNet(make_ebc(26), 13, PUBLISHED["criteo-small"])
    with pytest.raises(ValueError, match="no weights found for"):
        load_research_state_dict(model, {})
    with pytest.raises(ValueError, match=r"_final.weight: expected shape \(1, \d+\), found \(1, 3\)"):
        load_research_state_dict(model, {"_final.weight": torch.zeros(1, 3)})
    for name in ("_embedding.26.weight", "_blocks.0._nodes.9._linear.weight", "head.weight"):
        with pytest.raises(ValueError, match=f"{name}: not a weight"):
            load_research_state_dict(model, {name: torch.zeros(1)})
    with pytest.raises(ValueError, match="the model has no such weight"):
        load_research_state_dict(model, {"_blocks.0._nodes.1._dense_proj.weight": torch.zeros(1)})


# Table 5 and 6 of the paper (arXiv 2207.07187) give these in millions.
@pytest.mark.parametrize(
    ("name", "dense", "tokens", "multiply_adds", "parameters"),
    [("criteo-small", 13, 26, 2.21, 1.78), ("avazu-small", 1, 23, 3.09, 2.84), ("kdd-small", 3, 10, 3.48, 2.61)],
)
def test_cost_of_the_published_small_models(name, dense, tokens, multiply_adds, parameters):
    counted = cost(PUBLISHED[name], dense, tokens, 16)
    assert counted.multiply_adds / 1e6 == pytest.approx(multiply_adds, rel=0.01)
    assert counted.parameters / 1e6 == pytest.approx(parameters, rel=0.01)


def test_cost_counts_attention_and_adds_up_over_modules():
    counted = cost(PUBLISHED["criteo-full"], 13, 26, 16)
    attention = counted.by_module["blocks.0.sparse_operators.attention"]
    tokens = 64
    products = 2 * tokens * tokens * 16  # queries with keys, and their weights with values
    linears = 16 * 26 * tokens + tokens * (3 + 1 + 1 + 1) * 16 * 16
    assert attention[0] == products + linears
    blocks = sum(counted.by_module[f"blocks.{index}"][0] for index in range(7))
    assert blocks + counted.by_module["over_arch"][0] == counted.multiply_adds


@given(st.integers(0, 2**40), st.booleans(), st.integers(0, 3), st.integers(1, 4))
def test_any_architecture_builds_traces_and_trains_a_step(seed, use_layernorm, dense, batch_size):
    generator = torch.Generator().manual_seed(seed)
    architecture = SMALL_SPACE.sample(generator, "any_operator_any_connection")
    model = NASRecNet(make_ebc(5), dense, architecture, use_layernorm)
    dense_x, kjt = torch.randn(batch_size, dense), make_kjt(5, batch_size, seed, max_length=3)
    logits = model(dense_x, kjt)
    assert logits.shape == (batch_size, 1) and torch.isfinite(logits).all()
    traced = fx.symbolic_trace(model.interaction_arch)
    tokens = model.sparse_arch(kjt)
    torch.testing.assert_close(traced(dense_x, tokens), logits)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.extended
def test_two_hundred_architectures_of_2026_build_trace_and_train_a_step():
    """Over all of them every operator takes part, and the logit reads one block or several, with tokens or without."""
    space = replace(NASREC_2026, num_blocks=3, dense_widths=(16, 24, 32), sparse_widths=(4, 6, 9))
    generator = torch.Generator().manual_seed(0)
    kjt, outputs = make_kjt(5, 4, max_length=3), set()
    for number in range(200):
        architecture = space.sample(generator)
        outputs.add((len(architecture.outputs[0]), len(architecture.outputs[1])))
        dense = torch.randn(4, number % 3)
        model = NASRecNet(make_ebc(5), dense.shape[1], architecture, use_layernorm=number % 2 == 1)
        logits = model(dense, kjt)
        assert logits.shape == (4, 1) and torch.isfinite(logits).all()
        traced = fx.symbolic_trace(model.interaction_arch)
        torch.testing.assert_close(traced(dense, model.sparse_arch(kjt)), logits, rtol=1e-4, atol=1e-4)
        weight = model.interaction_arch.over_arch.bias.detach().clone()
        logits.sum().backward()  # the cross entropy of a confident network may have no gradient in float32
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert not torch.equal(weight, model.interaction_arch.over_arch.bias)
    assert {size for size, _ in outputs} == {1, 2, 3} and {size for _, size in outputs} == {0, 1, 2, 3}


@pytest.mark.parametrize("space", [NASREC_FULL, NASREC_SMALL, NASREC_2026])
def test_meta_device_has_the_same_parameters(space):
    architecture = space.sample(torch.Generator().manual_seed(1))
    real = NASRecNet(make_ebc(5), 3, architecture)
    meta = NASRecNet(make_ebc(5, device="meta"), 3, architecture, dense_device=torch.device("meta"))
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in meta.named_parameters()}
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_features_are_pooled_in_the_order_of_the_configuration():
    model = NASRecNet(make_ebc(5), 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0)))
    dense, kjt = torch.randn(4, 3), make_kjt(5, 4, max_length=3)
    shuffled = kjt.permute([3, 1, 4, 0, 2])
    torch.testing.assert_close(model(dense, shuffled), model(dense, kjt))


def test_weighted_features():
    model = NASRecNet(make_ebc(5, is_weighted=True), 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0)))
    dense, kjt = torch.randn(4, 3), make_kjt(5, 4, max_length=3, weighted=True)
    doubled = KeyedJaggedTensor(kjt.keys(), kjt.values(), weights=2 * kjt.weights(), lengths=kjt.lengths())
    torch.testing.assert_close(model.sparse_arch(doubled), 2 * model.sparse_arch(kjt))
    assert not torch.allclose(model(dense, kjt), model(dense, doubled))


@pytest.mark.parametrize(
    ("dense", "kjt", "message"),
    [
        (torch.zeros(2, 4), make_kjt(5, 2), r"dense_features: expected shape \(B, 3\), found \(2, 4\)"),
        (torch.zeros(2, 3), make_kjt(4, 2), r"missing \['f4'\]; found the keys \['f0', 'f1', 'f2', 'f3'\]"),
        (
            torch.zeros(2, 3),
            KeyedJaggedTensor(
                [f"f{i}" for i in range(5)], torch.tensor([0, 1] * 3 + [50, 1] * 2), torch.ones(10).int()
            ),
            "feature 'f3': id 50 is outside of 0..49",
        ),
        (
            torch.zeros(2, 3),
            KeyedJaggedTensor([f"f{i}" for i in range(5)], torch.tensor([0, 1] * 4 + [3, -1]), torch.ones(10).int()),
            "feature 'f4': id -1 is outside of 0..49",
        ),
    ],
)
def test_bad_batches_are_one_clear_error(dense, kjt, message):
    if kjt.weights_or_none() is not None:  # the third positional argument is weights
        kjt = KeyedJaggedTensor(kjt.keys(), kjt.values(), lengths=kjt.weights().int())
    model = NASRecNet(make_ebc(5), 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=message):
        model(dense, kjt)


def test_bad_tables_are_refused():
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="expected at least one table, found none"):
        NASRecNet(EmbeddingBagCollection(tables=[]), 3, architecture)
    with pytest.raises(ValueError, match="dense_in_features: expected an integer, 0 or more, found -1"):
        NASRecNet(make_ebc(1), -1, architecture)


def _train_in_torchrecs_idiom() -> torch.Tensor:
    """TorchRec's own idiom, with its default sharders, planner and DistributedDataParallel."""
    device = torch.device("cpu")
    ebc = make_ebc(5, device="meta")
    model = NASRecNet(ebc, dense_in_features=3, architecture=PUBLISHED["criteo-full"], dense_device=device)
    train_model = DLRMTrain(model)
    apply_optimizer_in_backward(torch.optim.Adagrad, ebc.parameters(), {"lr": 0.005})
    dmp = DistributedModelParallel(train_model, device=device)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())), lambda p: torch.optim.Adagrad(p, lr=0.005)
    )
    pipeline = TrainPipelineSparseDist(dmp, CombinedOptimizer([dmp.fused_optimizer, dense]), device)
    kjt = make_kjt(5, 64, max_length=3)
    batches = iter([Batch(torch.randn(64, 3), kjt, (kjt.lengths()[:64] > 1).float())] * 30)
    losses = torch.stack([pipeline.progress(batches)[0].detach() for _ in range(30)])
    pipelined = [module for module in dmp.modules() if type(module.forward).__name__ == "PipelinedForward"]
    assert len(pipelined) == 1, "the embedding collection must take part in the pipeline"
    return losses


def test_dlrm_swapped_for_nasrecnet_trains_in_torchrecs_pipeline():
    for losses in run_ranks(2, _train_in_torchrecs_idiom):
        assert losses[-1] < 0.5 * losses[0]


def test_quantized_for_inference():
    model = NASRecNet(make_ebc(5), 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0))).eval()
    dense, kjt = torch.randn(4, 3), make_kjt(5, 4, max_length=3)
    expected = model(dense, kjt)
    quantized = quantize_inference_model(model)
    assert "quant" in type(quantized.sparse_arch.embedding_bag_collection).__module__
    assert (quantized(dense, kjt) - expected).abs().max() < 0.05
