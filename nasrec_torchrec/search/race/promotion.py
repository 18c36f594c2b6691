"""Which trials continue after a rung: by Optuna's successive halving, at rungs where losses order the end well."""

import math
from collections.abc import Sequence

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState, create_trial

from nasrec_torchrec.search.race.trial import Entry

# Shares of a full training where a rung may be. Until enough trainings are whole there is one, and a later one where
# recipes compete: early losses of different recipes say less than those of different models.
_SHARES = (0.15, 0.25, 0.4, 0.6, 0.8)
_FIRST_RUNGS = {True: (0.6,), False: (0.4,)}
_WHOLE_TRAININGS = 4
# Kendall's tau between the losses at a rung and at the end; the first rung may err more, for few are dropped there.
_EARLY_TAU, _LATE_TAU = 0.5, 0.75


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns how alike two orders are: 1 the same, 0 unrelated, -1 reversed; nan for less than two values."""
    pairs = [
        (one[i] - one[j]) * (other[i] - other[j]) for i in range(len(one)) for j in range(i) if other[i] != other[j]
    ]
    return sum((pair > 0) - (pair < 0) for pair in pairs) / len(pairs) if pairs else math.nan


def rung_epochs(epochs: int, shares: Sequence[float]) -> list[int]:
    """Epochs after which a training of so many epochs is compared."""
    found = sorted({max(1, round(share * epochs)) for share in shares})
    return [epoch for epoch in found if epoch < epochs]


def fidelity(whole: Sequence[Entry]) -> dict[float, float]:
    """For each share of a training Kendall's tau of the losses there with the final ones."""
    final = [entry.loss for entry in whole]
    return {
        share: kendall_tau([entry.loss_at(max(1, round(share * entry.trial.recipe.epochs))) for entry in whole], final)
        for share in _SHARES
    }


def calibrated_shares(whole: Sequence[Entry], across_recipes: bool) -> tuple[float, ...]:
    """Returns where the rungs are, given the trainings that ran to their end.

    With too few of them there is one rung. Otherwise the first rung is at the earliest share whose order agrees
    tolerably with the final one, the second at the earliest one that agrees well; where none does, nothing is dropped.

    Args:
        whole: the trainings.
        across_recipes: whether recipes compete, of which early losses say little.
    """
    if len(whole) < _WHOLE_TRAININGS:
        return _FIRST_RUNGS[across_recipes]
    taus = fidelity(whole)
    early = next((share for share in _SHARES if taus[share] >= _EARLY_TAU), None)
    late = next((share for share in _SHARES if taus[share] >= _LATE_TAU), None)
    return tuple(sorted({share for share in (early, late) if share is not None}))


def study_in_memory(sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """Returns a study for one question to one of Optuna's algorithms."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="minimize", sampler=sampler)


def promotable(entry: Entry, rivals: Sequence[Entry], shares: Sequence[float], reduction_factor: int) -> bool:
    """Returns whether a trial that stands at a rung may continue, by Optuna's successive halving.

    Args:
        entry: trained up to one of its rungs.
        rivals: the trials that it competes with, itself among them or not.
        shares: where the rungs are.
        reduction_factor: number of trials at a rung of which the best one is promoted.
    """
    mine = rung_epochs(entry.trial.recipe.epochs, shares)
    if entry.epochs not in mine:
        return True
    rung = mine.index(entry.epochs)
    study = study_in_memory()
    for rival in rivals:
        theirs = rung_epochs(rival.trial.recipe.epochs, shares)
        if rival.number != entry.number and rung < len(theirs) and rival.epochs >= theirs[rung]:
            attributes = {f"completed_rung_{rung}": rival.loss_at(theirs[rung])}
            study.add_trial(create_trial(value=rival.loss, system_attrs=attributes))
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            intermediate_values={reduction_factor**rung: entry.loss},
            # What it passed already.
            system_attrs={f"completed_rung_{number}": entry.loss_at(mine[number]) for number in range(rung)},
        )
    )
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=reduction_factor)
    return not pruner.prune(study, study.get_trials(deepcopy=False)[-1])


def overfitted(entry: Entry) -> bool:
    """Returns whether the best epoch is so long ago that the rest of the training is not worth its time."""
    return entry.epochs - entry.best_epoch >= max(4, math.ceil(entry.trial.recipe.epochs / 3))
