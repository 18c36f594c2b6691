"""The end of a race: the winner and its seeds, the test split, read once, and the results."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasrec_torchrec.datasets.prepared import data_warnings, open_split
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.metrics.calibration import calibration
from nasrec_torchrec.metrics.click_metrics import click_metrics, row_losses
from nasrec_torchrec.metrics.paired import difference
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.models.stored_trees import TreeRecord, read_record
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.checkpoint import keep_best
from nasrec_torchrec.runs.files import read_json, write_text
from nasrec_torchrec.runs.folder import promote, remove_checkpoints
from nasrec_torchrec.search.race.book import Book
from nasrec_torchrec.search.race.chance import eligible, judgements
from nasrec_torchrec.search.race.choice import compared, winner
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.costs import LATENCY_ROWS, latencies_us
from nasrec_torchrec.search.race.leaderboard import by_source, front, standings
from nasrec_torchrec.search.race.predictions import Predictions, predict
from nasrec_torchrec.search.race.promotion import fidelity
from nasrec_torchrec.search.race.report import page
from nasrec_torchrec.search.race.together import predict_together
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.tree import TREE_BESIDE
from nasrec_torchrec.search.race.trial import Entry, trial_folder
from nasrec_torchrec.search.race.verdict import verdict
from nasrec_torchrec.search.race_warnings import race_warnings
from nasrec_torchrec.table_widths import table_sizes
from nasrec_torchrec.training.column_importance import column_importances
from nasrec_torchrec.training.config import Monitor
from nasrec_torchrec.training.drift import decisive
from nasrec_torchrec.training.evaluation import evaluation, slices_of

_FORMAT = "nasrec-torchrec/race/1"
# Rows and repeats by which the importance of the winner's columns is measured, within a few seconds.
_IMPORTANCE_ROWS, _REPEATS = 8192, 3


def read_results(out: Path) -> dict[str, Any] | None:
    """Returns the results of a race that is over.

    Raises:
        ValueError: If the file is no such thing.
    """
    if not (out / names.RESULTS).exists():
        return None
    results = read_json(out / names.RESULTS, dict[str, Any], "--resume never starts the race from scratch")
    if results.get("format") != _FORMAT:
        raise ValueError(f"{out / names.RESULTS}: expected the format {_FORMAT!r}, found {results.get('format')!r}")
    return results


def finish(
    book: Book,
    config: RaceConfig,
    data: RaceData,
    out: Path,
    device: torch.device,
    seconds: Callable[[], float],
    suspicious: Mapping[str, Any],
    combinations: int = 0,
    final: Path | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures the winner and what it is compared with on the test split, and writes the results.

    Args:
        book: holds the trials.
        config: configuration of the race.
        data: data set with all added features.
        out: run folder; receives ``results.json``, ``report.html`` and the winner's files.
        device: where latencies are measured.
        seconds: seconds that the race has taken so far.
        suspicious: histories that know too much, those in use and those left out.
        combinations: number of combinations of columns that were ranked.
        final: run folder of the winner that was trained on the validation rows too; it is the one to use then.
        origin: where the results come from: data, command, versions, device.

    Returns:
        dict: the results, as JSON values.

    Raises:
        ValueError: when no trial has a finite loss.
    """
    entries = book.entries()
    judged = judgements(entries, combinations)
    may_win = eligible(entries, combinations)
    best = winner(may_win, book.stored(out))
    if best is None:
        if errors := [str(entry.facts["error"]) for entry in entries if entry.status == "failed"]:
            raise ValueError(f"all {len(errors)} trials failed; the first one: {errors[0]}")
        raise ValueError("budget: no trial finished a single epoch; a larger budget is needed")
    predictions = Predictions(data, out, best.number)
    losses: dict[str, dict[str, list[Tensor]]] = {}
    named = compared(may_win, predictions.exist)
    measured = {
        name: _measure(entry, entries, data, predictions, losses.setdefault(name, {})) for name, entry in named.items()
    }
    _compare(measured, losses)
    if "fastest" in named:
        _add_latencies(measured, named, data, device)
        measured["fastest"]["folder"] = trial_folder(out, named["fastest"].number).relative_to(out).as_posix()
    measured["winner"] |= _parts(best, config, data, predictions)
    description = ModelDescription(data.schema(best.trial), best.trial.interaction)
    measured["winner"]["tables"] = table_sizes(description.schema.tables())
    measured["winner"]["importance"] = _importance(best, data, predictions.folder(best))
    alone = final is not None or config.ensemble == 1
    together = None if alone else predict_together(best, may_win, config.ensemble, data, predictions)
    measured |= _measured_trees(best, predictions)
    tree = read_record(out / names.RACE_TREE)
    if final is not None:
        measured["final_fit"] = _measure_final(best, final, data, out)
    whole = [entry for entry in entries if entry.status == "complete"]
    results = {
        "format": _FORMAT,
        "winner": best.number,
        "model": best.trial.to_dict(),
        "title": best.trial.title,
        "measured": measured,
        "ensemble": together,
        "leaderboard": (leaderboard := standings(entries)),
        "front": front(leaderboard),
        "features": {"combinations": combinations, "judged": [judgement.to_dict() for judgement in judged]},
        "sources": [*by_source(entries), *([] if tree is None else [_tree_source(tree, data.monitor)])],
        "fidelity": {
            kind: {str(share): tau for share, tau in fidelity(group).items()}
            for kind, group in (
                ("across recipes", [e for e in whole if e.trial.phase in ("recipes", "polish")]),
                ("within a recipe", [e for e in whole if e.trial.phase in ("features", "architectures")]),
            )
            if len(group) > 1
        },
        "trials": [
            {
                "number": entry.number,
                "trial": entry.trial.to_dict(),
                "status": entry.status,
                "losses": entry.losses,
                "aucs": entry.aucs,
                "seconds": entry.seconds,
                **entry.facts,
            }
            for entry in entries
        ],
        "warnings": race_warnings(
            data_warnings(data.folders[0]), [(entry.trial.title, entry.warnings) for entry in entries], best.warnings
        ),
        "rows": {split: data.rows(split) for split in ("train", "validation", "test")},
        "suspicious": suspicious,
        "config": asdict(config),
        "monitor": data.monitor,
        "origin": dict(origin or {}),
        "seconds": round(seconds(), 1),
    }
    results = json.loads(json_text(results))
    results["verdict"] = verdict(results)
    source = final or trial_folder(out, best.number)
    book.move(best.number)
    _move(source, out)
    write_text(out / names.REPORT, page(results))
    write_text(out / names.RESULTS, json_text(results, indent=2))
    keep_best(out)
    kept = [] if together is None else [out / folder for folder in together["folders"][1:]]
    if "fastest" in measured:
        kept.append(out / measured["fastest"]["folder"])
    for entry in entries:  # of the winner too, if another training of it has taken its place
        folder = trial_folder(out, entry.number)
        if folder in kept:
            keep_best(folder)  # it can be exported, alone or with others
        else:
            remove_checkpoints(folder)
    return results


def _measured_trees(best: Entry, predictions: Predictions) -> dict[str, dict[str, Any]]:
    """What the trees reached, with their metrics on the test split: the yardstick, and one of the winner's columns."""
    found = {}
    for folder, record in predictions.trees(best).items():
        shown = ("title", "recipe", "features", "sha256", "validation")
        tree = {key: value for key, value in vars(record).items() if key in shown}
        if predictions.data.rows("test"):
            tree["test"] = [asdict(click_metrics(*predictions.of_tree(folder, best, "test")))]
        found["tree" if folder.name == names.RACE_TREE else TREE_BESIDE] = tree
    return found


def _tree_source(record: TreeRecord, monitor: Monitor) -> dict[str, Any]:
    """Returns the tree as a row of the table of sources."""
    loss = decisive(record.validation[0], monitor)
    return {"source": record.title, "trials": 1, "seconds": record.seconds, "log_loss": loss, "gain": 0.0}


def _move(source: Path, out: Path) -> None:
    """The winner's files take their place in the run folder; those of a move that was killed are there already."""
    promote(source, out)
    if (source / names.LOG).exists():
        (source / names.LOG).replace(out / names.LOG)


def _compare(measured: dict[str, dict[str, Any]], losses: Mapping[str, Mapping[str, list[Tensor]]]) -> None:
    """Adds the difference of the winner to every other model, with its interval, on the split that is read last."""
    best = losses["winner"]
    split = "test" if best.get("test") else "validation"
    for name, found in measured.items():
        if _configuration(found) != _configuration(measured["winner"]) and best[split] and losses[name].get(split):
            found["difference"] = asdict(difference(best[split], losses[name][split]))


def _add_latencies(
    measured: dict[str, dict[str, Any]], named: Mapping[str, Entry], data: RaceData, device: torch.device
) -> None:
    """What the models take for the same number of rows, measured in turns."""
    models = {}
    for name, entry in named.items():
        model = ModelDescription(data.schema(entry.trial), entry.trial.interaction).build(torch.device("cpu"))
        models[name] = model, next(data.open("validation", entry.trial).evaluation_batches(LATENCY_ROWS))
    for name, latency in latencies_us(models, device).items():
        measured[name]["latency_us"] = latency


def _configuration(measured: Mapping[str, Any]) -> list[Any]:
    return [measured[name] for name in ("title", "recipe", "features", "dropped")]


def _measure(
    entry: Entry,
    entries: Sequence[Entry],
    data: RaceData,
    predictions: Predictions,
    losses: dict[str, list[Tensor]],
) -> dict[str, Any]:
    """Metrics of all seeds of a configuration that still have a checkpoint, each alone, that of the trial itself first.

    The log loss of every row is added to ``losses`` by split, for each seed.
    """
    alike = [e for e in entries if e.trial.configuration == entry.trial.configuration and e.measured]
    seeds = sorted(filter(predictions.exist, alike), key=lambda e: e.number != entry.number)
    found: dict[str, Any] = {"title": entry.trial.title, "features": list(entry.trial.features)}
    found["dropped"] = list(entry.trial.dropped)
    found["recipe"] = str(entry.trial.recipe)
    found["seeds"], found["trials"] = [e.trial.seed for e in seeds], [e.number for e in seeds]
    for split in ("validation", "test"):
        if not data.rows(split):
            continue
        scored = [predictions.of(seed, split) for seed in seeds]
        found[split] = [asdict(click_metrics(*rows)) for rows in scored]
        losses[split] = [row_losses(*rows) for rows in scored]
        if scored:
            found["calibration"] = asdict(calibration(*scored[0])) | {"split": split}
    return found


def _parts(best: Entry, config: RaceConfig, data: RaceData, predictions: Predictions) -> dict[str, Any]:
    """How the winner ranks the rows that are read last, and how good it is on parts of them."""
    split = "test" if data.rows("test") else "validation"
    folder = data.folders[0]
    files = open_split(folder, split)
    divided = {column: slices_of(folder, files, files.schema, column) for column in config.slice}
    logits, labels, weights = predictions.of(best, split)
    found = evaluation(logits, labels, divided, weights=weights)
    return {
        "roc": {"split": split, "auc": found.auc, "points": found.roc},
        "slices": {
            "split": split,
            "columns": {name: [asdict(p) for p in parts] for name, parts in found.slices.items()},
        },
    }


def _importance(best: Entry, data: RaceData, folder: Path) -> list[dict[str, Any]]:
    """How much the winner relies on each column, on the rows that decided."""
    _, model = load_model(folder)
    files = data.open("validation", best.trial)
    found = column_importances(model, data.folder(best.trial), files, _REPEATS, _IMPORTANCE_ROWS)
    return [asdict(one) for one in found]


def _measure_final(best: Entry, final: Path, data: RaceData, out: Path) -> dict[str, Any]:
    """Test metrics of the winner that was trained on the validation rows too."""
    found: dict[str, Any] = {
        "title": best.trial.title,
        "recipe": str(best.trial.recipe),
        "features": list(best.trial.features),
        "epochs": best.best_epoch,
    }
    if data.rows("test"):
        folder = final if (final / names.CHECKPOINTS).exists() else out
        files = data.open("test", best.trial)
        found["test"] = [asdict(click_metrics(*predict(folder, files), row_weights(files)))]
    return found
