"""A trained model as a package: compiled by AOTInductor, with a manifest and a golden response."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fbgemm_gpu
import torch
from torch import Tensor, nn
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from nasrec_torchrec.datasets.prepared import DICTIONARIES, sha256
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.inference.predictor import FORMAT, GOLDEN, MANIFEST, PACKAGE, Predictor
from nasrec_torchrec.inference.tables import FloatTables, make_tables, table_precisions
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics
from nasrec_torchrec.models.nasrecnet import NASRecNet

INDUCTOR_OPTIONS: dict[str, Any] = {
    # Allows AOTI_RUNTIME_CHECK_INPUTS=1 to refuse inputs of a wrong type instead of misreading them.
    "aot_inductor.check_lowerbound": False,
    # Products and sums in one instruction, as matrix kernels use them too.
    "cpp.enable_floating_point_contract_flag": "fast",
    # Keeps the loop over pairs of tokens in one piece: by default its weights would go through memory.
    "realize_reads_threshold": 30,
}


class ScoringModel(nn.Module):
    """A NASRecNet in the form that serves: fused, with tables that are looked up from plain tensors.

    Inputs are dense features ``(B, F_dense)`` (left out when there are none), ``ids`` ``(T,)`` int64 of all features,
    feature by feature, ``lengths`` ``(F_sparse, B)`` int64, and for weighted collections ``weights`` ``(T,)``.
    Ids outside of a feature's table are looked up as 0, the missing id.

    Args:
        model: unsharded; it is not changed.
        precision: of every table; unset, float32.
        bf16: run the dense part in bfloat16.
    """

    def __init__(self, model: NASRecNet, precision: Mapping[str, str] | None = None, bf16: bool = False) -> None:
        super().__init__()
        ebc = model.sparse_arch.embedding_bag_collection
        self.precisions = dict(precision or table_precisions(ebc, "fp32", {}))
        self.tables = make_tables(ebc, model.sparse_arch.feature_names, self.precisions)
        self.has_dense = model.interaction_arch.dense_in_features > 0
        self.weighted: bool = ebc.is_weighted()
        self.interaction_arch = fuse(model.interaction_arch)
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.interaction_arch.to(self.dtype)

    @property
    def input_names(self) -> list[str]:
        """Of the inputs, in order."""
        return (["dense"] if self.has_dense else []) + ["ids", "lengths"] + (["weights"] if self.weighted else [])

    def forward(self, *inputs: Tensor) -> Tensor:
        """
        Args:
            inputs: ``[dense,] ids, lengths[, weights]`` as the class says.

        Returns:
            Tensor: logits ``(B,)`` float32.
        """
        ids, lengths, *weights = inputs[1:] if self.has_dense else inputs
        pooled = self.tables(ids, lengths, weights[0] if self.weighted else None)
        dense = inputs[0] if self.has_dense else pooled.new_zeros(lengths.shape[1], 0)
        return self.interaction_arch(dense.to(self.dtype), pooled.to(self.dtype)).flatten().float()


def scoring_model(model: NASRecNet, config: ExportConfig) -> ScoringModel:
    """The form of a model that ``config`` asks for, not compiled yet.

    Raises:
        ValueError: for an unknown table or precision.
    """
    precisions = table_precisions(model.sparse_arch.embedding_bag_collection, config.tables, config.table_precisions)
    return ScoringModel(model, precisions, config.dense == "bf16").eval()


def export(
    model: NASRecNet,
    schema: Schema,
    folder: Path,
    config: ExportConfig | None = None,
    metrics: Mapping[str, Any] | None = None,
    dictionaries: Path | None = None,
) -> Predictor:
    """Compiles a model with AOTInductor into a package; takes some 20 seconds.

    The package is a folder: ``model.pt2`` takes any batch size and any number of ids, ``model.json`` says what it takes
    and holds the checksums of the other files, ``golden.json`` is a request and its response, which
    :class:`~nasrec_torchrec.inference.predictor.Predictor` compares when it loads the package, and ``dictionaries/``
    has the words of dictionary ids, for scoring raw rows.

    Args:
        model: unsharded; it is not changed.
        schema: of the data that the model reads.
        folder: is replaced when the package is complete.
        config: in which form.
        metrics: JSON values to tell the reader.
        dictionaries: folder of the data set's words.

    Returns:
        Predictor: the package, loaded and verified.

    Raises:
        ValueError: when the model and the schema name different features, or for an unknown table.
    """
    config = config or ExportConfig()
    if model.sparse_arch.feature_names != schema.feature_names:
        raise ValueError(
            f"the model reads the features {model.sparse_arch.feature_names}, the schema has {schema.feature_names}"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda needs such a device to compile on, and this machine has none")
    scoring = scoring_model(model, config).to(config.device)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        options = dict(INDUCTOR_OPTIONS)
        if config.simd_bits is not None:
            options["cpp.simdlen"] = config.simd_bits
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                trace(scoring), package_path=str(temporary / PACKAGE), inductor_configs=options
            )
        (temporary / GOLDEN).write_text(json.dumps(_golden(scoring, schema)))
        if dictionaries is not None and dictionaries.exists():
            shutil.copytree(dictionaries, temporary / DICTIONARIES)
        document = _manifest(scoring, schema, model, config, metrics or {}, temporary)
        (temporary / MANIFEST).write_text(json.dumps(document, indent=2))
        # A package that does not give the golden response does not take the place of one that did.
        Predictor(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Predictor(folder, verify=False)


@dataclass(frozen=True)
class Drift:
    """What a form of a model costs in quality, on the same rows.

    Args:
        trained: metrics of the model in float32.
        exported: of the form.
        table_bytes: of the weights of its tables.
        float_table_bytes: of the same tables in float32.
    """

    trained: ClickMetrics
    exported: ClickMetrics
    table_bytes: int
    float_table_bytes: int

    def __str__(self) -> str:
        return (
            f"validation, {self.trained.rows:,} rows: AUC {self.exported.auc:.6f} "
            f"({self.exported.auc - self.trained.auc:+.6f}), log loss {self.exported.log_loss:.6f} "
            f"({self.exported.log_loss - self.trained.log_loss:+.6f}); tables {self.table_bytes / 2**20:,.2f} MiB "
            f"instead of {self.float_table_bytes / 2**20:,.2f}"
        )


@torch.no_grad()
def compare(model: NASRecNet, config: ExportConfig, files: ClickFiles, batch_size: int = 4096) -> Drift:
    """Measures a form of a model beside the model itself, before anything is compiled.

    Args:
        model: unsharded.
        config: the form.
        files: rows to measure on.
        batch_size: rows of a forward pass.
    """
    model.eval()
    scoring = scoring_model(model, config)
    logits: list[tuple[Tensor, Tensor]] = []
    labels = []
    for batch in files.evaluation_batches(batch_size):
        sparse = batch.sparse_features
        inputs = {
            "dense": batch.dense_features,
            "ids": sparse.values(),
            "lengths": sparse.lengths().view(len(sparse.keys()), -1).long(),
            "weights": sparse.weights_or_none(),
        }
        scored = scoring(*(inputs[name] for name in scoring.input_names))
        logits.append((model(batch.dense_features, sparse).flatten(), scored))
        labels.append(batch.labels)
    trained, exported = (click_metrics(torch.cat(part), torch.cat(labels)) for part in zip(*logits, strict=True))
    whole = sum(4 * c.num_embeddings * c.embedding_dim for c in scoring.tables.configs)
    return Drift(trained, exported, scoring.tables.nbytes(), whole)


def _manifest(
    scoring: ScoringModel,
    schema: Schema,
    model: NASRecNet,
    config: ExportConfig,
    metrics: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    quantized = not isinstance(scoring.tables, FloatTables)
    return {
        "format": FORMAT,
        "inputs": scoring.input_names,
        "input_types": {"dense": "float32", "ids": "int64", "lengths": "int64", "weights": "float32"},
        "ids": "of all features, feature by feature in the order of the schema; one that a table does not have is "
        "looked up as 0, the missing id",
        "output": "logits, float32 (batch,); the probability of a click is their sigmoid",
        "device": config.device,
        "requires": ["torch", "fbgemm_gpu"] if quantized else ["torch"],
        "versions": {"torch": torch.__version__, "fbgemm_gpu": fbgemm_gpu.__version__},
        "tables": {
            "bytes": scoring.tables.nbytes(),
            "precisions": scoring.precisions,
        },
        "dense": config.dense,
        "metrics": dict(metrics),
        "schema": json.loads(schema.to_json()),
        "architecture": json.loads(model.architecture.to_json()),
        "sha256": {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()},
    }


def _golden(scoring: ScoringModel, schema: Schema) -> dict[str, Any]:
    """Random rows, some ids of which no table has, some bags empty, and their logits."""
    generator = torch.Generator().manual_seed(0)
    rows = 8
    lengths = torch.ones(len(schema.sparse), rows, dtype=torch.int64)
    ids = []
    for index, feature in enumerate(schema.sparse):
        assert feature.num_embeddings is not None
        if feature.multi_hot:
            lengths[index] = torch.randint(0, 4, (rows,), generator=generator)
        ids.append(torch.randint(-1, feature.num_embeddings + 1, (int(lengths[index].sum()),), generator=generator))
    request = {
        "dense": torch.randn(rows, len(schema.dense), generator=generator),
        "ids": torch.cat(ids),
        "lengths": lengths,
        "weights": torch.rand(int(lengths.sum()), generator=generator),
    }
    names = scoring.input_names
    with torch.no_grad():
        logits = scoring(*(request[name].to(scoring.tables.rows.device) for name in names))
    return {
        "request": {name: request[name].tolist() for name in names},
        "logits": logits.tolist(),
        # Of the largest logit; compiled bfloat16 rounds less often than the same operations one by one.
        "tolerance": 1e-4 if scoring.dtype == torch.float32 else 3e-2,
    }


def trace(scoring: ScoringModel) -> torch.export.ExportedProgram:
    """The model as a ``torch.export`` program of any batch size and any number of ids."""
    batch, ids = torch.export.Dim("batch", min=1, max=2**20), torch.export.Dim("ids", min=0, max=2**31 - 1)
    shapes: list[dict[int, Any]] = [{0: batch}] if scoring.has_dense else []
    shapes += [{0: ids}, {1: batch}] + ([{0: ids}] if scoring.weighted else [])
    example = example_inputs(scoring, batch_size=3)
    program = torch.export.export(scoring, example, dynamic_shapes=(tuple(shapes),), strict=False)
    # Operators that read the same tokens each write down how these lie side by side: once is enough.
    shared = CSEPass()(program.graph_module)
    assert shared is not None
    program.graph_module.graph = shared.graph_module.graph
    return program


def example_inputs(scoring: ScoringModel, batch_size: int) -> tuple[Tensor, ...]:
    """Inputs of the right shapes: two ids in every bag."""
    features = scoring.tables.rows.numel()
    count = 2 * features * batch_size
    inputs: tuple[Tensor, ...] = ()
    if scoring.has_dense:
        inputs += (torch.zeros(batch_size, scoring.interaction_arch.dense_in_features),)
    inputs += (torch.zeros(count, dtype=torch.int64), torch.full((features, batch_size), 2))
    return inputs + ((torch.ones(count),) if scoring.weighted else ())
