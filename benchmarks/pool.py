"""Trains a pool of models on one data set, by one recipe, so that searches can be compared by replaying them.

    nasrec prepare movielens100k --out data/movielens100k
    python benchmarks/pool.py --data data/movielens100k --out runs/pool --pool benchmarks/pools/movielens.json
    python benchmarks/pool_report.py --pool benchmarks/pools/movielens.json

The pool has random architectures, what searches in two supernets proposed, mutations of the best, random architectures
of the space NASREC_2026, and baselines. The recipe is the best of those that ``auto`` starts from, on DLRM and a random
architecture. Of every training the pool keeps the validation loss after every epoch, and the test
metrics of the best epoch. It also keeps the loss of every architecture with the weights of every supernet, after some
numbers of epochs, before and after the last layer was fine-tuned.

The pool is written after every training, so a run that was killed resumes when the same command is given again.
Seconds are processor seconds of the one process.
"""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import MANIFEST, load_schema, open_split, sha256
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig
from nasrec_torchrec.search.cost import cost, model_multiply_adds
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.evolution import evolve, one_by_one
from nasrec_torchrec.search.race.config import RACE_SPACES
from nasrec_torchrec.search.race.costs import step_seconds
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import Recipe, starting_recipes
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

_Made: TypeAlias = tuple[Architecture | Baseline, dict[str, Any]]
_FULL, _MODERN = "nasrec-full", "nasrec-2026"
_SMALL, _LARGE = (128, 64, 1), (256, 256, 1)


@dataclass(frozen=True)
class Plan:
    """What the pool holds.

    Args:
        random: Number of random architectures of NASRec's operators.
        searched: Number of architectures that the search in each supernet proposes.
        mutations: Number of mutations of the best random architectures.
        modern: Number of random architectures of NASREC_2026.
        epochs: Epochs of every training.
        batch_size: Batch size of every training.
        max_flops: FLOPs per example that an architecture may cost. On MovieLens-100K, DLRM_DCN costs 200,000.
        seeds: Seeds of the architectures.
        baseline_seeds: Seeds of the baselines, and of the best architectures of both spaces.
        supernet_seeds: Seeds of every kind of supernet.
        supernet_epochs: Epochs after which a supernet is measured; it is trained for the last of them.
        candidates: Number of candidates of the search in each supernet.
        stages: What to do now, in this order: some of recipe, supernets, random, baselines, searched, mutations,
            ranks, seeds, modern. Each needs those before it, except for the last two.
        quick: Runs a small part of everything, to see that it works.
    """

    random: int = 30
    searched: int = 10
    mutations: int = 12
    modern: int = 30
    epochs: int = 4
    batch_size: int = 512
    max_flops: int = 120_000
    seeds: tuple[int, ...] = (0, 1)
    baseline_seeds: tuple[int, ...] = (0, 1, 2)
    supernet_seeds: tuple[int, ...] = (0, 1)
    supernet_epochs: tuple[int, ...] = (1, 4)
    candidates: int = 96
    stages: tuple[str, ...] = (
        *("recipe", "supernets", "random", "baselines", "searched", "mutations", "ranks", "seeds", "modern"),
    )
    quick: bool = False

    @property
    def supernets(self) -> dict[str, TrainConfig]:
        """The kinds of supernets, by name: that of benchmarks/quality.py."""
        return {"usual": TrainConfig(self.supernet_epochs[-1], 256, 0.05, full_path_steps=100, log_every=100)}


def main(data: Path, out: Path, pool: Path, plan: Plan) -> None:
    """Does what is missing in the pool.

    Args:
        data: The prepared data set.
        out: Folder for checkpoints, which may be deleted afterwards.
        pool: JSON file that holds the pool.
    """
    torch.set_num_threads(1)
    if plan.quick:
        plan = replace(plan, random=6, searched=2, mutations=2, modern=2, epochs=2, candidates=12)
        plan = replace(plan, seeds=(0,), baseline_seeds=(0,), supernet_seeds=(0,), supernet_epochs=(1, 2))
    with process_group() as device:
        work = Pool(data, out, pool, plan, device)
        for stage in plan.stages:
            getattr(work, stage)()


class Pool:
    """The pool and the stages that fill it."""

    def __init__(self, data: Path, out: Path, file: Path, plan: Plan, device: torch.device) -> None:
        self.data, self.out, self.file, self.plan, self.device = data, out, file, plan, device
        self.schema = load_schema(data)
        self.splits = {split: open_split(data, split) for split in ("train", "validation", "test")}
        manifest = sha256(data / MANIFEST)
        rows = {split: len(files) for split, files in self.splits.items()}
        self.found: dict[str, Any] = {"data": manifest, "rows": rows, "recipes": [], "models": [], "supernets": []}
        if file.exists():
            self.found = json.loads(read_text(file))
            if self.found["data"] != manifest:
                raise ValueError(f"{file}: holds trainings on other data than {data}; choose another --pool")
        self.batch = next(self.splits["train"].evaluation_batches(256))

    def save(self) -> None:
        """Writes the pool, one line for every model."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        for name, value in self.found.items():
            if isinstance(value, list) and value:
                inner = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
                parts.append(f"{json.dumps(name)}: [\n{inner}\n]")
            else:
                parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
        write_text(self.file, "{\n" + ",\n".join(parts) + "\n}\n")

    def recipe(self) -> None:
        """Chooses the recipe: the lowest mean validation loss of a baseline and a random architecture."""
        if "recipe" in self.found:
            return
        tried: list[dict[str, Any]] = self.found["recipes"]
        generator = torch.Generator().manual_seed(1)
        judges: list[Architecture | Baseline] = [
            Baseline("dlrm", (64, self.schema.embedding_dim), _SMALL),
            next(self._samples(_FULL, generator)),
        ]

        def loss(recipe: Recipe) -> float:
            known = next((one for one in tried if one["recipe"] == asdict(recipe)), None)
            if known is None:
                runs = [self._train(judge, recipe, 0, f"recipe-{len(tried)}-{n}") for n, judge in enumerate(judges)]
                known = {"recipe": asdict(recipe), "losses": [min(one["losses"]) for one in runs]}
                known["seconds"] = round(sum(one["seconds"] for one in runs), 1)
                tried.append(known)
                self.save()
            return statistics.fmean(known["losses"])

        first = starting_recipes(self.schema, len(self.splits["train"]), self.plan.epochs)
        first = [replace(one, batch_size=self.plan.batch_size) for one in first]
        best = min(first[: 2 if self.plan.quick else None], key=loss)
        self.found["recipe"] = asdict(best)
        self.save()

    def random(self) -> None:
        """Draws random architectures and trains them."""
        self._draw("random", self.plan.random, _FULL)

    def baselines(self) -> None:
        """Trains every kind of baseline in two sizes, and the better one with further seeds."""
        for kind in BASELINES:
            for layers in (_SMALL, _LARGE):
                baseline = Baseline(kind, (64, self.schema.embedding_dim), layers)
                title = f"{kind} {'-'.join(map(str, layers[:-1]))}"
                self._model(title, "baseline", (baseline, {}), "")
        self._train_all("baseline", self.plan.baseline_seeds[:1])
        for kind in BASELINES:
            sizes = [model for model in self._of("baseline") if model["baseline"]["kind"] == kind]
            best = min(sizes, key=lambda model: min(model["runs"]["0"]["losses"]))
            self._train_model(best, self.plan.baseline_seeds)

    def supernets(self) -> None:
        """Trains the supernets and keeps their weights after some epochs."""
        for kind, config in self.plan.supernets.items():
            for seed in self.plan.supernet_seeds:
                if self._supernet(kind, seed) is None:
                    seconds = self._train_supernet(kind, replace(config, seed=seed))
                    self.found["supernets"].append({"kind": kind, "seed": seed, "seconds": seconds, "ranks": {}})
                    self.save()

    def searched(self) -> None:
        """Searches in the usual supernets, and trains the best candidates of each."""
        kind = next(iter(self.plan.supernets))
        for seed in self.plan.supernet_seeds:
            supernet = self._supernet(kind, seed)
            assert supernet is not None
            if "proposals" not in supernet:
                started = time.process_time()
                found = self._search(self._checkpoint(kind, seed, self.plan.supernet_epochs[-1]), seed)
                supernet["search_seconds"] = round(time.process_time() - started, 1)
                supernet["proposals"] = [json.loads(a.to_json(None)) for a in found]
                self.save()
            for number, document in enumerate(supernet["proposals"]):
                architecture = Architecture.from_json(json.dumps(document))
                facts = {"supernet": seed, "place": number}
                self._model(
                    f"searched-{seed}-{number:02d}",
                    "searched",
                    (architecture, facts),
                    _FULL,
                )
        self._train_all("searched", self.plan.seeds[:1])

    def mutations(self) -> None:
        """Mutates the best third of the random architectures in turn, and trains the children."""
        ranked = sorted(self._of("random"), key=lambda model: min(model["runs"]["0"]["losses"]))
        parents = ranked[: max(1, len(ranked) // 3)]
        space = _space(_FULL)

        def child(number: int) -> tuple[Architecture, dict[str, Any]]:
            generator = torch.Generator().manual_seed(number)
            parent = parents[number % len(parents)]
            while True:
                found = space.mutate(_interaction(parent), generator)
                if self._allowed(found) and found.canonical() not in self._known():
                    return found, {"parent": parent["name"]}

        for number in range(self.plan.mutations):
            self._model(f"mutation-{number:02d}", "mutation", partial(child, number), _FULL)
        self._train_all("mutation", self.plan.seeds[:1])

    def modern(self) -> None:
        """Draws random architectures of NASREC_2026 within the same limit, and trains them."""
        self._draw("modern", self.plan.modern, _MODERN)

    def _draw(self, source: str, count: int, space: str) -> None:
        samples = self._samples(space, torch.Generator().manual_seed(0))
        for number, found in enumerate(islice(samples, count)):
            self._model(f"{source}-{number:02d}", source, (found, {}), space)
        self._train_all(source, self.plan.seeds[:1])

    def seeds(self) -> None:
        """Repeats all architectures of NASRec's operators with further seeds, then the best three of both spaces."""
        for seed in self.plan.seeds[1:]:
            for source in ("random", "searched", "mutation"):
                self._train_all(source, (seed,))
        for source in ("random", "modern"):
            ranked = sorted(self._of(source), key=lambda model: min(model["runs"]["0"]["losses"]))
            for model in ranked[:3]:
                self._train_model(model, self.plan.baseline_seeds)

    def ranks(self) -> None:
        """Measures all architectures of NASRec's operators in every supernet."""
        models = [model for model in self.found["models"] if model["space"] == _FULL]
        for kind in self.plan.supernets:
            for seed in self.plan.supernet_seeds:
                supernet = self._supernet(kind, seed)
                assert supernet is not None
                for epochs in self.plan.supernet_epochs:
                    self._rank(supernet, epochs, models)

    def _rank(self, supernet: dict[str, Any], epochs: int, models: list[dict[str, Any]]) -> None:
        known = supernet["ranks"].setdefault(str(epochs), {})
        missing = [model for model in models if model["name"] not in known]
        if not missing:
            return
        loaded = load_supernet(self._checkpoint(supernet["kind"], supernet["seed"], epochs), self.device)
        losses: list[list[float]] = []
        started = time.process_time()
        for steps in (0, 60):
            with Evaluator(
                loaded, self.splits["train"], self.splits["validation"], EvaluationConfig(steps, 256, race_tolerance=0)
            ) as evaluator:
                losses.append([evaluator(_interaction(model)).loss for model in missing])
        seconds = time.process_time() - started
        for model, *pair in zip(missing, *losses, strict=True):
            known[model["name"]] = [round(loss, 6) for loss in pair]
        supernet["rank_seconds"] = round(seconds / len(missing), 3)
        self.save()

    def _train_supernet(self, kind: str, config: TrainConfig) -> dict[str, float]:
        """Trains one, and returns the seconds after which it has had each number of epochs."""
        description = ModelDescription(self.schema, _space(_FULL), use_layernorm=True)
        folder = self.out / f"supernet-{kind.replace(' ', '-')}-{config.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        seconds: dict[str, float] = {}
        spent = 0.0
        for epochs in self.plan.supernet_epochs:
            started = time.process_time()
            trainer = Trainer(description, config, folder, self.device)
            trainer.train(self.splits["train"], None, partial(_reached, epochs))
            spent += time.process_time() - started
            seconds[str(epochs)] = round(spent, 1)
            copy = self._checkpoint(kind, config.seed, epochs)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
        return seconds

    def _search(self, folder: Path, seed: int) -> list[Architecture]:
        """Returns the best candidates of regularized evolution in a supernet."""
        population = self.plan.candidates // 4
        config = EvolutionConfig(population, (self.plan.candidates - population) // 8, 8, max(2, population // 4), seed)
        loaded = load_supernet(folder, self.device)
        with Evaluator(loaded, self.splits["train"], self.splits["validation"], EvaluationConfig(60, 256)) as evaluator:
            candidates = list(evolve(_space(_FULL), one_by_one(evaluator), config, allowed=self._allowed))
        candidates.sort(key=lambda candidate: candidate.loss)
        new = [c.architecture for c in candidates if c.architecture.canonical() not in self._known()]
        return new[: self.plan.searched]

    def _checkpoint(self, kind: str, seed: int, epochs: int) -> Path:
        return self.out / f"supernet-{kind.replace(' ', '-')}-{seed}-after-{epochs}"

    def _supernet(self, kind: str, seed: int) -> dict[str, Any] | None:
        found = (one for one in self.found["supernets"] if (one["kind"], one["seed"]) == (kind, seed))
        return next(found, None)

    def _of(self, source: str) -> list[dict[str, Any]]:
        return [model for model in self.found["models"] if model["source"] == source]

    def _known(self) -> set[Architecture]:
        return {_interaction(model).canonical() for model in self.found["models"] if "architecture" in model}

    def _allowed(self, architecture: Architecture) -> bool:
        sizes = len(self.schema.dense), len(self.schema.sparse), self.schema.embedding_dim
        return 2 * cost(architecture, *sizes).multiply_adds <= self.plan.max_flops

    def _samples(self, space: str, generator: torch.Generator) -> Iterator[Architecture]:
        seen: set[Architecture] = set()
        while True:
            found = _space(space).sample(generator)
            if self._allowed(found) and found.canonical() not in seen:
                seen.add(found.canonical())
                yield found

    def _model(self, name: str, source: str, make: _Made | Callable[[], _Made], space: str) -> None:
        """Adds a model that the pool does not have yet."""
        if any(model["name"] == name for model in self.found["models"]):
            return
        interaction, facts = make() if callable(make) else make
        description = ModelDescription(self.schema, interaction)
        built = description.build(torch.device("cpu"))
        document: dict[str, Any] = {"name": name, "source": source, "space": space, **facts}
        if isinstance(interaction, Baseline):
            document["baseline"] = asdict(interaction)
        else:
            document["architecture"] = json.loads(interaction.to_json(None))
        document["parameters"] = dense_parameters(built)
        document["multiply_adds"] = model_multiply_adds(built, self.batch)
        document["step_ms"] = round(1e3 * step_seconds(description, self.batch, self.device), 2)
        self.found["models"].append({**document, "runs": {}})

    def _train_all(self, source: str, seeds: tuple[int, ...]) -> None:
        for seed in seeds:
            for model in self._of(source):
                self._train_model(model, (seed,))

    def _train_model(self, model: dict[str, Any], seeds: tuple[int, ...]) -> None:
        for seed in seeds:
            if str(seed) not in model["runs"]:
                found = self._train(_interaction(model), Recipe(**self.found["recipe"]), seed, "training")
                model["runs"][str(seed)] = found
                self.save()
                print(f"{model['name']} seed {seed}: {min(found['losses']):.5f}, {found['seconds']:.0f} s", flush=True)

    def _train(self, interaction: Architecture | Baseline, recipe: Recipe, seed: int, name: str) -> dict[str, Any]:
        """Returns the curve of one training, and the test metrics of its best epoch."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        losses: list[float] = []

        def report(_epoch: int, loss: float, _auc: float, _seconds: float) -> bool:
            losses.append(round(loss, 6))
            return False

        started = time.process_time()
        trial = Trial("architectures", "pool", interaction, recipe, (), seed)
        train_trial(trial, recipe.epochs, RaceData((self.data,), self.schema), folder, self.device, report)
        seconds = time.process_time() - started
        test = click_metrics(*predict(folder, self.splits["test"]))
        shutil.rmtree(folder)
        return {
            "losses": losses,
            "test": {"log_loss": round(test.log_loss, 6), "auc": round(test.auc or 0.5, 6)},
            "seconds": round(seconds, 2),
        }


def _reached(epochs: int, done: float, _metrics: ClickMetrics | None) -> bool:
    return round(done) >= epochs


def _space(name: str) -> SearchSpace:
    return SearchSpace(**asdict(RACE_SPACES[name]))


def _interaction(model: dict[str, Any]) -> Any:
    if "baseline" in model:
        return Baseline(**model["baseline"])
    return Architecture.from_json(json.dumps(model["architecture"]))


if __name__ == "__main__":
    run(main)
