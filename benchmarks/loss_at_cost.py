"""Shows what the models that races shipped cost when they serve, beside the loss that they reached.

    python benchmarks/equal_seconds.py --data '[data/frappe]' --out runs/equal --only '[auto,random,baselines]'
    python benchmarks/loss_at_cost.py --data data/frappe --races runs/equal/frappe --out runs/frappe-costs.json

Each model is compiled as `nasrec export` compiles it, with random weights, which change no latency. All of them are
then called in turns with the same 512 rows of the validation split, on one thread. The times are processor times, so
that other work on the machine counts as little as it can. "Look-ups alone" is what the tables take, without a model.
Where a race names a model that is faster than its winner, that is measured too.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from equal_seconds_report import TITLES
from torch import Tensor

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import INDUCTOR_OPTIONS
from nasrec_torchrec.inference.scoring_model import ScoringModel, scoring_model, trace
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.trial import Trial

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Shipped:
    """A model that a race shipped.

    Args:
        procedure: procedure of the race.
        seed: seed of the race.
        measured: what it is to the race: the winner, or the fastest.
        title: name of the model.
        log_loss: its log loss on the test split.
        auc: its AUC there.
        latency_us: median processor time of a call, in microseconds.
        deviation_us: half the distance between the first and the last decile of it.
    """

    procedure: str
    seed: int
    measured: str
    title: str
    log_loss: float
    auc: float
    latency_us: float
    deviation_us: float


@torch.inference_mode()
def main(
    data: Path,
    races: Path,
    out: Path,
    procedures: tuple[str, ...] = ("auto", "random", "baselines"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rows: int = 512,
    calls: int = 400,
) -> None:
    """Measures the models of races on one data set, and prints a table, the fastest model first.

    Args:
        data: prepared data set that the races were given.
        races: folder with a run folder of every race, called by procedure and seed, such as auto-0.
        out: JSON file that receives the measurements.
        procedures: procedures to compare.
        seeds: seeds of their races.
        rows: number of rows of a call.
        calls: number of calls of every model.
    """
    torch.set_num_threads(1)
    base = load_schema(data)
    packages: dict[str, Call] = {}
    results = {}
    with tempfile.TemporaryDirectory() as work:
        for procedure in procedures:
            for seed in seeds:
                folder = races / f"{procedure}-{seed}"
                result = json.loads(read_text(folder / "results.json"))
                added = sorted(folder.glob("data-*"), key=lambda f: int(f.name.partition("-")[2]))
                split = RaceData((data, *added), base)
                for name, document in _models(result).items():
                    trial = Trial.from_dict(document)
                    results[procedure, seed, name] = result["measured"][name], trial
                    if (key := _key(trial)) in packages:
                        continue
                    description = ModelDescription(split.schema(trial), trial.interaction)
                    scoring = scoring_model(description.build().eval(), ExportConfig())
                    batch = next(split.open("validation", trial).evaluation_batches(rows))
                    sparse = batch.sparse_features
                    inputs = [sparse.values().long(), sparse.lengths().long().view(-1, rows)]
                    inputs = [batch.dense_features, *inputs] if scoring.has_dense else inputs
                    packages[key] = _compiled(scoring, tuple(inputs), Path(work) / f"{len(packages)}.pt2")
                    if "look-ups" not in packages and not trial.features:
                        packages["look-ups"] = _lookups(scoring, tuple(inputs))
        times = _in_turns(packages, calls)
    shipped = []
    for (procedure, seed, name), (measured, trial) in results.items():
        test = measured["test"][measured["seeds"].index(trial.seed)]
        shipped.append(Shipped(procedure, seed, name, trial.title, test["log_loss"], test["auc"], *times[_key(trial)]))
    shipped.sort(key=lambda one: one.latency_us)
    found = {"rows": rows, "look-ups": times.get("look-ups"), "shipped": [asdict(one) for one in shipped]}
    write_text(out, json.dumps(found, indent=2))
    print(f"| model | shipped by | test log loss | test AUC | microseconds for {rows} rows |\n|---|---|---:|---:|---:|")
    if found["look-ups"] is not None:
        print("| look-ups alone | | | | {:.0f} ± {:.0f} |".format(*times["look-ups"]))
    for one in shipped:
        by = f"{TITLES[one.procedure]}, seed {one.seed}"  # type: ignore[index]
        by += "" if one.measured == "winner" else f", its {one.measured}"
        latency = f"{one.latency_us:.0f} ± {one.deviation_us:.0f}"
        print(f"| {one.title} | {by} | {one.log_loss:.5f} | {one.auc:.5f} | {latency} |")


def _models(result: Mapping[str, Any]) -> dict[str, Any]:
    """The trials whose models a race names to be served."""
    found = {"winner": result["model"]}
    if (fastest := result["measured"].get("fastest")) is not None:
        found["fastest"] = result["trials"][int(Path(fastest["folder"]).name)]["trial"]
    return found


def _key(trial: Trial) -> str:
    return json.dumps([trial.title, *trial.columns])


def _compiled(scoring: ScoringModel, inputs: tuple[Tensor, ...], package: Path) -> Call:
    with torch.inference_mode(False), torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            trace(scoring), package_path=str(package), inductor_configs=INDUCTOR_OPTIONS
        )
        model = torch._inductor.aoti_load_package(str(package))
    return lambda: model(*inputs)


def _lookups(scoring: ScoringModel, inputs: tuple[Tensor, ...]) -> Call:
    ids, lengths = inputs[-2:]
    return lambda: scoring.tables(ids, lengths, None)


def _in_turns(packages: dict[str, Call], calls: int) -> dict[str, tuple[float, float]]:
    """Returns the median time of every package, and half the distance between its first and last decile."""
    times: dict[str, list[float]] = {name: [] for name in packages}
    for _ in range(calls):
        for name, call in packages.items():
            call()  # brings the code and the tables into the caches
            started = time.process_time()
            call()
            times[name].append(1e6 * (time.process_time() - started))
    deciles = {name: statistics.quantiles(found, n=10) for name, found in times.items()}
    return {
        name: (statistics.median(found), (deciles[name][-1] - deciles[name][0]) / 2) for name, found in times.items()
    }


if __name__ == "__main__":
    run(main)
