import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from inference.clients import CLIENTS, needs_clients
from torch._inductor.package import load_package

from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.inference.triton import publish

pytestmark = pytest.mark.slow  # for the package is compiled first


def golden(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    content = json.loads((folder / "golden.json").read_text())
    kinds = {"dense": torch.float32, "weights": torch.float32}
    return {
        name: torch.tensor(value, dtype=kinds.get(name, torch.int64)) for name, value in content["request"].items()
    }, torch.tensor(content["logits"])


def test_the_compiled_model_is_the_next_version_of_a_model(plain, packages, tmp_path):
    repository = Path(shutil.copytree(packages / "triton", tmp_path / "models"))
    # The first is there since the export.
    assert publish(plain, repository) == repository / "nasrec" / "2"
    found = sorted(file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file())
    assert found == ["nasrec/1/model.pt2", "nasrec/2/model.pt2", "nasrec/config.pbtxt"]
    # As Triton calls it: inputs by their place.
    request, logits = golden(plain)
    model = load_package(str(repository / "nasrec" / "2" / "model.pt2"))
    names = Predictor(plain).manifest["inputs"]
    assert torch.allclose(model(*(request[name] for name in names)), logits, atol=1e-4)
    text = (repository / "nasrec" / "config.pbtxt").read_text()
    for place, name in enumerate(names):
        kind = "TYPE_FP32" if request[name].is_floating_point() else "TYPE_INT64"
        assert f'name: "INPUT__{place}" data_type: {kind}' in text
    assert "max_batch_size: 0" in text


def test_what_cannot_be_published_is_refused(package, plain, tmp_path):
    repository = tmp_path / "models"
    with pytest.raises(ValueError, match=r"quantized tables need FBGEMM.*--tables fp32"):
        publish(package[0], repository)
    with pytest.raises(ValueError, match=r"triton_name: expected letters.*'\.\./a'"):
        publish(plain, repository, "../a")
    with pytest.raises(ValueError, match=r"triton_backend: expected one of \['torch_aoti', 'python'\], found 'onnx'"):
        publish(plain, repository, backend="onnx")
    with pytest.raises(ValueError, match=r"torch_aoti: quantized tables need FBGEMM"):
        ExportConfig(tables="int8", triton=str(repository))
    assert not repository.exists()
    publish(plain, repository)
    with pytest.raises(ValueError, match=r"config.pbtxt: describes another model"):
        publish(plain, repository, backend="python")
    assert [folder.name for folder in (repository / "nasrec").iterdir() if folder.is_dir()] == ["1"]


@dataclass
class _Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        self.array.flags.writeable = False
        return self.array


@dataclass
class _Response:
    output_tensors: tuple = ()
    error: str | None = None


def test_the_python_backends_model_scores_requests_together(package, tmp_path, monkeypatch):
    """With the part of ``triton_python_backend_utils`` that Triton documents, for Triton itself cannot be installed."""
    version = publish(package[0], tmp_path, "ctr", "python")
    utilities = types.ModuleType("triton_python_backend_utils")
    utilities.Tensor, utilities.InferenceResponse, utilities.TritonError = _Tensor, _Response, str
    utilities.get_input_tensor_by_name = lambda request, name: _Tensor(name, request[name])
    monkeypatch.setitem(sys.modules, utilities.__name__, utilities)
    monkeypatch.syspath_prepend(version)
    monkeypatch.delitem(sys.modules, "predictor", raising=False)
    spec = importlib.util.spec_from_file_location("model_of_triton", version / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({})
    assert Path(sys.modules["predictor"].__file__).parent == version
    request, logits = golden(package[0])
    arrays = {name: tensor.numpy() for name, tensor in request.items()}
    wrong = arrays | {"ids": arrays["ids"][:-1]}
    first, refused, second = model.execute([arrays, wrong, arrays])
    assert "ids: the lengths ask for" in refused.error
    for response in (first, second):
        (output,) = response.output_tensors
        assert output.name == "probability"
        assert torch.allclose(torch.from_numpy(output.array), logits.sigmoid(), atol=1e-4)
    model.finalize()


@needs_clients
def test_the_configurations_are_what_tritons_schema_says(package, plain, tmp_path):
    publish(plain, tmp_path, "compiled")
    publish(package[0], tmp_path, "checked", "python")
    script = (
        "import json, sys\n"
        "from google.protobuf import json_format, text_format\n"
        "from tritonclient.grpc import model_config_pb2\n"
        "for file in sys.argv[1:]:\n"
        "    parsed = text_format.Parse(open(file).read(), model_config_pb2.ModelConfig())\n"
        "    print(json.dumps(json_format.MessageToDict(parsed)))\n"
    )
    files = [tmp_path / name / "config.pbtxt" for name in ("compiled", "checked")]
    done = subprocess.run([CLIENTS, "-c", script, *files], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    compiled, checked = map(json.loads, done.stdout.splitlines())
    assert (compiled["platform"], compiled["backend"], compiled["name"]) == ("torch_aoti", "pytorch", "compiled")
    assert [entry["name"] for entry in compiled["input"]] == ["INPUT__0", "INPUT__1", "INPUT__2"]
    assert (checked["backend"], checked["output"][0]["name"]) == ("python", "probability")
    assert [(entry["name"], entry["dims"]) for entry in checked["input"]] == [
        ("dense", ["-1", "3"]),
        ("ids", ["-1"]),
        ("lengths", ["4", "-1"]),
    ]
    for config in (compiled, checked):
        assert config["instanceGroup"] == [{"kind": "KIND_CPU", "count": 1}] and "maxBatchSize" not in config
