"""What docs/migration.md says about replacing DLRM."""

import re
from pathlib import Path

import pytest
import torch
from support import make_ebc, make_kjt
from torchrec.datasets.utils import Batch
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import PUBLISHED, NASRecNet

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text()
FEATURES = [f"f{i}" for i in range(5)]


def _dlrm() -> DLRM:
    return DLRM(make_ebc(5), 3, [8, 16], [8, 1])


def _nasrecnet(tables: EmbeddingBagCollection | None = None) -> NASRecNet:
    return NASRecNet(tables or make_ebc(5), 3, PUBLISHED["criteo-small"])


def _tables(shared: bool = False, data_type: DataType = DataType.FP32) -> EmbeddingBagCollection:
    names = [("t", FEATURES)] if shared else [(f"t{i}", [feature]) for i, feature in enumerate(FEATURES)]
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name, embedding_dim=16, num_embeddings=50, feature_names=features, data_type=data_type
            )
            for name, features in names
        ]
    )


def test_inputs_and_outputs_stay():
    batch = Batch(torch.randn(4, 3), make_kjt(5, 4), torch.ones(4))
    outputs = [DLRMTrain(model)(batch) for model in (_dlrm(), _nasrecnet())]
    for loss, (detached, logits, labels) in outputs:
        assert loss.shape == detached.shape == () and logits.shape == labels.shape == (4,)


def test_the_tables_of_a_dlrm_are_loaded_as_the_page_does():
    dlrm, model = _dlrm(), _nasrecnet()
    (code,) = re.findall(r"```python\n(  tables = .*?)\n  ```", PAGE, re.DOTALL)
    exec("\n".join(line.strip() for line in code.splitlines()), {"dlrm": dlrm, "model": model})
    expected, found = dlrm.sparse_arch.state_dict(), model.sparse_arch.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "tables",
    [_tables(shared=True), _tables(data_type=DataType.FP16), _tables(data_type=DataType.BF16)],
    ids=["shared", "fp16", "bf16"],
)
def test_tables_of_many_kinds(tables: EmbeddingBagCollection):
    logits = _nasrecnet(tables)(torch.randn(4, 3), make_kjt(5, 4))
    assert logits.shape == (4, 1) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in tables.parameters())


def test_batches_with_a_variable_number_of_rows_per_feature():
    model = _nasrecnet()
    ids = torch.randint(0, 50, (18,))
    variable = KeyedJaggedTensor(
        FEATURES,
        ids,
        lengths=torch.ones(18, dtype=torch.int64),
        stride_per_key_per_rank=[[4], [4], [4], [4], [2]],
        inverse_indices=(FEATURES, torch.stack([torch.arange(4)] * 4 + [torch.tensor([0, 1, 0, 1])])),
    )
    repeated = torch.cat([ids, ids[-2:]])
    whole = KeyedJaggedTensor(FEATURES, repeated, lengths=torch.ones(20, dtype=torch.int64))
    dense = torch.randn(4, 3)
    torch.testing.assert_close(model(dense, variable), model(dense, whole))


def test_what_stays_of_inference():
    model, dense, kjt = _nasrecnet().eval(), torch.randn(4, 3), make_kjt(5, 4)
    expected = model(dense, kjt)
    traced = torch.export.export(model.interaction_arch, (dense, model.sparse_arch(kjt))).module()
    torch.testing.assert_close(traced(dense, model.sparse_arch(kjt)), expected)
    assert (quantize_inference_model(model)(dense, kjt) - expected).abs().max() < 0.05


def test_what_is_not_supported_fails_at_once():
    assert "torch.jit.script" in PAGE
    with pytest.raises(RuntimeError):
        torch.jit.script(_nasrecnet())
