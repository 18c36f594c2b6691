"""Which added features are accepted, over block losses that are made up."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.search.race.chance import Judgement, eligible, judgements, seed_deviation
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.trial import Entry, Trial

_PLAIN = Trial("recipes", "baseline", Baseline("dlrm", (64, 8), (128, 64, 1)), Recipe(1e-3, 2, 128))
_BLOCKS = 0.45 + 0.03 * np.random.default_rng(0).standard_normal(64)


def _entry(
    number: int, blocks: Sequence[float] | np.ndarray, features: tuple[str, ...] = (), seed: int = 0, **changes: str
) -> Entry:
    loss = float(np.mean(blocks))
    trial = replace(_PLAIN, features=features, seed=seed)
    entry = Entry(number, trial, (loss + 0.1, loss), (0.7, 0.7), (1.0, 1.0), "complete", {"block_losses": list(blocks)})
    return replace(entry, **changes)


def _judged(gain: Sequence[float] | np.ndarray | float, combinations: int = 40, seeds: int = 1) -> Judgement:
    """The verdict on a feature that lowers the losses of the blocks by so much."""
    entries = [_entry(seed, _BLOCKS, seed=seed) for seed in range(seeds)]
    entries += [_entry(seeds + seed, _BLOCKS - np.asarray(gain), ("a",), seed) for seed in range(seeds)]
    (found,) = judgements(entries, combinations)
    assert [e.trial.features for e in eligible(entries, combinations)][seeds:] == (
        [("a",)] * seeds if found.verdict == "accepted" else []
    )
    return found


def test_a_gain_has_to_be_beyond_what_seeds_explain():
    large, small = _judged(0.02), _judged(0.005)
    assert (large.verdict, small.verdict) == ("accepted", "open")
    assert large.gain == pytest.approx(0.02) and large.halves == pytest.approx((0.02, 0.02))
    # More seeds that agree show a smaller gain; a gain that three seeds do not show is rejected.
    assert _judged(0.005, seeds=3).verdict == "accepted" and _judged(0.005, seeds=3).needed < small.needed
    assert _judged(0.002, seeds=2).verdict == "open" and _judged(0.002, seeds=3).verdict == "rejected"
    assert _judged(-0.02).verdict == "rejected"


def test_a_gain_has_to_be_beyond_what_rows_explain():
    noise = 0.1 * np.random.default_rng(1).standard_normal(64)
    scattered = 0.02 + noise - noise.mean()
    assert _judged(scattered).gain == pytest.approx(_judged(0.02).gain)
    # Further seeds do not help: the verdict is not open.
    assert _judged(scattered).verdict == "rejected" and _judged(scattered).needed > 2 * _judged(0.02).needed


def test_the_best_of_many_combinations_has_to_gain_more():
    few, many = _judged(0.01, combinations=1), _judged(0.01, combinations=10_000)
    assert few.verdict == "accepted" and many.verdict == "open" and many.needed > 1.5 * few.needed


def test_a_gain_that_has_gone_by_the_second_half_is_rejected():
    gain = np.where(np.arange(64) < 32, 0.06, -0.002) + 0.001 * np.random.default_rng(2).standard_normal(64)
    found = _judged(gain, combinations=1)
    assert found.gain > found.needed and found.halves[1] < 0 and found.verdict == "rejected"
    assert _judged(np.abs(gain), combinations=1).verdict == "accepted"


def test_an_extension_has_to_beat_the_accepted_smaller_set():
    entries = [_entry(0, _BLOCKS), _entry(1, _BLOCKS - 0.1, ("a",)), _entry(2, _BLOCKS - 0.101, ("a", "b"))]
    one, both = judgements(entries, 10)
    assert (one.verdict, one.beside) == ("accepted", ()) and (both.verdict, both.beside) == ("open", ("a",))
    assert eligible(entries, 10) == entries[:2]
    # Beside a rejected one it is compared with the data's own columns alone.
    entries = [_entry(0, _BLOCKS), _entry(1, _BLOCKS + 0.1, ("a",)), _entry(2, _BLOCKS - 0.1, ("a", "b"))]
    assert [found.verdict for found in judgements(entries, 10)] == ["rejected", "accepted"]
    # What was never trained without them, or not to the end, shows nothing.
    assert judgements(entries[1:], 10) == [] and eligible(entries[1:], 10) == []
    assert judgements([replace(entries[0], status="paused"), *entries[1:]], 10) == []


def test_seeds_deviate_as_they_did_so_far():
    assert seed_deviation([]) == pytest.approx(0.005)
    repeats = [_entry(seed, _BLOCKS * (1 + 0.1 * (seed - 1)), seed=seed) for seed in range(3)]
    assert seed_deviation(repeats) == pytest.approx(((2 * 0.005**2 + 0.1**2 * 2) / 4) ** 0.5)
    assert seed_deviation([replace(entry, status="paused") for entry in repeats]) == pytest.approx(0.005)
