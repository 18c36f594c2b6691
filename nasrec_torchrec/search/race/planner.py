"""What is done next, as a function of what is known: a killed race resumes as the undisturbed one would continue."""

import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.limits import Fit, unchanged
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.chance import MOST_SEEDS
from nasrec_torchrec.search.race.choice import finalists, regularized
from nasrec_torchrec.search.race.config import WITHOUT_STUDENTS, RaceConfig, Source
from nasrec_torchrec.search.race.promotion import (
    calibrated_shares,
    overfitted,
    promotable,
    rung_epochs,
    study_in_memory,
)
from nasrec_torchrec.search.race.recipe import Recipe, neighbours, with_parameters
from nasrec_torchrec.search.race.situation import Situation
from nasrec_torchrec.search.race.students import students, teachers_of
from nasrec_torchrec.search.race.surrogate import Surrogate
from nasrec_torchrec.search.race.trial import Entry, Phase, Status, Trial
from nasrec_torchrec.search_space import SearchSpace

_TPE_STARTUP = 4
# The first trainings, by which rungs are calibrated, and the share of a budget that they may take.
_CALIBRATING, _CALIBRATION_SHARE = 3, 0.25
# The source of trainings that fill the end of a budget.
_SHORTER = "shorter schedule"
# Trials beside the finalists that keep a checkpoint.
KEPT_BESIDE = 3


@dataclass(frozen=True)
class Continue:
    """Train a trial up to an epoch."""

    entry: Entry
    until: int


@dataclass(frozen=True)
class New:
    """Record a new trial."""

    trial: Trial


@dataclass(frozen=True)
class Finished:
    """Nothing is left to do, or, with ``waiting``, nothing until other workers are done."""

    waiting: bool = False


Action: TypeAlias = Continue | New | Finished


class Planner:
    """Decides about a race.

    Args:
        config: configuration of the race.
        space: search space of random architectures.
        recipes: recipes to try first.
        recipe_choices: gives what a sampler may choose around a recipe.
        embedding_dim: embedding dimension of the tables.
        allowed: whether an architecture is within the limits.
        references: known models that the search space holds.
        fit: what brings a drawn architecture within a limit, where something can.
    """

    def __init__(
        self,
        config: RaceConfig,
        space: SearchSpace,
        recipes: Sequence[Recipe],
        recipe_choices: Callable[[Recipe], dict[str, BaseDistribution]],
        embedding_dim: int,
        allowed: sources.Allowed,
        references: Sequence[Architecture] = (),
        fit: Fit = unchanged,
    ) -> None:
        self._config, self._space, self._recipes = config, space, list(recipes)
        self._choices, self._embedding_dim, self._allowed = recipe_choices, embedding_dim, allowed
        self._references, self._fit = [fit(found, torch.Generator()) for found in references], fit

    def next(self, situation: Situation) -> Action:
        """Returns what a free worker does now."""
        entries = situation.entries
        for entry in entries:  # what a dead worker has left, or this one has just begun
            if entry.status == "running" and entry.number not in situation.busy:
                return Continue(entry, entry.facts.get("until") or self._until(entry, situation))
        over = situation.spent >= 1 or (situation.seconds_left or 1.0) <= 0
        if not over or self._config.trials is not None:
            tried = set()
            for entry in sorted(entries, key=lambda entry: entry.loss):
                rung = entry.trial.phase, entry.epochs, entry.trial.recipe.epochs
                if entry.status != "paused" or entry.number in situation.busy or rung in tried:
                    continue
                tried.add(rung)  # where the best one is not promoted, no other is
                if self._affordable(situation, entry) and self._promoted(entry, situation):
                    return Continue(entry, self._until(entry, situation))
        if over:
            return Finished(waiting=bool(situation.busy))
        trial = self._propose(situation)
        if trial is None:
            return Finished(waiting=bool(situation.busy))
        return New(trial)

    def status_of(self, entry: Entry) -> Status:
        """Returns what happens to a trial that has reached the end of its current training."""
        done = entry.epochs >= entry.trial.recipe.epochs or overfitted(entry)
        return "complete" if done else "paused"

    def shares(self, phase: Phase, entries: Sequence[Entry]) -> tuple[float, ...]:
        """Returns the rungs of a phase."""
        whole = [entry for entry in entries if entry.status == "complete"]
        # Across recipes early losses say less than within one.
        across = phase in ("recipes", "polish")
        return calibrated_shares([e for e in whole if (e.trial.phase in ("recipes", "polish")) == across], across)

    def _until(self, entry: Entry, situation: Situation) -> int:
        """Returns the next rung of a trial, or its end."""
        last = entry.trial.recipe.epochs
        repeated = entry.trial.phase == "features" and entry.trial.seed != self._config.seed
        whole = entry.trial.phase == "finals" or entry.trial.source == _SHORTER or repeated or entry.trial.teachers
        if whole or self._calibrates(entry, situation):
            return last
        rungs = rung_epochs(last, self.shares(entry.trial.phase, situation.entries))
        return next((epoch for epoch in rungs if epoch > entry.epochs), last)

    def _calibrates(self, entry: Entry, situation: Situation) -> bool:
        """Returns whether a trial runs to its end whatever its loss; the first trials do, to calibrate the rungs.

        A small budget cannot pay for that, so those after the first one do only while all together are expected to
        take no more than a quarter of it.
        """
        if entry.number == 0 or situation.seconds_left is None:
            return entry.number < _CALIBRATING
        expected = situation.spent * (entry.number + 1) / entry.number
        return entry.number < _CALIBRATING and expected <= _CALIBRATION_SHARE

    def _promoted(self, entry: Entry, situation: Situation) -> bool:
        phase = entry.trial.phase
        leader = next((e for e in situation.eligible if e.status == "complete"), None)
        rivals = [e for e in situation.entries if e.trial.phase == phase or (phase != "recipes" and e is leader)]
        return promotable(entry, rivals, self.shares(phase, situation.entries), self._config.reduction_factor)

    def _affordable(self, situation: Situation, entry: Entry) -> bool:
        """Returns whether a training can end in the time that is left, since its loss is best at the end."""
        left = entry.trial.recipe.epochs - entry.epochs
        return situation.seconds_left is None or left * max(entry.seconds, default=0.0) <= situation.seconds_left

    def _propose(self, situation: Situation) -> Trial | None:
        entries = situation.entries
        phase = self._config.phase(situation.spent)
        if phase != "recipes" and not any(entry.measured for entry in entries):
            phase = "recipes"
        if phase not in ("recipes", "finals") and not self._fits_whole(situation):
            phase = "finals"
        if phase == "architectures" and self._delays_students(situation):
            phase = "polish"
        generator = torch.Generator().manual_seed((self._config.seed << 20) + len(entries))
        late = phase in ("architectures", "polish") and self._missed_features(situation)
        if phase == "features" or late:
            proposals = [self._propose_dropped, self._propose_features]
            if situation.history_helps:  # then others promise more than columns to leave out
                proposals.reverse()
            for propose in proposals:
                if (trial := propose(situation)) is not None:
                    return trial
            phase = "architectures" if phase == "features" else phase
        if phase == "recipes":
            return self._propose_recipe(entries, "recipes")
        if phase == "architectures":
            return self._propose_architecture(situation, generator)
        if phase == "polish":
            return self._propose_polish(situation)
        return self._missed_student(situation) or self._propose_final(situation)

    def _delays_students(self, situation: Situation) -> bool:
        """Returns whether one more architecture is expected to take the time in which students are taught."""
        whole = [sum(entry.seconds) for entry in situation.entries if entry.status == "complete"]
        if situation.seconds_left is None or not self._config.students or not whole:
            return False
        budget = situation.seconds_left / (1 - situation.spent)
        return situation.spent + statistics.fmean(whole) / budget > WITHOUT_STUDENTS

    def _missed_features(self, situation: Situation) -> bool:
        """Returns whether the time for features passed before all histories were tried, or those beside one that helps.

        The best history alone may miss by a hair what all together gain many times over.
        """
        tried = [set(entry.trial.features) for entry in situation.entries]
        if not any(tried) or situation.lacks_histories:
            return True
        beside = (set(names) for names in situation.histories)
        return situation.history_helps and not all(any(names <= one for one in tried) for names in beside)

    def _fits_whole(self, situation: Situation) -> bool:
        """Returns whether a training as long as the best one fits into the time that is left."""
        if situation.seconds_left is None:
            return True
        best = situation.eligible[0]
        return _epoch_seconds(best) * best.trial.recipe.epochs <= situation.seconds_left

    def _new(self, phase: Phase, source: str, like: Trial | None = None, **changes: Any) -> Trial:
        if like is None:
            model = sources.cheap_baseline(self._embedding_dim)
            like = Trial(phase, source, model, self._recipes[0], (), self._config.seed)
        return replace(like, phase=phase, source=source, **{"seed": self._config.seed, **changes})

    def _propose_recipe(self, entries: Sequence[Entry], phase: Phase, like: Trial | None = None) -> Trial:
        known = {entry.trial.configuration for entry in entries}
        if like is None:
            for recipe in self._recipes:
                trial = self._new(phase, "baseline", recipe=recipe)
                if trial.configuration not in known:
                    return trial
        base = like or self._new(phase, "baseline")
        of_kind = [
            entry
            for entry in entries
            if entry.measured
            and entry.trial.interaction == base.interaction
            and (entry.trial.features, entry.trial.dropped, entry.trial.teachers)
            == (base.features, base.dropped, base.teachers)
        ]
        best = min(of_kind, key=lambda entry: entry.loss, default=None)
        recipe = best.trial.recipe if best else base.recipe
        choices = self._choices(recipe)
        seed = (self._config.seed << 20) + len(entries)
        study = study_in_memory(TPESampler(seed=seed, n_startup_trials=_TPE_STARTUP, multivariate=True))
        for entry in of_kind:
            values = {name: getattr(entry.trial.recipe, name) for name in choices}
            fits = all(_holds(choices[name], value) for name, value in values.items())
            if fits and entry.trial.recipe.optimizer == recipe.optimizer:
                study.add_trial(
                    create_trial(
                        state=TrialState.COMPLETE if entry.status == "complete" else TrialState.PRUNED,
                        value=entry.loss,
                        params=values,
                        distributions=choices,
                        intermediate_values=dict(enumerate(entry.losses, start=1)),
                    )
                )
        while True:
            parameters = study.ask(choices).params
            trial = replace(base, recipe=with_parameters(recipe, parameters))
            if trial.configuration not in known:
                return trial

    def _propose_dropped(self, situation: Situation) -> Trial | None:
        """Returns the best trial on the data's own columns without some of them; a smaller set if a larger one hurt."""
        plain = [entry for entry in situation.eligible if not entry.trial.features]
        tried = {entry.trial.dropped for entry in situation.entries}
        if not plain or plain[0].trial.dropped:  # nothing was lost
            return None
        names = next((tuple(names) for names in situation.droppable if tuple(names) not in tried), None)
        like = regularized(plain[0], plain).trial
        return None if names is None else self._new("features", "columns", like, dropped=names)

    def _propose_features(self, situation: Situation) -> Trial | None:
        """Proposes the buckets of dense features, then the best history, all of them, and sets that differ in one.

        A set whose gain may be luck is repeated with further seeds, and so is what it is compared with, once all
        histories were tried together. Where neither the best history nor all together are better than chance explains,
        one cross is still tried.
        """
        if not situation.features and not situation.buckets:
            return None
        if not situation.lacks_histories and (repeated := self._repeat_undecided(situation)) is not None:
            return repeated
        known = {entry.trial.configuration for entry in situation.entries}
        buckets = set(situation.buckets)
        ranked = [*situation.buckets, *(name for found in situation.features for name in found)]

        def best_of(allowed: Collection[str]) -> Trial:
            found = [entry for entry in situation.eligible if set(entry.trial.features) <= set(allowed)]
            best = next((entry for entry in found if entry.status == "complete"), found[0])
            return regularized(best, found).trial

        sets: list[tuple[Trial, list[str]]] = [(best_of(()), list(situation.buckets))] if buckets else []
        if situation.features:
            plain, best, histories = best_of(buckets), situation.leader, situation.histories
            if situation.history_helps:
                sets += [(best, [*best.features, *names]) for names in histories]
                sets += [(best, [*best.features, name]) for name in ranked if name not in buckets]
                dropped = [name for name in reversed(best.features) if name not in buckets]
                sets += [(best, [name for name in best.features if name != without]) for without in dropped]
            else:
                sets += [(plain, [*plain.features, *names]) for names in (histories[0][:1], histories[0])]
                sets += [(plain, [*plain.features, name]) for name in ranked if name in situation.crosses][:1]
        for like, names in sets:
            found = self._new("features", "features", like, features=tuple(n for n in ranked if n in names))
            if found.configuration not in known:
                return found
        return None

    def _repeat_undecided(self, situation: Situation) -> Trial | None:
        """Returns a further seed of added features that only the luck of seeds may explain, or of the same without."""
        for judgement in situation.judgements:
            if judgement.verdict != "open":
                continue
            with_it, without = judgement.seeds
            wanted = judgement.features if with_it < without else judgement.beside
            alike = [e for e in situation.entries if e.trial.features == judgement.features and e.measured]
            trial = replace(alike[0].trial, phase="features", source="features", features=wanted)
            taken = {e.trial.seed for e in situation.entries if e.trial.configuration == trial.configuration}
            seeds = range(self._config.seed, self._config.seed + MOST_SEEDS)
            if (seed := next((seed for seed in seeds if seed not in taken), None)) is not None:
                return replace(trial, seed=seed)
        return None

    def _propose_architecture(self, situation: Situation, generator: torch.Generator) -> Trial:
        entries = situation.entries
        known = {entry.trial.configuration for entry in entries}
        best = situation.leader
        baselines = sources.baselines(self._embedding_dim) if "baseline" in self._config.sources else []
        untried = [
            trial
            for baseline in baselines
            if (trial := self._new("architectures", "baseline", best, interaction=baseline)).configuration not in known
        ]
        mine = [entry for entry in entries if entry.trial.phase == "architectures"]
        # The small usual baselines are always tried, by turns with the other sources. Larger and newer ones compete.
        if untried and untried[0].interaction in baselines[: len(sources.USUAL)]:
            usual = sum(entry.trial.source == "baseline" for entry in mine)
            if 2 * usual <= len(mine) or set(self._config.sources) == {"baseline"}:
                return untried[0]
        untaught = [entry for entry in entries if not entry.trial.teachers]
        trained = [entry for entry in untaught if isinstance(entry.trial.interaction, Architecture)]
        drawn = {e.trial.interaction.canonical() for e in trained if isinstance(e.trial.interaction, Architecture)}
        surrogate = Surrogate.fit(trained)
        references = [found for found in self._references if found.canonical() not in drawn]
        # Known models and chance come first, and the others once there is something to learn from.
        ready: dict[Source, bool] = {
            "reference": bool(references),
            "random": True,
            "mutation": sum(entry.measured for entry in trained) >= 3,
            "surrogate": surrogate is not None,
            "baseline": bool(untried),
        }
        able = [name for name in ready if ready[name] and name in self._config.sources]
        while able:
            name = sources.choose_source(able, mine)
            found: Architecture | None
            if name == "baseline":
                return untried[0]
            if name == "reference":
                found = next((one for one in references if self._allowed(one)), None)
            elif name == "random":
                found = sources.random_architecture(self._space, generator, drawn, self._allowed, self._fit)
            elif name == "mutation":
                found = sources.mutated_architecture(self._space, generator, trained, drawn, self._allowed, self._fit)
            else:
                assert surrogate is not None
                found = sources.guessed_architecture(
                    surrogate, self._space, generator, trained, drawn, self._allowed, self._fit
                )
            if found is not None:
                return self._new("architectures", name, best, interaction=found)
            able = [other for other in able if other != name]
        return self._propose_polish(situation)

    def _propose_polish(self, situation: Situation) -> Trial:
        """Returns students of the best trials, then features that the cheap model may be too weak for, then recipes.

        Features and recipes are tried around the best trial so far.
        """
        if (student := self._propose_student(situation)) is not None:
            return student
        entries = situation.entries
        known = {entry.trial.configuration for entry in entries}
        best = situation.leader
        unproven = [j for j in situation.judgements if j.verdict != "accepted" and j.gain > 0 and min(j.halves) > 0]
        for judgement in sorted(unproven, key=lambda judgement: -judgement.gain):
            if set(judgement.beside) == set(best.features):
                trial = self._new("polish", "features", best, features=judgement.features)
                if trial.configuration not in known:
                    return trial
        adam = "embedding_l2" in self._choices(best.recipe)
        for recipe in neighbours(best.recipe, adam):
            trial = self._new("polish", "recipe", best, recipe=recipe)
            if trial.configuration not in known:
                return trial
        return self._propose_recipe(entries, "polish", self._new("polish", "recipe", best))

    def _propose_student(self, situation: Situation) -> Trial | None:
        """Returns a model that the best trials teach, which has not been taught with these columns yet."""
        # The trials that still have a checkpoint, see _Race._clean.
        teachers = teachers_of(situation.eligible[: self._config.finalists + KEPT_BESIDE])
        if not self._config.students or not teachers:
            return None
        like = regularized(teachers[0], situation.eligible).trial
        taught = [
            e.trial.interaction for e in situation.entries if e.trial.teachers and e.trial.columns == like.columns
        ]
        for model in students(teachers[0], situation.eligible, self._embedding_dim):
            if model not in taught:
                numbers = tuple(entry.number for entry in teachers)
                return self._new("polish", "student", like, interaction=model, teachers=numbers)
        return None

    def _missed_student(self, situation: Situation) -> Trial | None:
        """Returns the first student, a small one, if models that take longer have used up the time for students."""
        taken = [seconds for entry in situation.entries if (seconds := _epoch_seconds(entry))]
        if situation.seconds_left is None or not taken or any(e.trial.teachers for e in situation.entries):
            return None
        student = self._propose_student(situation)
        fits = student is not None and min(taken) * student.recipe.epochs <= situation.seconds_left
        return student if fits else None

    def _propose_final(self, situation: Situation) -> Trial | None:
        """Further seeds of the finalists, one seed for all of them before the next one."""
        entries = situation.entries
        chosen = finalists(situation.eligible, self._config.finalists)
        for seed in range(self._config.seed + 1, self._config.seed + self._config.final_seeds):
            for entry in chosen:
                if any(e.trial.configuration == entry.trial.configuration and e.trial.seed == seed for e in entries):
                    continue
                # It may end after its best epoch: the repeats of a model end about where the model was best.
                seconds = _epoch_seconds(entry) * min(entry.trial.recipe.epochs, entry.best_epoch + 1)
                if situation.seconds_left is not None and seconds > situation.seconds_left:
                    continue
                return replace(entry.trial, phase="finals", seed=seed)
        return self._propose_shorter(situation, chosen)

    def _propose_shorter(self, situation: Situation, chosen: Sequence[Entry]) -> Trial | None:
        """Returns a schedule of a finalist that ends in the time that is left, where no other training does."""
        if situation.seconds_left is None:
            return None
        known = {entry.trial.configuration for entry in situation.entries}
        for entry in chosen:
            recipe = entry.trial.recipe
            epochs = min(recipe.epochs, int(situation.seconds_left / max(_epoch_seconds(entry), sys.float_info.min)))
            variants = [replace(recipe, epochs=epochs)]
            variants += [replace(one, epochs=epochs) for one in neighbours(recipe, bool(recipe.embedding_l2))]
            for variant in variants if epochs >= 1 else ():
                trial = self._new("polish", _SHORTER, entry.trial, recipe=variant)
                if variant.batch_size == recipe.batch_size and trial.configuration not in known:
                    return trial
        return None


def _epoch_seconds(entry: Entry) -> float:
    """Returns the seconds of an epoch of a trial; those that a killed process had trained took none."""
    return statistics.fmean(taken) if (taken := [seconds for seconds in entry.seconds if seconds]) else 0.0


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Returns whether a sampler could have chosen the value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution)
    return distribution.low <= value <= distribution.high
