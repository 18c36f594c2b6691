"""Where architectures come from: baselines, chance, and mutations of what was trained and did well."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.models.config import Baseline, BaselineKind
from nasrec_torchrec.models.reference import REFERENCE
from nasrec_torchrec.search.limits import Fit, unchanged
from nasrec_torchrec.search.race.surrogate import Surrogate
from nasrec_torchrec.search.race.trial import Entry
from nasrec_torchrec.search_space import SearchSpace

Interaction: TypeAlias = Architecture | Baseline
Allowed: TypeAlias = Callable[[Architecture], bool]
# Proposals that are tried before a source gives up: limits may leave next to nothing of a space.
_ATTEMPTS = 200
_POOL = 24  # random ones and mutations each, among which a surrogate chooses
_EXPLORATION = 0.5
# Kinds of baselines that every race trains.
USUAL: tuple[BaselineKind, ...] = ("dlrm", "dcn", "deepfm", "mlp")
_LEADING: tuple[BaselineKind, ...] = ("finalnet", "masknet", "wukong", "gdcn", "finalmlp")


def anything(architecture: Architecture) -> bool:
    """The limit that allows every architecture."""
    return True


def cheap_baseline(embedding_dim: int) -> Baseline:
    """Returns the model by which recipes are judged first."""
    return Baseline("dlrm", (64, embedding_dim), (128, 64, 1))


def small_mlp(embedding_dim: int) -> Baseline:
    """Returns the smallest model that the best ones of a race teach."""
    return Baseline("mlp", (64, embedding_dim), (64, 32, 1))


def baselines(embedding_dim: int) -> list[Baseline]:
    """What a user would pick instead: the usual kinds, those that lead leaderboards, larger usual ones."""
    small, large = (128, 64, 1), (256, 256, 1)
    kinds: list[tuple[BaselineKind, tuple[int, ...]]] = [(kind, small) for kind in USUAL]
    kinds += [(kind, large) for kind in (*_LEADING, *USUAL)]
    return [Baseline(kind, (64, embedding_dim), layers) for kind, layers in kinds]


def reference_architectures(space: SearchSpace, sizes: tuple[int, int, int]) -> list[Architecture]:
    """Returns the known models that a space holds, each with as many blocks as it has, at the space's widths.

    Args:
        space: search space.
        sizes: number of dense features, number of tokens and embedding dimension of the data.
    """
    found = []
    for make in REFERENCE.values():
        architecture = make(*sizes)
        try:
            # Their tables keep the width that the data gives them, as far as the space has it.
            widths = tuple(dict.fromkeys(space.width_tables, sizes[2]).items())
            found.append(_of_blocks(space, architecture).fitted(replace(architecture, embedding_widths=widths)))
        except ValueError:  # the space lacks an operator, or reads its last block alone
            continue
    return found


def _of_blocks(space: SearchSpace, architecture: Architecture) -> SearchSpace:
    """Returns the space with as many blocks as an architecture has: known models may have more than random ones."""
    return replace(space, num_blocks=len(architecture.blocks))


def random_architecture(
    space: SearchSpace,
    generator: torch.Generator,
    known: set[Architecture],
    allowed: Allowed,
    fit: Fit = unchanged,
) -> Architecture | None:
    """Returns a new architecture within the limits, or None when none is found."""
    for _ in range(_ATTEMPTS):
        found = fit(space.sample(generator), generator)
        if found.canonical() not in known and allowed(found):
            return found
    return None


def mutated_architecture(
    space: SearchSpace,
    generator: torch.Generator,
    trained: Sequence[Entry],
    known: set[Architecture],
    allowed: Allowed,
    fit: Fit = unchanged,
) -> Architecture | None:
    """Returns a mutation of one of the best trained architectures; None if there is none or nothing new is found."""
    ranked = sorted(
        (entry for entry in trained if isinstance(entry.trial.interaction, Architecture) and entry.measured),
        key=lambda entry: entry.loss,
    )
    parents = [entry.trial.interaction for entry in ranked[: max(1, len(ranked) // 3)]]
    for _ in range(_ATTEMPTS if parents else 0):
        parent = parents[int(torch.randint(len(parents), (), generator=generator))]
        assert isinstance(parent, Architecture)
        child = fit(_of_blocks(space, parent).mutate(parent, generator), generator)
        if child.canonical() not in known and allowed(child):
            return child
    return None


def guessed_architecture(
    surrogate: Surrogate,
    space: SearchSpace,
    generator: torch.Generator,
    trained: Sequence[Entry],
    known: set[Architecture],
    allowed: Allowed,
    fit: Fit = unchanged,
) -> Architecture | None:
    """Returns the best of some random architectures and mutations by a surrogate; None if the limits allow none.

    What is allowed may be a measurement, so it is asked in the order of the guesses and not for every candidate.
    """
    pool = [random_architecture(space, generator, known, anything, fit) for _ in range(_POOL)]
    pool += [mutated_architecture(space, generator, trained, known, anything, fit) for _ in range(_POOL)]
    guesses = surrogate.ranked(list(dict.fromkeys(found for found in pool if found is not None)))
    return next((found for found in guesses if allowed(found)), None)


def choose_source(names: Sequence[str], entries: Sequence[Entry]) -> str:
    """Returns the source that gets the next trial: the upper confidence bound (UCB1) of what its trials earned.

    A trial earns the share of the other trials of its phase that it beats after as many epochs as both have, so that
    one that was dropped early counts for what it showed.

    Args:
        names: names of the sources that can propose.
        entries: entries of the phase.
    """
    trained = [entry for entry in entries if entry.measured]
    earned: dict[str, list[float]] = {name: [] for name in names}
    for entry in trained:
        if entry.trial.source in earned:
            others = [other for other in trained if other.number != entry.number]
            beaten = sum(_share_loss(entry, other) < _share_loss(other, entry) for other in others)
            earned[entry.trial.source].append(beaten / max(1, len(others)))
    total = sum(map(len, earned.values()))

    def bound(name: str) -> float:
        rewards = earned[name]
        if not rewards:
            return math.inf
        return sum(rewards) / len(rewards) + _EXPLORATION * math.sqrt(math.log(total) / len(rewards))

    return max(names, key=bound)


def _share_loss(entry: Entry, other: Entry) -> float:
    """Returns the loss of ``entry`` at the largest share of a training that both have."""
    share = min(one.epochs / one.trial.recipe.epochs for one in (entry, other))
    return entry.loss_at(max(1, round(share * entry.trial.recipe.epochs)))
