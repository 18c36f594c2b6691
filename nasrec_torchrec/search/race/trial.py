"""A trial: what is trained, and what is known of its training."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nasrec_torchrec.architecture import Architecture, recorded
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.config import Phase
from nasrec_torchrec.search.race.recipe import Recipe

Status = Literal["running", "paused", "complete", "failed"]


@dataclass(frozen=True)
class Trial:
    """A model, its columns, its recipe and a seed.

    Args:
        phase: phase of the race that proposed the trial; trials of one phase compete for promotion.
        source: name of what proposed it: ``baseline``, ``random``, ``mutation``, ``surrogate``, ...
        interaction: the model.
        recipe: recipe of its training.
        features: names of the added features that it reads beside the data's own.
        seed: seed of its weights and of the order of its rows.
        dropped: names of the data's own features that it does not read, unless an added one is computed from them.
        teachers: numbers of the trials by whose mean prediction for the training rows the model is taught.
    """

    phase: Phase
    source: str
    interaction: Architecture | Baseline
    recipe: Recipe
    features: tuple[str, ...] = ()
    seed: int = 0
    dropped: tuple[str, ...] = ()
    teachers: tuple[int, ...] = ()

    @property
    def configuration(self) -> str:
        """Tells trials apart that differ in more than the seed, the phase and the source."""
        document = self.to_dict()
        for name in ("phase", "source", "seed"):
            del document[name]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def model(self) -> tuple[Any, ...]:
        """Trials for which this is equal differ in nothing but recipe, seed, phase and source."""
        return self.interaction, self.features, self.dropped, self.teachers

    def without_features(self) -> "Trial":
        """The same trial without added features."""
        return replace(self, features=())

    @property
    def columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The added and the dropped features: trials for which they are the same read the same columns."""
        return self.features, self.dropped

    @property
    def title(self) -> str:
        """A name for tables."""
        taught = ", taught" if self.teachers else ""
        if isinstance(self.interaction, Baseline):
            return f"{self.interaction.kind} {'-'.join(map(str, self.interaction.over_layers[:-1]))}{taught}"
        digest = hashlib.sha256(self.interaction.to_json(None).encode()).hexdigest()[:6]
        return f"nasrecnet {digest}{taught}"

    @property
    def is_baseline(self) -> bool:
        """Whether it is what a user would train without this package: a baseline that no other model taught."""
        return isinstance(self.interaction, Baseline) and not self.teachers

    def schema(self, base: Schema, whole: Schema) -> Schema:
        """Returns the columns that the model reads: those of the data but the dropped ones, and the added features."""
        added = tuple(feature for feature in whole.sparse if feature.name in self.features)
        needed = {name for feature in added for name in feature.cross}
        every = replace(base, sparse=(*base.sparse, *added))
        return every.without([name for name in self.dropped if name not in needed])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if isinstance(self.interaction, Baseline):
            kind, interaction = "baseline", json.loads(json.dumps(recorded(self.interaction)))
        else:
            kind, interaction = "architecture", json.loads(self.interaction.to_json(None))
        return {
            "phase": self.phase,
            "source": self.source,
            kind: interaction,
            "recipe": asdict(self.recipe),
            "features": list(self.features),
            "seed": self.seed,
            "dropped": list(self.dropped),
            **({"teachers": list(self.teachers)} if self.teachers else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Trial":
        """Reads what :meth:`to_dict` gave."""
        interaction: Architecture | Baseline
        if "baseline" in document:
            interaction = Baseline(**document["baseline"])
        else:
            interaction = Architecture.from_json(json.dumps(document["architecture"]))
        return cls(
            document["phase"],
            document["source"],
            interaction,
            Recipe(**document["recipe"]),
            tuple(document["features"]),
            document["seed"],
            tuple(document.get("dropped", ())),
            tuple(document.get("teachers", ())),
        )


def trial_folder(out: Path, number: int) -> Path:
    """Returns the run folder of a trial in the folder of its race."""
    return out / names.RACE_TRIALS / f"{number:04d}"


def columns_text(features: Sequence[str], dropped: Sequence[str]) -> str:
    """Names what a model reads beside, and instead of, the data's own columns; empty if that is nothing."""
    without = [f"without {', '.join(dropped)}"] if dropped else []
    return "; ".join([*([", ".join(features)] if features else []), *without])


@dataclass(frozen=True)
class Entry:
    """What is known of a trial.

    Args:
        number: position in the order of proposals.
        trial: trial that is trained.
        losses: validation log loss after every epoch so far.
        aucs: likewise; None where there is no AUC, since the validation rows have one label alone.
        seconds: that every epoch took.
        status: ``running`` until somebody trains it no further; ``paused`` at a rung, from where it may continue;
            ``complete``; ``failed`` when its training could not continue.
        facts: JSON values: parameters, measured latency, why it failed.
    """

    number: int
    trial: Trial
    losses: tuple[float, ...] = ()
    aucs: tuple[float | None, ...] = ()
    seconds: tuple[float, ...] = ()
    status: Status = "running"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> Mapping[str, str]:
        """What went wrong with its training, by kind."""
        return self.facts.get("warnings", {})

    @property
    def loss(self) -> float:
        """The lowest validation log loss so far, that of the epoch which is kept; infinite while there is none."""
        return min(filter(math.isfinite, self.losses), default=math.inf)

    @property
    def measured(self) -> bool:
        """Whether there is a loss to compare: one that is not a finite number is none."""
        return math.isfinite(self.loss)

    @property
    def latency_us(self) -> float:
        """Measured microseconds of a batch; infinite as long as they are not known."""
        return float(self.facts.get("latency_us", math.inf))

    @property
    def best_epoch(self) -> int:
        """The epoch of that loss, counted from 1."""
        return self.losses.index(self.loss) + 1 if self.measured else 0

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.losses)

    def loss_at(self, epoch: int) -> float:
        """The lowest loss of the first epochs."""
        return min(filter(math.isfinite, self.losses[:epoch]), default=math.inf)
