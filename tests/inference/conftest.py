from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_schema

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.models.description import ModelDescription


def build(schema: Schema, seed: int = 0, use_layernorm: bool = False) -> NASRecNet:
    torch.manual_seed(seed)
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(seed))
    model = ModelDescription(schema, architecture, use_layernorm).build()
    assert isinstance(model, NASRecNet)
    return model.eval()


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> tuple[Path, NASRecNet, Schema]:
    """A package with quantized tables, the model that it was made of, and its schema."""
    schema = make_schema()
    model, folder = build(schema), tmp_path_factory.mktemp("package") / "int8"
    export(model, schema, folder, ExportConfig(tables="int8", table_precisions={"t_f1": "fp32"}))
    return folder, model, schema
