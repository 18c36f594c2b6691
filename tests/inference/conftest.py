import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from iopath.common.file_io import file_lock
from support import SMALL_SPACE, make_click_files, make_schema

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import compare, export
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ClickModel, ModelDescription


def build(schema: Schema, seed: int = 0, use_layernorm: bool = False, num_blocks: int = 3) -> NASRecNet:
    """A network with random weights; one of fewer blocks is compiled faster."""
    torch.manual_seed(seed)
    space = replace(SMALL_SPACE, num_blocks=num_blocks)
    architecture = space.sample(torch.Generator().manual_seed(seed))
    model = ModelDescription(schema, architecture, use_layernorm).build()
    assert isinstance(model, NASRecNet)
    return model.eval()


def build_mlp(schema: Schema) -> ClickModel:
    """The model that is compiled fastest, for tests that need some package."""
    torch.manual_seed(0)
    return ModelDescription(schema, Baseline("mlp", (8, 16), (16, 1))).build().eval()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that all workers of pytest-xdist share; use :func:`exported` to have one there."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packages"
    folder.mkdir(exist_ok=True)
    return folder


def exported(packages: Path, name: str, model: ClickModel, schema: Schema, config: ExportConfig | None = None) -> Path:
    """Returns the package of a name, compiled by the first test that needs it. It must not be changed: copy it.

    A calibration is fitted to random rows.
    """
    place = packages / name / "package"
    with file_lock(str(packages / name)):
        if not (place / "model.json").exists():
            place.mkdir(parents=True, exist_ok=True)  # an empty folder is a place for a package
            found = None
            if config is not None and config.calibrate is not None:
                found = compare(model, config, make_click_files(schema, 600)).recalibration
            export(model, schema, place, config, recalibration=found)
    return place


@pytest.fixture(scope="session")
def package(packages: Path) -> tuple[Path, NASRecNet, Schema]:
    """A package with quantized tables, the model that it was made of, and its schema."""
    schema = make_schema()
    model = build(schema, 3, num_blocks=1)
    config = ExportConfig(tables="int8", table_precisions={"t_f1": "fp32"})
    return exported(packages, "int8", model, schema, config), model, schema


@pytest.fixture(scope="session")
def plain(packages: Path) -> Path:
    """A calibrated package of another model with the same schema; it needs PyTorch alone, and a Triton has it too."""
    schema = make_schema()
    config = ExportConfig(triton=str(packages / "triton"), calibrate="isotonic")
    return exported(packages, "plain", build(schema, 5, num_blocks=1), schema, config)


@pytest.fixture(scope="session")
def product(packages: Path) -> tuple[Path, NASRecNet, Schema]:
    """A package with a product over one input, which Inductor compiles for a few rows only; its model and schema."""
    schema = make_schema(num_dense=1)
    model = build(schema, 2, num_blocks=1)
    return exported(packages, "product", model, schema), model, schema
