"""A trained network as TorchRec's inference server takes it."""

import json
from pathlib import Path

import pytest
import torch
from support import prepare_clicks, run_program, run_script

from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.models.stored import load_model


@pytest.mark.extended
def test_the_torchscript_scores_any_number_of_rows_as_the_network(tmp_path: Path):
    data, trained, file = prepare_clicks(tmp_path / "data"), tmp_path / "model", tmp_path / "predict.pt"
    flags = ("--data", data, "--out", trained, "--architecture", "criteo-small", "--epochs", 1)
    assert run_program("nasrec", "train", *flags).returncode == 0
    printed = run_script("examples/predict_factory.py", "--run", trained, "--out", file)
    assert set(json.loads(printed.splitlines()[-1].partition(": ")[2])) == {"float_features", "id_list_features"}
    description, model = load_model(trained)
    scripted = torch.jit.load(str(file))
    for rows in (1, 50):
        batch = next(description.read(open_split(data, "test")).evaluation_batches(rows))
        sparse = batch.sparse_features
        inputs = {
            "float_features": batch.dense_features,
            "id_list_features.lengths": sparse.lengths(),
            "id_list_features.values": sparse.values(),
        }
        with torch.no_grad():
            expected = model.eval()(batch.dense_features, sparse).sigmoid().flatten()
            torch.testing.assert_close(scripted(inputs)["default"], expected, rtol=0, atol=5e-3)
    other = tmp_path / "mlp"
    flags = ("--data", data, "--out", other, "--architecture", "mlp", "--epochs", 1)
    assert run_program("nasrec", "train", *flags).returncode == 0
    with pytest.raises(AssertionError, match="expected a NASRecNet, found a FlatModel"):
        run_script("examples/predict_factory.py", "--run", other, "--out", file)
