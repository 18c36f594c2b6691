"""A trained model as a package: compiled by AOTInductor, with a manifest and a golden response."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fbgemm_gpu
import torch
from torch import Tensor
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.delta import apply_delta, write_delta
from nasrec_torchrec.inference.predictor import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    PACKAGE,
    TABLES,
    Predictor,
    manifest_sha256,
    read_manifest,
    version_of,
)
from nasrec_torchrec.inference.recalibration import Recalibration, recalibrate
from nasrec_torchrec.inference.scoring_model import ScoringModel, scoring_model, trace
from nasrec_torchrec.inference.tables import FloatTables
from nasrec_torchrec.inference.triton import publish
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.metrics.several_labels import LabelsMetrics, labels_metrics
from nasrec_torchrec.models.boosted_trees import BoostedTrees
from nasrec_torchrec.models.description import ClickModel
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.runs.files import local_folder, place_beside, write_text
from nasrec_torchrec.runs.folder import check_replaceable, recover, replace_folder
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.runs.names import LOCK
from nasrec_torchrec.runs.record import record_start

# The kind of folder that a package is, see nasrec_torchrec.runs.folder.
KIND = "package"
INDUCTOR_OPTIONS: dict[str, Any] = {
    # Allows AOTI_RUNTIME_CHECK_INPUTS=1 to refuse inputs of a wrong type instead of misreading them.
    "aot_inductor.check_lowerbound": False,
    # Products and sums in one instruction, as matrix kernels use them too.
    "cpp.enable_floating_point_contract_flag": "fast",
    # Keeps the loop over pairs of tokens in one piece; by default its weights would be written to memory and read back.
    "realize_reads_threshold": 30,
}


def export(
    model: ClickModel,
    schema: Schema,
    folder: Path,
    config: ExportConfig | None = None,
    metrics: Mapping[str, Any] | None = None,
    dictionaries: Path | None = None,
    origin: Mapping[str, Any] | None = None,
    recalibration: Recalibration | None = None,
    others: Sequence[ClickModel | BoostedTrees] = (),
    delta: Path | None = None,
) -> Predictor:
    """Compiles a model with AOTInductor into a package, which takes about 20 seconds.

    The package is a folder. ``model.pt2`` accepts any batch size and any number of ids; ``model.json`` describes its
    inputs and holds the checksums of all files; ``golden.json`` is a request with its response, which
    :class:`~nasrec_torchrec.inference.predictor.Predictor` verifies when it loads the package; ``dictionaries/`` holds
    the words of dictionary ids, which are needed to score raw rows.

    Args:
        model: unsharded NASRecNet or baseline; it is not changed.
        schema: schema of the data that the model reads.
        folder: folder of the package, which may be in remote storage. An earlier package there is replaced once the new
            one is complete; files in it that no export wrote are kept.
        config: how to export.
        metrics: metrics of the model as JSON values, for the reader of the package.
        dictionaries: local folder with the words of the data set.
        origin: JSON values that say where the model comes from; ``parent``, the version that it replaces, is added.
        recalibration: what :func:`compare` fitted if ``config`` asks for a calibration.
        others: further models of the same features; the package scores with the mean probability of all.
        delta: file to write besides, with what differs from the earlier package in the folder; see :func:`patch`.

    Returns:
        Predictor: The package, loaded and verified.

    Raises:
        ValueError: If the folder holds anything but a package, another export is writing to it, the model and the
            schema name different features, a table is unknown, several labels are to be calibrated, or there is no
            earlier package of this format from which a delta could be taken.
    """
    config = config or ExportConfig()
    if (config.calibrate is None) != (recalibration is None):
        raise ValueError("calibrate: expected the recalibration that compare() returns for it, and none otherwise")
    check_place(folder)
    if delta is not None:
        if _version_at(folder) is None:
            raise ValueError(
                f"delta: expected an earlier package in {folder}, from which the new one differs; found none"
            )
        read_manifest(folder)  # says before the compilation if another version wrote it
    scoring = scoring_model(model, config, schema.feature_names, recalibration, others)
    if scoring.dense_in_features != len(schema.dense):
        raise ValueError(
            f"the model reads {scoring.dense_in_features} dense features, the schema has {len(schema.dense)}"
        )
    check_labels(schema, config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda needs such a device to compile on, and this machine has none")
    scoring = scoring.to(config.device)
    with _work_folder(folder) as work:
        package = work / "package"
        package.mkdir()
        options = dict(INDUCTOR_OPTIONS)
        if config.simd_bits is not None:
            options["cpp.simdlen"] = config.simd_bits
        with torch.no_grad(), _compiling():
            torch._inductor.aoti_compile_and_package(
                trace(scoring, config.map_tables), package_path=str(package / PACKAGE), inductor_configs=options
            )
        mapped = _write_tables(scoring, package) if config.map_tables else []
        write_text(package / GOLDEN, json.dumps(_golden(scoring, schema)))
        if dictionaries is not None and dictionaries.exists():
            shutil.copytree(dictionaries, package / DICTIONARIES)
        known = {"parent": _version_at(folder), **(origin or {})}
        document = _manifest(scoring, schema, model, config, metrics or {}, known, package, recalibration, mapped)
        write_text(package / MANIFEST, json_text(document, indent=2))
        # A package that does not reproduce the golden response must not replace one that did.
        predictor = Predictor(package)
        if delta is not None:
            write_delta(folder, package, delta)
        _publish(predictor, folder)
    if config.triton is not None:
        with local_folder(folder) as local:
            publish(local, Path(config.triton), config.triton_name, config.triton_backend)
    return predictor


def patch(folder: Path, delta: Path) -> Predictor:
    """Replaces a package by the one that a delta leads to, once that is complete and reproduces its golden response.

    Args:
        folder: folder of the package that the delta changes.
        delta: file that :func:`export` wrote beside the new package.

    Returns:
        Predictor: The new package, loaded and verified.

    Raises:
        ValueError: If the folder holds no package, or another one than the delta changes; or if the delta is damaged.
    """
    check_place(folder)
    with _work_folder(folder) as work, local_folder(folder) as base:
        package = work / "package"
        package.mkdir()
        predictor = apply_delta(base, delta, package)
        _publish(predictor, folder)
    return predictor


def _publish(predictor: Predictor, folder: Path) -> None:
    """Moves a package that has been verified to its place."""
    package = predictor.folder
    record_start(package)
    replace_folder(package, folder, KIND, last=MANIFEST)
    predictor.folder = folder


def check_place(folder: Path) -> None:
    """Checks a folder for a package before any work is done for it, and repairs what a killed export left there.

    Raises:
        ValueError: If the folder holds anything but a package that this program wrote.
    """
    recover(folder)
    check_replaceable(folder, KIND)


def check_labels(schema: Schema, config: ExportConfig) -> None:
    """Checks whether a model of the labels of a schema can be exported as it should be.

    Raises:
        ValueError: If a calibration, which is fitted to one label, is asked for several.
    """
    if config.calibrate is not None and schema.tasks:
        raise ValueError(f"calibrate: expected a model of one label, found {', '.join(schema.labels)}")


def _version_at(folder: Path) -> str | None:
    """Returns the version of the package that a new one replaces; None if there is none, or a damaged one."""
    try:
        return version_of(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _compiling() -> Iterator[None]:
    """Says in a line what the compilation needs of this machine and does not get: a compiler, room on the disk."""
    try:
        yield
    except (InductorError, CppCompileError, InvalidCxxCompiler) as error:
        cause = error.inner_exception if isinstance(error, InductorError) else error
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"{cause.strerror}, while the model was compiled", cause.filename) from None
        if isinstance(cause, InvalidCxxCompiler):
            raise ValueError(f"{cause}; install g++, or name another compiler in the variable CXX") from None
        if isinstance(cause, CppCompileError):
            lines = [line for line in cause.output.splitlines() if "error" in line.lower()] or ["no message"]
            raise ValueError(f"the C++ compiler failed: {lines[0]}; its command was {' '.join(cause.cmd)}") from None
        raise


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Creates a locked folder beside ``folder`` to build a package in, and removes leftovers of killed exports."""
    work = place_beside(folder, "export.nasrec-tmp")
    with lock(work):
        for left in work.iterdir():
            if left.name != LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Drift:
    """What exporting a model with some precisions costs in quality, measured on the same rows.

    Args:
        trained: metrics of the model in float32.
        exported: metrics of the exported form.
        table_bytes: bytes of the exported tables.
        float_table_bytes: bytes of the same tables in float32.
        recalibration: map that was fitted to the logits of the exported form, which its metrics contain.
    """

    trained: ClickMetrics
    exported: ClickMetrics
    table_bytes: int
    float_table_bytes: int
    recalibration: Recalibration | None = None

    def __str__(self) -> str:
        of_tasks = ""
        if isinstance(self.trained, LabelsMetrics) and isinstance(self.exported, LabelsMetrics):
            both = {name: (found, self.exported.tasks[name]) for name, found in self.trained.tasks.items()}
            of_tasks = "".join(f"; {name}, {_compared(*metrics)}" for name, metrics in both.items())
        return (
            f"validation, {_compared(self.trained, self.exported)}{of_tasks}; tables "
            f"{self.table_bytes / 2**20:,.2f} MiB instead of {self.float_table_bytes / 2**20:,.2f}"
            + (f"\n{self.recalibration}" if self.recalibration else "")
        )

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics as JSON values, for the package."""
        found = asdict(self)
        del found["recalibration"]
        return found


def _compared(trained: ClickMetrics, exported: ClickMetrics) -> str:
    auc = "undefined, because all labels are equal"
    if exported.auc is not None and trained.auc is not None:
        auc = f"{exported.auc:.6f} ({exported.auc - trained.auc:+.6f})"
    loss = f"{exported.log_loss:.6f} ({exported.log_loss - trained.log_loss:+.6f})"
    return f"{trained.rows:,} rows: AUC {auc}, log loss {loss}"


@torch.no_grad()
def compare(
    model: ClickModel,
    config: ExportConfig,
    files: ClickFiles,
    batch_size: int = 4096,
    others: Sequence[ClickModel | BoostedTrees] = (),
) -> Drift:
    """Compares the exported form of a model with the model itself, before anything is compiled.

    If the configuration asks for a calibration, it is fitted to these rows.

    Args:
        model: unsharded model.
        config: how to export.
        files: rows to measure on.
        batch_size: number of rows in a forward pass.
        others: further models of the same features, whose probabilities are averaged with those of the model.

    Returns:
        The metrics of both, and the sizes of their tables.

    Raises:
        ValueError: If there is nothing to fit a calibration to, or there are several labels.
    """
    check_labels(files.schema, config)
    every = [one.eval() for one in (model, *others)]
    scoring = scoring_model(model, config, files.schema.feature_names, others=others)
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
        logits.append((mean_prediction([one(batch.dense_features, sparse).squeeze(-1) for one in every]), scored))
        labels.append(batch.labels)
    trained, scored = map(torch.cat, zip(*logits, strict=True))
    clicks, weights, recalibration = torch.cat(labels), row_weights(files), None
    if config.calibrate is not None:
        recalibration = recalibrate(config.calibrate, scored, clicks, weights)
        scored = recalibration.module()(scored)
    whole = sum(4 * c.num_embeddings * c.embedding_dim for tables in scoring.every_tables for c in tables.configs)
    sizes = sum(tables.nbytes() for tables in scoring.every_tables), whole
    names = files.schema.labels
    measured, exported = (labels_metrics(logits, clicks, weights, names) for logits in (trained, scored))
    return Drift(measured, exported, *sizes, recalibration)


def _write_tables(scoring: ScoringModel, package: Path) -> list[dict[str, Any]]:
    """Writes each of the tables to a file of its own, and returns what a reader has to know of them."""
    described: list[dict[str, Any]] = []
    (package / TABLES).mkdir()
    for name, weight in scoring.table_weights().items():
        file = f"{TABLES}/{name}"
        weight.numpy().tofile(package / file)
        described.append({"file": file, "type": str(weight.dtype).removeprefix("torch."), "shape": list(weight.shape)})
    return described


def _manifest(
    scoring: ScoringModel,
    schema: Schema,
    model: ClickModel,
    config: ExportConfig,
    metrics: Mapping[str, Any],
    origin: Mapping[str, Any],
    folder: Path,
    recalibration: Recalibration | None,
    mapped: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    quantized = not isinstance(scoring.tables, FloatTables)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    document = {
        "format": FORMAT,
        "inputs": scoring.input_names,
        "input_types": {"dense": "float32", "ids": "int64", "lengths": "int64", "weights": "float32"},
        "ids": "of all features, feature by feature in the order of the schema; one that a table does not have is "
        "looked up as 0, the missing id. Ids of a feature whose ids are dynamic are the 62-bit hashes of the values",
        "output": "logits, float32 (batch,); the probability of a click is their sigmoid"
        if not schema.tasks
        else f"logits, float32 (batch, {len(schema.labels)}), a column for each of the outputs; the probability that a "
        "label is 1 is the sigmoid of its logit",
        "device": config.device,
        "requires": ["torch", "fbgemm_gpu"] if quantized else ["torch"],
        "versions": {"torch": torch.__version__, "fbgemm_gpu": fbgemm_gpu.__version__},
        "bytes": sum(file.stat().st_size for file in files),
        "tables": {
            "bytes": sum(tables.nbytes() for tables in scoring.every_tables),
            "precisions": scoring.precisions,
        },
        "dense": config.dense,
        "metrics": dict(metrics),
        "origin": dict(origin),
        # Only training and its metrics weigh rows; whoever asks for a score has no weight to give.
        "schema": json.loads(replace(schema, weight=None).to_json()),
        "model": type(model).__name__,
        "architecture": json.loads(model.architecture.to_json()) if isinstance(model, NASRecNet) else None,
        "models": 1 + len(scoring.others),
    }
    if schema.tasks:
        document["outputs"] = schema.labels
    if mapped:  # further inputs of the compiled model
        document["mapped"] = list(mapped)
    if recalibration is not None:
        document["calibration"] = asdict(recalibration)
    document = json.loads(json_text(document))
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    return {**document, "sha256": sums | {MANIFEST: manifest_sha256(document)}}


def _golden(scoring: ScoringModel, schema: Schema) -> dict[str, Any]:
    """Returns random rows, with some ids outside the tables and some empty bags, and their logits."""
    generator = torch.Generator().manual_seed(0)
    rows = 8
    lengths = torch.ones(len(schema.sparse), rows, dtype=torch.int64)
    ids = []
    for index, feature in enumerate(schema.sparse):
        if feature.multi_hot:
            lengths[index] = torch.randint(0, 4, (rows,), generator=generator)
        ids.append(torch.randint(-1, feature.id_limit + 1, (int(lengths[index].sum()),), generator=generator))
        if scoring.id_map is not None:
            known = scoring.id_map.known(index)[: len(ids[-1]) // 2]
            ids[-1][: len(known)] = known
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
