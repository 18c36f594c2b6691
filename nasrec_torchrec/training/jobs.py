"""Training as functions, for notebooks and scripts: what ``nasrec train``, ``incremental``, ``supernet`` and
``evaluate`` do.

They join the process group that a launcher describes in the environment, or make one of a single process; PyTorch is
imported when one of them is called.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.messages import nearest
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.search_space import NASREC_FULL, SearchSpace
from nasrec_torchrec.table_widths import check_tables
from nasrec_torchrec.training.config import RecipeName, TrainConfig, TrainFlags

if TYPE_CHECKING:
    from torch import Tensor

    from nasrec_torchrec.datasets.reader import ClickFiles
    from nasrec_torchrec.models.description import ModelDescription
    from nasrec_torchrec.training.column_importance import ColumnImportance
    from nasrec_torchrec.training.evaluation import Evaluation
    from nasrec_torchrec.training.trials import Unreadable

_NO_FLAGS = TrainFlags()
_DEFAULT_BASELINE = Baseline()


def run(
    data: Path | str,
    out: Path | str,
    config: TrainFlags = _NO_FLAGS,
    baseline: Baseline = _DEFAULT_BASELINE,
    architecture: Architecture | Path | str | None = None,
    use_layernorm: bool = False,
    embedding_dim: int | None = None,
    learning_rates: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (),
    drop_features: tuple[str, ...] = (),
    recipe: RecipeName = "fitted",
    init_from: Path | str | None = None,
    init_data: Path | str | None = None,
    teachers: tuple[Path | str, ...] = (),
    teacher_share: float = 0.9,
    loss_weights: dict[str, float] | None = None,
) -> dict[str, Any] | None:
    """Trains NASRecNets from scratch, or a baseline to compare with, and keeps the best.

    With several architectures or learning rates each pair is one trial, repeated with every seed. The pair of the
    lowest mean validation log loss wins; its best seed, at its best epoch, becomes the run's checkpoint. The file
    metrics.json lists all trials, with test metrics that took no part in the choice. A training that was killed
    resumes when it is started again.

    A model predicts all labels of the data, which share every layer but the last one. The loss is the sum over the
    labels of the mean cross-entropy of the rows whose label is known, each times its weight. The first label alone
    decides which epoch and which trial is the best.

    Args:
        data: folder of a prepared data set.
        out: run folder; receives the logs, TensorBoard files, the checkpoint and metrics.json.
        config: how each model is trained; what it leaves open follows from the recipe. A TrainConfig leaves nothing
            open.
        baseline: the model to train where no architecture is given.
        architecture: JSON file of an architecture or a folder of such files, the name of a published architecture such
            as criteo-small, or a baseline such as dlrm, dcn or finalnet (--kind lists all). Unset, --kind names a
            baseline.
        use_layernorm: normalize after each linear layer of a NASRecNet.
        embedding_dim: embedding dimension of all tables; unset, the data set's schema decides.
        learning_rates: learning rates to try, instead of the one learning_rate.
        seeds: seeds to repeat every trial with, instead of the one seed.
        drop_features: dense and sparse features of the data that the model does not read; an exported model does not
            ask for them.
        init_from: run folder of an earlier training whose weights are the initial ones, as far as tables and features
            are the same; what is copied and what is new is printed.
        init_data: folder of the prepared data that the earlier training read; unset, the one that its record names.
            It is read only if words of a dictionary have other ids now.
        teachers: run folders of trained models, or folders of trees, by whose mean prediction for the training rows the
            model is taught besides the labels (distillation). They may be larger and read other columns of the data;
            one process scores the rows with them, once.
        teacher_share: weight of that prediction, above 0 and at most 1; the labels have the rest.
        loss_weights: weights of the losses of further labels, such as bought=0.5, instead of those of the data's
            schema; that of the first label is 1. A label of weight 0 is left out of the model.
        recipe: what decides the settings that are not given: fitted derives them from the number of rows and the size
            of the tables, and prints them; paper takes those of the NASRec paper for Criteo.

    Returns:
        The winning trial as metrics.json records it, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the data, the architecture or the settings are not usable, or do not fit each other.

    Example::

        from nasrec_torchrec import training
        best = training.run("data/criteo", "runs/model", architecture="criteo-small", learning_rates=(0.1, 0.2))
        print(best["mean_validation_log_loss"])
    """
    import torch.distributed as dist

    from nasrec_torchrec.datasets.prepared import load_schema, open_split
    from nasrec_torchrec.datasets.splits import SPLITS
    from nasrec_torchrec.distributed.process_group import process_group
    from nasrec_torchrec.models.description import ModelDescription
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.training.drift import drift
    from nasrec_torchrec.training.teaching import Teachers
    from nasrec_torchrec.training.trials import Splits, Unreadable, train_best
    from nasrec_torchrec.training.warm_start import WarmStart

    data, out = to_path(data), to_path(out)
    initial = None
    if init_from is not None:
        initial = WarmStart(to_path(init_from), data, None if init_data is None else to_path(init_data))
    weights = loss_weights or {}
    whole = load_schema(data, embedding_dim, tasks=True).with_loss_weights(weights)
    schema = whole.without(drop_features)
    taught_by = None
    if teachers:
        if schema.tasks:
            raise ValueError(
                f"teachers: expected one label, which they predict, found {', '.join(schema.labels)}; to leave the "
                f"others out: --loss_weights {','.join(f'{task.name}=0' for task in schema.tasks)}"
            )
        taught_by = Teachers(tuple(map(to_path, teachers)), teacher_share, open_split(data, "train"))
    models = []
    for found in _interactions(architecture, baseline):
        if isinstance(found, Architecture):
            # The description drops what it cannot use: widths of the tables of features that are left out.
            check_tables(dict(found.embedding_widths), whole.table_names)
        models.append(found if isinstance(found, Unreadable) else ModelDescription(schema, found, use_layernorm))
    with process_group() as device:
        if schema.tasks and dist.get_rank() == 0:
            shown = (f"{name} {weight:g}" for name, weight in zip(schema.labels, schema.loss_weights, strict=True))
            print(f"labels and the weights of their losses: {', '.join(shown)} (--loss_weights)", file=sys.stderr)
        splits = Splits(
            *(open_split(data, split, tasks=True).weighing(weights).without(drop_features) for split in SPLITS)
        )
        settings = _settings(
            config, recipe, splits.train, learning_rates, drifted=drift(splits.train, splits.validation)
        )
        rates, seeds = learning_rates or (settings.learning_rate,), seeds or (settings.seed,)
        return train_best(models, rates, seeds, settings, out, device, splits, initial, taught_by)


def run_incremental(
    data: Path | str,
    out: Path | str,
    config: TrainFlags = _NO_FLAGS,
    baseline: Baseline = _DEFAULT_BASELINE,
    architecture: Architecture | Path | str | None = None,
    use_layernorm: bool = False,
    embedding_dim: int | None = None,
    drop_features: tuple[str, ...] = (),
    recipe: RecipeName = "fitted",
    init_from: Path | str | None = None,
    init_data: Path | str | None = None,
    from_scratch: bool = False,
) -> dict[str, Any] | None:
    """Trains one model day after day, and measures it on each day's rows before it is trained on them.

    The rows of a day are those of all its splits. A day begins with the weights of the day before, as far as tables
    and features are the same; a word that is new begins as the row of unknown words, so that a day is measured as
    yesterday's package would have scored it. The optimizer starts afresh every day. The file results.json and the
    picture progressive.png show AUC, log loss and normalized entropy by day. Run the same command again when a day has
    been added, or after a kill: it resumes where it ended.

    Args:
        data: folder of the days, each a folder of prepared data whose name sorts by date, such as 2026-11-01.
        out: run folder; receives results.json, progressive.png, and the checkpoint of the last day.
        config: how each day is trained; what it leaves open follows from the first day's rows. Unset, a day is passed
            over once.
        architecture: JSON file of an architecture, the name of a published architecture such as criteo-small, or a
            baseline such as dlrm, dcn or finalnet (--kind lists all). Unset, --kind names a baseline.
        init_from: run folder of an earlier training whose weights the first day begins with.
        from_scratch: whether every day's model is trained from scratch, on the rows of that day alone, to see what the
            earlier days are worth.

    The other arguments are those of :func:`~nasrec_torchrec.training.jobs.run`.

    Returns:
        What results.json holds, on rank 0; None on all other ranks.

    Raises:
        ValueError: If the days, the architecture or the settings are not usable, or the folder holds another run.

    Example::

        from nasrec_torchrec import training
        days = training.run_incremental("data/days", "runs/daily", architecture="criteo-small")["days"]
        print([day["progressive"] for day in days])
    """
    from nasrec_torchrec.distributed.process_group import process_group
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.training.incremental import IncrementalTraining
    from nasrec_torchrec.training.trials import Unreadable

    models = _interactions(architecture, baseline)
    if len(models) != 1:
        raise ValueError(f"architecture: expected one, found {len(models)} files in {architecture}")
    if isinstance(models[0], Unreadable):
        raise ValueError(models[0].error)
    initial = None
    if init_from is not None:
        initial = to_path(init_from), None if init_data is None else to_path(init_data)
    training = IncrementalTraining(
        to_path(data),
        to_path(out),
        models[0],
        use_layernorm,
        embedding_dim,
        drop_features,
        config,
        recipe,
        initial,
        from_scratch,
    )
    with process_group() as device:
        return training.run(device)


def run_supernet(
    data: Path | str,
    out: Path | str,
    space: SearchSpace = NASREC_FULL,
    config: TrainFlags = _NO_FLAGS,
    use_layernorm: bool = True,
    embedding_dim: int | None = None,
    recipe: RecipeName = "fitted",
) -> None:
    """Trains a supernet: one model that holds the weights of every architecture of a search space.

    A training that was killed resumes when it is started again.

    Args:
        out: run folder; receives the log, TensorBoard files and the checkpoint.
        space: architectures that the supernet holds.
        config: how it is trained; what it leaves open follows from the recipe. A TrainConfig leaves nothing open.
        use_layernorm: normalize after each linear layer, over the width in use.
        recipe: what decides the settings that are not given: fitted derives them from the number of rows, and prints
            them; paper takes those of the NASRec paper for Criteo.

    The other arguments are those of :func:`~nasrec_torchrec.training.jobs.run`.

    Raises:
        ValueError: If the data or the settings are not usable, or do not fit each other.

    Example::

        from nasrec_torchrec import SearchSpace, training
        training.run_supernet("data/criteo", "runs/supernet", SearchSpace(num_blocks=3))
    """
    import torch.distributed as dist

    from nasrec_torchrec.datasets.prepared import label_alone, load_schema, open_split
    from nasrec_torchrec.distributed.process_group import process_group
    from nasrec_torchrec.models.description import ModelDescription
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.training.trainer import Trainer

    data, out = to_path(data), to_path(out)
    with process_group() as device:
        if (note := label_alone(data)) and dist.get_rank() == 0:
            print(note, file=sys.stderr)
        description = ModelDescription(load_schema(data, embedding_dim), space, use_layernorm)
        train = open_split(data, "train")
        Trainer(description, _settings(config, recipe, train, supernet=True), out, device).train(train)


def evaluate(
    model: Path | str,
    data: Path | str,
    split: Literal["train", "validation", "test"] = "test",
    batch_size: int | None = None,
    slices: tuple[str, ...] = (),
    sharding_type: str | None = None,
    importance: int = 0,
    report: Path | str | None = None,
) -> "Evaluation | None":
    """Measures a trained model, whatever number of ranks trained it.

    If the schema of the data names a column of weights, a row of weight 2 counts as two rows in every metric.

    With several ranks, in a process group or under a launcher, each loads a part of the tables alone, and the memory of
    each is printed.

    Args:
        model: run folder of a training.
        data: folder of a prepared data set.
        split: rows to measure on.
        batch_size: rows of a forward pass; unset, up to 4,096, as the memory of this machine allows.
        slices: features by whose values the rows are divided, to measure each part.
        sharding_type: sharding type of all tables on several ranks; unset, the planner chooses.
        importance: number of times that each column is shuffled, to measure how much the model relies on it; 0 leaves
            that out. Of a split with more than 100,000 rows, so many from all over it are taken.
        report: HTML file to write, which shows all that was measured.

    Returns:
        AUC, log loss, normalized entropy and calibration over all rows of the split, the metrics of its slices, and the
        importance of the columns, on rank 0; None on all other ranks.

    Raises:
        ValueError: If there is no complete checkpoint, the data set is not usable, or importance is asked for on
            several ranks.

    Example::

        from nasrec_torchrec import training
        print(training.evaluate("runs/model", "data/criteo").auc)
    """
    from nasrec_torchrec.datasets.prepared import data_warnings, open_split
    from nasrec_torchrec.datasets.row_weights import row_weights
    from nasrec_torchrec.distributed.process_group import launched_ranks
    from nasrec_torchrec.metrics.click_metrics import predict
    from nasrec_torchrec.metrics.passes import evaluation_rows
    from nasrec_torchrec.models.stored import load_model
    from nasrec_torchrec.runs.files import write_text
    from nasrec_torchrec.runs.log import warnings_of
    from nasrec_torchrec.runs.paths import to_path
    from nasrec_torchrec.training.column_importance import column_importances
    from nasrec_torchrec.training.evaluation import evaluation, slices_of
    from nasrec_torchrec.training.evaluation_page import page

    if importance < 0:
        raise ValueError(f"importance: expected a number of repeats, 0 or more, found {importance}")
    folder, run = to_path(data), to_path(model)
    rows = open_split(folder, split, tasks=True)
    shuffled: tuple[ColumnImportance, ...] = ()
    if launched_ranks() > 1:
        if importance:
            raise ValueError("importance: is measured by one process; start evaluate without a launcher")
        description, predicted = _predict_on_ranks(run, rows, batch_size or 4096, sharding_type)
    else:
        description, trained = load_model(run)
        read = description.read(rows)
        if batch_size is None:
            batch_size, reason = evaluation_rows(trained, read.schema)
            print(f"{reason} (--batch_size)", file=sys.stderr)
        predicted = predict(trained, read, batch_size)
        if importance:
            if read.schema.tasks:
                said = ", ".join(read.schema.labels)
                raise ValueError(f"importance: is measured of models of one label, this one predicts {said}")
            shuffled = column_importances(trained, folder, read, importance, batch_size=batch_size)
    if predicted is None:
        return None
    divided = {column: slices_of(folder, rows, rows.schema, column) for column in slices}
    labels = description.schema.labels
    found = evaluation(*predicted, divided, shuffled, row_weights(rows), rows.schema.weight, labels)
    if report is not None:
        warnings = list(dict.fromkeys([*data_warnings(folder), *warnings_of(run)]))
        write_text(to_path(report), page(found, str(model), str(data), split, warnings))
    return found


def _predict_on_ranks(
    model: Path, rows: "ClickFiles", batch_size: int, sharding_type: str | None
) -> "tuple[ModelDescription, tuple[Tensor, Tensor] | None]":
    """Returns what the model is and, on rank 0 alone, logits and labels."""
    import torch.distributed as dist

    from nasrec_torchrec.distributed.process_group import process_group
    from nasrec_torchrec.distributed.sharded_model import describe_memory, load_sharded, predict_on_ranks

    with process_group() as device:
        description, dmp = load_sharded(model, device, sharding_type)
        predicted = predict_on_ranks(dmp, description.read(rows), batch_size, device)
        memory = describe_memory(dmp)
        if dist.get_rank() != 0:
            return description, None
        print(memory, file=sys.stderr)
        return description, predicted


def _settings(
    flags: TrainFlags,
    recipe: RecipeName,
    rows: "ClickFiles",
    learning_rates: tuple[float, ...] = (),
    supernet: bool = False,
    drifted: float = 0.0,
) -> TrainConfig:
    """Returns the settings of a training on these rows, and prints on rank 0 what was chosen for it."""
    import torch.distributed as dist

    from nasrec_torchrec.training.recipes import fitted, paper

    if recipe == "paper":
        return paper(flags)
    settings, reason = fitted(flags, len(rows), rows.schema, dist.get_world_size(), supernet, learning_rates, drifted)
    if reason and dist.get_rank() == 0:
        print(reason, file=sys.stderr)
    return settings


def _interactions(
    architecture: Architecture | Path | str | None, baseline: Baseline
) -> "list[Architecture | Baseline | Unreadable]":
    """Returns the models that a name, a file or a folder of files stands for."""
    from nasrec_torchrec.models.published import PUBLISHED
    from nasrec_torchrec.runs.paths import to_path

    if isinstance(architecture, Architecture):
        return [architecture]
    if architecture is None or architecture in BASELINES:
        return [replace(baseline, kind=architecture or baseline.kind)]
    if architecture in PUBLISHED:
        return [PUBLISHED[str(architecture)]]
    path = to_path(architecture)
    if not path.exists():
        known = [*PUBLISHED, *BASELINES]
        raise ValueError(
            f"architecture: {architecture}: cannot be read: it is neither a file or a folder, nor one of "
            f"{', '.join(known)}{nearest(str(architecture), known)}"
        )
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"architecture: {architecture}: the folder holds no *.json file")
    return [_read(file) for file in files]


def _read(file: Path) -> "Architecture | Unreadable":
    """Returns an architecture; one that cannot be read is a trial that fails, while the others continue."""
    from nasrec_torchrec.runs.files import read_text
    from nasrec_torchrec.training.trials import Unreadable

    try:
        return Architecture.from_json(read_text(file))
    except ValueError as error:
        return Unreadable(file.name, f"{file}: {error}")
