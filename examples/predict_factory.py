"""A trained NASRecNet for TorchRec's inference server: a PredictFactory that quantizes, shards and scripts it.

    nasrec train --data DATA --architecture criteo-small --out runs/model
    python examples/predict_factory.py --run runs/model --out runs/predict.pt

TorchRec's server and its model packager take such a factory. The result is TorchScript, which C++ loads with
``torch::jit::load`` beside FBGEMM's libraries. Unlike a package of ``nasrec export`` it checks nothing, and on CUDA it
has not been tried.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.fx import Tracer
from torchrec.inference.modules import (
    BatchingMetadata,
    PredictFactory,
    PredictModule,
    quantize_inference_model,
    shard_quant_model,
)
from torchrec.inference.state_dict_transform import state_dict_gather
from torchrec.quant.embedding_modules import quant_prep_enable_quant_state_dict_split_scale_bias_for_types

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.models.stored import load_model


class ClickPredictModule(PredictModule):
    """Tensors by name, as the server sends them, to probabilities ``(B,)``.

    Args:
        model: the model above its tables.
        features: names of the sparse features, in the order in which the server sends them.
        device: device of the inputs.
    """

    def __init__(self, model: nn.Module, features: list[str], device: str) -> None:
        super().__init__(model, device)
        self.features = features

    def predict_forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores ``float_features`` ``(B, F_dense)`` with the lengths and values of ``id_list_features``."""
        sparse = KeyedJaggedTensor(
            self.features, batch["id_list_features.values"], lengths=batch["id_list_features.lengths"]
        )
        return {"default": self.predict_module(batch["float_features"], sparse).sigmoid().flatten()}


class ClickPredictFactory(PredictFactory):
    """Makes what TorchRec's server runs of a trained network.

    Args:
        model: the network, unsharded; it is not changed.
        device: ``cpu`` or ``cuda``.
        world_size: number of devices over which the quantized tables are sharded.
    """

    def __init__(self, model: NASRecNet, device: str = "cpu", world_size: int = 1) -> None:
        self._model, self._device, self._world_size = model.eval(), device, world_size

    def create_predict_module(self) -> nn.Module:
        """Quantizes the tables to 8 bits, shards them, and returns TorchScript with the trained weights."""
        set_propogate_device(True)
        fused = self._model.fused()
        # As in the sharded tables: scales and biases stand beside the weights.
        quant_prep_enable_quant_state_dict_split_scale_bias_for_types(fused, [EmbeddingBagCollection])
        quantized = quantize_inference_model(fused)
        weights = {name: value.clone() for name, value in quantized.state_dict().items()}
        sharded, _ = shard_quant_model(
            quantized, self._world_size, compute_device=self._device, sharding_device=self._device
        )
        state_dict_gather(weights, sharded.state_dict())  # sharding makes new tables
        features = self._model.sparse_arch.feature_names
        module = ClickPredictModule(sharded.to(self._device).requires_grad_(False), features, self._device)
        # The tables are told by their first batch which features there are, and cannot be traced before.
        ids = torch.zeros(len(features), dtype=torch.int64, device=self._device)
        dense = torch.zeros(1, self._model.interaction_arch.dense_in_features or 0, device=self._device)
        module({"float_features": dense, "id_list_features.lengths": ids + 1, "id_list_features.values": ids})
        return self.run_weights_independent_tranformations(module)

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        """Names the inputs that the server joins, and where it puts them."""
        return {
            "float_features": BatchingMetadata("dense", self._device, []),
            "id_list_features": BatchingMetadata("sparse", self._device, ["lengths"]),
        }

    def result_metadata(self) -> str:
        """Says how the server divides a result among the requests."""
        return "dict_of_tensor"

    def run_weights_independent_tranformations(self, predict_module: nn.Module) -> nn.Module:
        """Traces and scripts a module."""
        tracer = Tracer(leaf_modules=["IntNBitTableBatchedEmbeddingBagsCodegen"])
        return torch.jit.script(fx.GraphModule(predict_module, tracer.trace(predict_module)))

    def run_weights_dependent_transformations(self, predict_module: nn.Module) -> nn.Module:
        """Nothing is left to do."""
        return predict_module


def main() -> None:
    """Writes the TorchScript of a run."""
    parser = argparse.ArgumentParser(description="Make TorchScript of a trained NASRecNet for TorchRec's server.")
    parser.add_argument("--run", type=Path, required=True, help="run folder of a training")
    parser.add_argument("--out", type=Path, required=True, help="file of the TorchScript")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--world_size", type=int, default=1, help="number of devices over which the tables are sharded")
    flags = parser.parse_args()
    _, model = load_model(flags.run)
    if not isinstance(model, NASRecNet):
        parser.error(f"{flags.run}: expected a NASRecNet, found a {type(model).__name__}")
    factory = ClickPredictFactory(model, flags.device, flags.world_size)
    factory.create_predict_module().save(str(flags.out))
    print(f"{flags.out}: {factory.batching_metadata_json()}")


if __name__ == "__main__":
    main()
