"""A package as a model of NVIDIA's Triton Inference Server: a folder of its model repository.

Two backends of Triton can run a package. ``torch_aoti`` runs the compiled model itself, without Python, in Triton
26.05 and later; its inputs are called ``INPUT__0`` and so on, and its output ``OUTPUT__0`` is the logit. ``python``
runs :mod:`nasrec_torchrec.inference.predictor`, with the names and checks of nasrec's own server, and probabilities.

Triton's own batching is off (``max_batch_size: 0``), because it joins tensors along their first dimension: the ids of
all features lie in one tensor, whose length is not the number of rows. The Python backend gets all requests that wait
at once, and joins them itself.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from nasrec_torchrec.inference import predictor, triton_model
from nasrec_torchrec.inference.config import ExportConfig, TritonBackend
from nasrec_torchrec.inference.predictor import PACKAGE, Predictor, read_manifest
from nasrec_torchrec.runs.files import write_text

CONFIG = "config.pbtxt"
_DATATYPES = {"dense": "TYPE_FP32", "ids": "TYPE_INT64", "lengths": "TYPE_INT64", "weights": "TYPE_FP32"}


def publish(package: Path, repository: Path, name: str = "nasrec", backend: TritonBackend = "torch_aoti") -> Path:
    """Adds a package to a model repository, as the next version of a model.

    Nothing in the repository is replaced or removed. The version gets its name when it is complete, and Triton's
    configuration is written before the first version.

    Args:
        package: folder of the package.
        repository: Triton's model repository, a local folder; created unless it is there.
        name: name of the model in the repository.
        backend: ``torch_aoti`` or ``python``.

    Returns:
        The folder of the version.

    Raises:
        ValueError: for a wrong name or backend, a damaged package, quantized or mapped tables with ``torch_aoti``, or a
            model of this name that has another configuration.
    """
    ExportConfig(triton_name=name, triton_backend=backend)  # refuses what Triton cannot have
    # All files are compared with their checksums, and the model with its golden response.
    Predictor(package).close()
    manifest = read_manifest(package)
    if backend == "torch_aoti" and "fbgemm_gpu" in manifest["requires"]:
        raise ValueError(
            "triton: quantized tables need FBGEMM, which Triton's torch_aoti does not have; "
            "export with --tables fp32, or for the python backend"
        )
    if backend == "torch_aoti" and manifest.get("mapped"):
        raise ValueError(
            "triton: torch_aoti does not map tables; export without --map_tables, or for the python backend"
        )
    model = repository / name
    config = configuration(manifest, name, backend)
    _write_config(model / CONFIG, config)
    version = model / str(1 + max((int(folder.name) for folder in model.glob("*") if folder.name.isdigit()), default=0))
    # Triton passes over folders that are no numbers.
    work = model / f".{version.name}.{os.getpid()}.nasrec-tmp"
    try:
        work.mkdir()
        _fill(work, package, manifest, backend)
        work.rename(version)
    except OSError as error:
        raise ValueError(f"{version}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return version


def configuration(manifest: dict[str, Any], name: str, backend: TritonBackend) -> str:
    """Triton's description of a model, in protobuf's text format.

    Args:
        manifest: manifest of the package.
        name: name of the model.
        backend: Triton backend that runs the model.
    """
    features, dense = len(manifest["schema"]["sparse"]), len(manifest["schema"]["dense"])
    shapes = {"dense": [-1, dense], "ids": [-1], "lengths": [features, -1], "weights": [-1]}
    compiled = backend == "torch_aoti"
    inputs = [
        _tensor(f"INPUT__{place}" if compiled else part, _DATATYPES[part], shapes[part])
        for place, part in enumerate(manifest["inputs"])
    ]
    names = predictor.outputs_of(manifest)
    if compiled:
        outputs = [_tensor("OUTPUT__0", "TYPE_FP32", [-1] if len(names) == 1 else [-1, len(names)])]
    else:
        outputs = [_tensor(name, "TYPE_FP32", [-1]) for name in names]
    kind = "KIND_GPU" if manifest["device"] == "cuda" else "KIND_CPU"
    lines = [
        f'name: "{name}"',
        'backend: "pytorch"\nplatform: "torch_aoti"' if compiled else 'backend: "python"',
        "# Ids of all features lie in one tensor, so Triton cannot join requests along a dimension of rows.",
        "max_batch_size: 0",
        f"# {', '.join(manifest['inputs'])}, as model.json of the package describes them.",
        "input [\n" + ",\n".join(inputs) + "\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        f"instance_group [\n  {{ kind: {kind} count: 1 }}\n]",
        "version_policy: { latest { num_versions: 1 } }",
    ]
    return "\n".join(lines) + "\n"


def _fill(folder: Path, package: Path, manifest: dict[str, Any], backend: TritonBackend) -> None:
    if backend == "torch_aoti":
        shutil.copyfile(package / PACKAGE, folder / PACKAGE)
        return
    for file in manifest["sha256"]:
        (folder / "package" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / file, folder / "package" / file)
    shutil.copyfile(triton_model.__file__, folder / "model.py")
    shutil.copyfile(predictor.__file__, folder / "predictor.py")


def _tensor(name: str, datatype: str, shape: list[int]) -> str:
    return f'  {{ name: "{name}" data_type: {datatype} dims: {shape} }}'


def _write_config(file: Path, config: str) -> None:
    try:
        found = file.read_text()
    except FileNotFoundError:
        write_text(file, config)
        return
    if found != config:
        raise ValueError(
            f"{file}: describes another model, or was edited; choose another name, or remove the model's folder"
        )
