"""Tools that know PyTorch's own layers alone take the fused form of a model."""

import pytest
import torch
from support import make_ebc, make_kjt
from torch import nn
from torchrec.fx import Tracer
from torchrec.inference.modules import quantize_inference_model, shard_quant_model

from nasrec_torchrec import NASRecNet


@pytest.mark.parametrize("architecture", ["criteo-full", "kdd-small", "wukong"])
def test_the_fused_form(architecture: str):
    torch.manual_seed(0)
    model = NASRecNet(make_ebc(5), 3, architecture, interaction_dim=24).eval()
    dense, kjt = torch.randn(8, 3), make_kjt(5, 8, max_length=3)
    expected, weights = model(dense, kjt), {name: value.clone() for name, value in model.state_dict().items()}
    fused = model.fused()
    torch.testing.assert_close(fused(dense, kjt), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    layers = sum(type(module) is nn.Linear for module in fused.modules())
    dynamic = torch.ao.quantization.quantize_dynamic(fused, {nn.Linear})
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert sum(isinstance(module, kind) for module in dynamic.modules()) == layers > 10
    assert (dynamic(dense, kjt) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["criteo-full", "kdd-small", "wukong"])
@pytest.mark.parametrize("fuse", [True, False])
def test_torchrecs_tracer_and_torchscript(architecture: str, fuse: bool):
    torch.manual_seed(0)
    model = NASRecNet(make_ebc(5), 3, architecture, interaction_dim=24).eval()
    dense, kjt = torch.randn(8, 3), make_kjt(5, 8, max_length=3)
    quantized = quantize_inference_model(model.fused() if fuse else model)
    expected = quantized(dense, kjt)
    traced = torch.fx.GraphModule(quantized, Tracer().trace(quantized))
    torch.testing.assert_close(torch.jit.script(traced)(dense, kjt), expected, rtol=1e-5, atol=1e-5)


def test_the_quantized_form_is_sharded_over_a_cuda_topology():
    model = NASRecNet(make_ebc(5), 3, "criteo-small", interaction_dim=24).eval()
    quantized = quantize_inference_model(model.fused())
    sharded, plan = shard_quant_model(quantized, world_size=2, compute_device="cuda", sharding_device="meta")
    (tables,) = plan.plan.values()
    places = [str(shard.placement) for table in tables.values() for shard in table.sharding_spec.shards]
    assert len(tables) == 5 and set(places) == {"rank:0/cuda:0", "rank:1/cuda:1"}
    assert type(sharded.sparse_arch.embedding_bag_collection).__name__ == "ShardedQuantEmbeddingBagCollection"
