"""Which models of a race a verdict names, over losses and latencies that are made up."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.search.race.choice import compared, regularized, winner
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.trial import Entry, Trial

_BLOCKS = 0.45 + 0.03 * np.random.default_rng(0).standard_normal(64)
_PLAIN = Trial("architectures", "baseline", Baseline("dlrm", (64, 8), (128, 64, 1)), Recipe(1e-3, 2, 128))


def _entry(number: int, worse: Sequence[float] | float, latency_us: float, **changes) -> Entry:
    """A whole training of a model of its own that is worse than the best by so much in every block of rows."""
    blocks = _BLOCKS + np.asarray(worse)
    interaction = replace(_PLAIN.interaction, over_layers=(8 * (number + 1), 1))
    facts = {"block_losses": list(blocks), "latency_us": latency_us}
    trial = replace(_PLAIN, interaction=interaction, **changes)
    return Entry(number, trial, (float(blocks.mean()),), (0.7,), (1.0,), "complete", facts)


def _names(entries: Sequence[Entry], lost: Sequence[int] = ()) -> dict[str, int]:
    return {name: entry.number for name, entry in compared(entries, lambda e: e.number not in lost).items()}


def test_the_fastest_model_that_is_about_as_good_as_the_usual_baseline_is_named():
    taught = {"teachers": (0, 1, 2), "source": "student"}
    usual, good = _entry(0, 0.0, 700), _entry(1, 0.0002, 180, **taught)
    poor, slow = _entry(2, 0.03, 90, **taught), _entry(3, -0.02, 900, **taught)
    assert _names([usual, good, poor, slow]) == {
        "winner": 3,
        "baseline": 0,
        "baseline without added features": 0,
        "fastest": 1,
    }
    # What is worse by more than one standard error is not, and neither is what was not trained to its end or is lost.
    assert _names([usual, poor, slow])["fastest"] == 0
    assert _names([usual, replace(good, status="paused"), slow])["fastest"] == 0
    assert _names([usual, good, slow], lost=[1])["fastest"] == 0
    # Rows that disagree about a difference make it smaller than its error.
    scattered = 0.3 * np.random.default_rng(1).standard_normal(64)
    assert _names([usual, _entry(2, 0.03 + scattered - scattered.mean(), 90, **taught), slow])["fastest"] == 2


def test_no_model_is_named_beside_a_winner_that_is_the_fastest_itself():
    usual, winner = _entry(0, 0.0, 700), _entry(1, -0.02, 180)
    assert "fastest" not in _names([usual, winner])
    again = replace(winner, number=2, trial=replace(winner.trial, seed=1), facts=winner.facts | {"latency_us": 170})
    assert "fastest" not in _names([usual, winner, again])
    assert _names([usual]) == {"winner": 0, "baseline": 0, "baseline without added features": 0}
    # Without a baseline there is nothing to be as good as.
    assert _names([_entry(1, 0.0, 180, teachers=(0,))]) == {"winner": 1}


def test_a_baseline_with_added_features_is_not_the_usual_one():
    usual, better = _entry(0, 0.0, 700), _entry(1, -0.05, 750, features=("user_x_item",))
    found = _names([usual, better, _entry(2, 0.0, 300, teachers=(0,))])
    assert found == {"winner": 1, "baseline": 1, "baseline without added features": 0, "fastest": 2}


def _trained(number: int, worse: float, recipe: Recipe, seed: int = 0) -> Entry:
    """A whole training of the plain model by a recipe."""
    found = _entry(number, worse, 500, recipe=recipe, seed=seed)
    return replace(found, trial=replace(found.trial, interaction=_PLAIN.interaction))


def test_of_recipes_that_are_about_as_good_the_one_with_the_strongest_l2_wins():
    weak = replace(_PLAIN.recipe, embedding_l2=1e-3)
    middle, strong = replace(weak, learning_rate=3e-3, embedding_l2=1e-2), replace(weak, embedding_l2=5e-2)
    entries = [
        _trained(0, 0.0, weak),
        _trained(1, 0.001, middle),
        _trained(2, 0.002, strong),
    ]
    assert winner(entries).number == 2
    assert regularized(entries[1], entries).number == 2
    # One standard error of two single trainings is .7 % of the loss here; what is worse than that is worse.
    far = _trained(2, 0.01, strong)
    assert winner([*entries[:2], far]).number == 1
    # Further seeds make the error smaller.
    repeated = [_trained(3 + seed, 0.0, weak, seed=seed) for seed in (1, 2, 3)]
    repeated += [_trained(7 + seed, 0.003, strong, seed=seed) for seed in (1, 2, 3)]
    third = _trained(2, 0.003, strong)
    assert winner([entries[0], third]).number == 2
    assert winner([entries[0], third, *repeated]).trial.recipe == weak


def test_only_whole_trainings_of_the_same_model_that_are_still_stored_take_the_place_of_the_best():
    weak, strong = replace(_PLAIN.recipe, embedding_l2=1e-3), replace(_PLAIN.recipe, embedding_l2=5e-2)
    best, other = _trained(0, 0.0, weak), _trained(1, 0.001, strong)
    assert winner([best, other]) == other
    assert winner([best, other], lambda entry: entry.number != 1) == best
    assert winner([best, replace(other, status="paused")]) == best
    another_model = replace(other, trial=replace(other.trial, dropped=("hour",)))
    assert winner([best, another_model]) == best
    # A weaker recipe, and one without any L2, never do.
    assert winner([other, replace(best, losses=(other.loss + 1e-4,), facts={})]) == other
    assert regularized(other, [best, other]) == other
