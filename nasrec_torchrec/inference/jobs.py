"""Export, scoring and serving as functions: what the commands do, for notebooks and scripts.

PyTorch is imported when one of them is called.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasrec_torchrec.datasets.config import TextFlags
from nasrec_torchrec.inference.config import ExportConfig, ScoringConfig, ServingConfig

if TYPE_CHECKING:
    from nasrec_torchrec.inference.exporting import Drift

_DEFAULT_EXPORT = ExportConfig()
_DEFAULT_SCORING = ScoringConfig()
_NO_FLAGS = TextFlags()
_DEFAULT_SERVING = ServingConfig()


@dataclass(frozen=True)
class ExportedPackage:
    """What an export wrote.

    Args:
        folder: the package.
        size: bytes of all its files.
        requires: Python packages that scoring with it needs.
        drift: differences between its validation metrics and those of the trained model, if a data set was given.
        delta: file with what differs from the earlier package, if it was wanted.
        delta_size: its bytes.
    """

    folder: Path
    size: int
    requires: tuple[str, ...]
    drift: "Drift | None" = None
    delta: Path | None = None
    delta_size: int = 0

    def __str__(self) -> str:
        size = f"{self.folder}: {self.size / 2**20:.1f} MiB, needs {' and '.join(self.requires)}"
        lines = [] if self.drift is None else [str(self.drift)]
        lines.append(size)
        if self.delta is not None:
            lines.append(f"{self.delta}: {self.delta_size / 2**20:.2f} MiB, for nasrec patch of the earlier package")
        return "\n".join(lines)


def export(
    model: Path | str,
    out: Path | str,
    config: ExportConfig = _DEFAULT_EXPORT,
    data: Path | str | None = None,
    ensemble_with: Sequence[Path | str] = (),
    together: bool = False,
    delta: Path | str | None = None,
) -> ExportedPackage:
    """Compiles a trained model with AOTInductor into a package: model.pt2, model.json that says how to feed it,
    golden.json.

    With the data set, the package also holds the words of its dictionaries, for scoring raw rows, and tells how its
    validation metrics differ from those of the trained model in float32. With ``calibrate`` it also holds a map of the
    logits that was fitted to the validation split, so that all who use it get calibrated probabilities.

    Args:
        model: run folder of a training, of any number of ranks.
        out: package folder; an earlier package is replaced when the new one is complete.
        config: how the model is exported.
        data: folder of the prepared data set.
        ensemble_with: run folders of further models of the same columns, such as other seeds, or the folder of the
            trees of a race; relative ones that do not exist here are looked for in the run folder. The package scores
            with the mean probability of all models, and takes as long as all of them.
        together: of a race, whether to add the models that predict better together with its winner, which its verdict
            names.
        delta: file to write besides, with what differs from the earlier package in ``out``: the rows of tables that
            were trained further, and the weights of the interaction. :func:`patch` turns copies of the earlier package
            into the new one with it.

    Returns:
        What was written.

    Raises:
        ValueError: If the run is one of a supernet, the models read different columns, the data set does not belong
            to them, the folder holds something else, there is no race whose models predict better together, or a delta
            is wanted and there is no earlier package.

    Example::

        from nasrec_torchrec import inference
        package = inference.export("runs/model", "runs/export", data="data/criteo")
        print(package)
    """
    from contextlib import ExitStack

    from nasrec_torchrec.datasets.prepared import digest_of, open_split
    from nasrec_torchrec.datasets.words import DICTIONARIES
    from nasrec_torchrec.inference import exporting
    from nasrec_torchrec.models.stored import load_model
    from nasrec_torchrec.models.stored_trees import load_member
    from nasrec_torchrec.runs.files import local_folder
    from nasrec_torchrec.runs.paths import to_path

    model, out, data = to_path(model), to_path(out), None if data is None else to_path(data)
    changes = None if delta is None else to_path(delta)
    if config.calibrate is not None and data is None:
        raise ValueError("calibrate: needs --data, to whose validation split the probabilities are fitted")
    exporting.check_place(out)
    description, trained = load_model(model)
    exporting.check_labels(description.schema, config)
    others = []
    for folder in map(to_path, [*ensemble_with, *(_together(model) if together else ())]):
        place = folder if folder.exists() else model / str(folder)
        columns, dictionaries, loaded = load_member(place)
        if (found := description.schema.difference(columns)) or dictionaries != dict(description.dictionaries):
            raise ValueError(
                f"ensemble_with: {place} reads other columns than {model}: {found or 'other dictionaries'}"
            )
        others.append(loaded)
    drift = None
    if data is not None:
        rows = description.read(open_split(data, "validation", tasks=True))
        drift = exporting.compare(trained, config, rows, others=others)
    metrics = {} if drift is None else drift.metrics
    recalibration = None if drift is None else drift.recalibration
    with ExitStack() as stack:
        words = None if data is None else stack.enter_context(local_folder(data / DICTIONARIES))
        origin = {} if data is None else {"training_data": digest_of(data, "train")}
        given = config, metrics, words, origin, recalibration, others, changes
        predictor = exporting.export(trained, description.schema, out, *given)
    size, requires = predictor.manifest["bytes"], tuple(predictor.manifest["requires"])
    delta_size = 0 if changes is None else changes.stat().st_size
    return ExportedPackage(out, size, requires, drift, changes, delta_size)


def patch(package: Path | str, delta: Path | str) -> str:
    """Turns a package into the one that a delta leads to, which replaces it once it is complete and verified.

    A server that watches the folder then serves the new one. A delta that changes another version than the one at hand
    is refused, and nothing is changed.

    Args:
        package: folder of the package that the delta changes.
        delta: file that ``nasrec export --delta`` wrote.

    Returns:
        The new version.

    Raises:
        ValueError: If the folder holds no package or another version, or the delta is damaged.
    """
    from nasrec_torchrec.inference import exporting
    from nasrec_torchrec.runs.paths import to_path

    return exporting.patch(to_path(package), to_path(delta)).version


def _together(race: Path) -> list[str]:
    """Returns the folders of the models that predict better together with the winner of a race."""
    from nasrec_torchrec.runs.files import read_json
    from nasrec_torchrec.runs.names import RESULTS

    file = race / RESULTS
    results = read_json(file, dict[str, Any]) if file.exists() else {}
    if "ensemble" not in results:
        raise ValueError(f"together: expected the run folder of a race that is over, found none in {race}")
    if results["ensemble"] is None:
        raise ValueError(f"together: {race}: no model of this race predicts better together with its winner")
    return list(results["ensemble"]["folders"][1:])


def score(
    package: Path | str,
    data: str | Sequence[str],
    out: Path | str,
    config: ScoringConfig = _DEFAULT_SCORING,
    text: TextFlags = _NO_FLAGS,
) -> dict[str, int]:
    """Writes the click probability of every row of files; a scoring that was killed resumes when it is started again.

    A model of several labels has a column for each, such as probability_clicked and probability_bought.

    Args:
        package: folder of an exported model.
        data: files, patterns with * and URIs, several separated by commas, or folders of Parquet files.
        out: folder that receives part-000000.parquet, ... with file, line and probability of each row.
        config: how the rows are scored.
        text: how lines of raw text become columns, if that differs from the training data.

    Returns:
        The numbers of scored and of rejected rows.

    Raises:
        ValueError: If the package or a file cannot be read, or the folder holds scores of something else.

    Example::

        from nasrec_torchrec import inference
        inference.score("runs/export", "data/criteo/test", "runs/scores")
    """
    from nasrec_torchrec.inference.scoring import score as score_files
    from nasrec_torchrec.runs.files import local_folder
    from nasrec_torchrec.runs.paths import to_path

    files = data.split(",") if isinstance(data, str) else data
    with local_folder(to_path(package)) as folder:
        return score_files(folder, files, to_path(out), config, text)


def score_on_ranks(
    model: Path | str,
    data: str | Sequence[str],
    out: Path | str,
    config: ScoringConfig = _DEFAULT_SCORING,
    text: TextFlags = _NO_FLAGS,
    words: Path | str | None = None,
    sharding_type: str | None = None,
) -> dict[str, int] | None:
    """Does the same as :func:`score` with the ranks of a launcher, straight from the sharded checkpoint of a run.

    Every rank holds a part of the tables alone, so that they may be larger than the memory of any machine. The memory
    of each rank is printed.

    Args:
        model: run folder of a training, of any number of ranks.
        words: folder of the prepared data that the model was trained on, which raw rows need for the words of its
            dictionaries; unset, the one that the run's record names.
        sharding_type: sharding type of all tables; unset, the planner chooses.

    The other arguments are those of :func:`~nasrec_torchrec.inference.jobs.score`.

    Returns:
        The numbers of scored and of rejected rows, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the run or a file cannot be read, or the folder holds scores of something else.
    """
    import torch.distributed as dist

    from nasrec_torchrec.datasets.prepared import check_sum
    from nasrec_torchrec.datasets.words import DICTIONARIES
    from nasrec_torchrec.distributed.process_group import process_group
    from nasrec_torchrec.distributed.sharded_model import describe_memory
    from nasrec_torchrec.inference.scoring import score_with
    from nasrec_torchrec.inference.sharded import ShardedPredictor
    from nasrec_torchrec.models.stored import recorded_data
    from nasrec_torchrec.runs.checkpoint import kept_checkpoint
    from nasrec_torchrec.runs.files import read_text
    from nasrec_torchrec.runs.fingerprint import digest
    from nasrec_torchrec.runs.names import DIGESTS
    from nasrec_torchrec.runs.paths import to_path

    files = data.split(",") if isinstance(data, str) else data
    run = to_path(model)
    with process_group() as device:
        predictor = ShardedPredictor(run, device, sharding_type)
        error, counts = None, None
        if dist.get_rank() == 0:
            try:
                prepared = recorded_data(run) if words is None else to_path(words)
                for name, checksum in predictor.description.dictionaries if config.raw else ():
                    if prepared is None or not (prepared / DICTIONARIES / name).exists():
                        raise ValueError(
                            f"{run}: {name}, with the words of its ids, is not in {prepared}; pass --words"
                        )
                    check_sum(prepared / DICTIONARIES / name, checksum)
                identity = digest(read_text(kept_checkpoint(run) / DIGESTS))
                counts = score_with(predictor, identity, prepared or run, files, to_path(out), config, text)
            except ValueError as failed:
                error = str(failed)
                raise
            finally:
                predictor.end(error)
        else:
            predictor.follow()
        memory = describe_memory(predictor.dmp)
        if dist.get_rank() == 0:
            print(memory, file=sys.stderr)
    return counts


def serve(package: Path | str | None = None, config: ServingConfig = _DEFAULT_SERVING) -> None:
    """Serves an exported model over the Open Inference Protocol until SIGTERM, then answers what it has accepted.

    /v2/models/NAME describes the model, /v2/models/NAME/infer scores, /docs shows the API, /metrics is for Prometheus.
    A new package in the same folder is verified and then takes the traffic.

    Args:
        package: folder of an exported model; a remote one is fetched once, at the start. To serve several, leave it out
            and name them in ``models``.
        config: how requests are served.

    Raises:
        ValueError: If a package cannot be used, or both or none of ``package`` and ``models`` are given.
    """
    if (package is None) != bool(config.models):
        raise ValueError("expected either --package or --models, found " + ("both" if config.models else "none"))
    from nasrec_torchrec.inference import server
    from nasrec_torchrec.runs.paths import to_path

    folders = config.models if package is None else {config.name: package}
    server.serve({name: to_path(folder) for name, folder in folders.items()}, config)
