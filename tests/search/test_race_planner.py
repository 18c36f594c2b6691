"""Decisions of a race, over curves that are made up."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from optuna.distributions import BaseDistribution
from support import SMALL_SPACE

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.search.race.chance import judgements
from nasrec_torchrec.search.race.choice import finalists, winner
from nasrec_torchrec.search.race.config import RACE_SPACES, RaceConfig
from nasrec_torchrec.search.race.leaderboard import standings
from nasrec_torchrec.search.race.planner import Continue, New, Planner
from nasrec_torchrec.search.race.promotion import calibrated_shares, fidelity, kendall_tau, promotable, rung_epochs
from nasrec_torchrec.search.race.recipe import Recipe, recipe_space, starting_recipes
from nasrec_torchrec.search.race.replay import Curve, replay
from nasrec_torchrec.search.race.situation import Situation
from nasrec_torchrec.search.race.sources import USUAL, reference_architectures, small_mlp
from nasrec_torchrec.search.race.surrogate import Surrogate
from nasrec_torchrec.search.race.trial import Entry, Trial

_SCHEMA = Schema("y", (), (SparseFeature("a", 50), SparseFeature("b", 50)), 8)
_EPOCHS = 10
_DLRM = Baseline("dlrm", (64, 8), (128, 64, 1))
_RECIPE = Recipe(1e-3, _EPOCHS, 128)


def _planner(**changes: object) -> Planner:
    config = RaceConfig(**{"trials": 40, "features": False, "drop_columns": False, **changes})
    recipes = starting_recipes(_SCHEMA, 10_000, _EPOCHS)
    return Planner(config, SMALL_SPACE, recipes, lambda r: recipe_space(_SCHEMA, r, _EPOCHS), 8, lambda _: True)


def _quality(trial: Trial) -> float:
    """The final loss: recipes near 3e-3 and wide last blocks are good; features help."""
    loss = 0.5 + abs(trial.recipe.learning_rate - 3e-3) * 10 + 0.001 * (trial.seed % 3)
    if isinstance(trial.interaction, Architecture):
        loss -= trial.interaction.blocks[-1].dense_width / 1000
    return loss - 0.05 * len(trial.features)


def _curve(trial: Trial) -> Curve:
    final, epochs = _quality(trial), trial.recipe.epochs
    return [(final + 0.3 * (1 - (epoch + 1) / epochs), 0.7, 1.0) for epoch in range(epochs)]


def _entry(number: int, *losses: float, epochs: int = _EPOCHS, status: str = "complete") -> Entry:
    trial = Trial("architectures", "random", _DLRM, replace(_RECIPE, epochs=epochs, learning_rate=1e-4 * (number + 1)))
    return Entry(number, trial, losses, losses, tuple(1.0 for _ in losses), status)


def test_what_is_no_number_is_never_the_best():
    nan, inf = float("nan"), float("inf")
    late, never, sound = _entry(0, 0.7, nan), _entry(1, nan, inf), _entry(2, 0.9, 0.8)
    assert (late.loss, late.best_epoch, never.loss, never.best_epoch) == (0.7, 1, inf, 0)
    for entries in ([never, sound], [sound, never]):
        assert winner(entries) is sound and finalists(entries, 2) == [sound]
        assert [row["trials"] for row in standings(entries)] == [[2]]
    assert winner([never]) is None
    assert kendall_tau([nan, 1.0, 2.0], [3.0, 1.0, 2.0]) == pytest.approx(1 / 3)


def test_the_same_trials_follow_from_the_same_curves():
    one, other = (replay(_planner(), _curve, trials=40) for _ in range(2))
    assert one == other and len(one) == 40
    assert replay(_planner(seed=1), _curve, trials=40) != one


@pytest.mark.parametrize("harm", (-0.02, 0.02))
def test_columns_are_dropped_if_the_loss_is_lower_without_them(harm: float):
    """Dropping ``a`` and ``b`` helps or harms, and dropping ``a`` alone does neither."""
    planner = _planner(features=True, drop_columns=True)
    entries: list[Entry] = []
    droppable = [("a", "b"), ("a",)]
    while len(entries) < 30:
        action = planner.next(Situation(entries, len(entries) / 40, droppable=droppable))
        match action:
            case New(trial):
                entries.append(Entry(len(entries), trial))
            case Continue(entry, until):
                curve = [loss + harm * (len(entry.trial.dropped) == 2) for loss, _, _ in _curve(entry.trial)[:until]]
                number, seconds = entry.number, tuple(1.0 for _ in curve)
                entries[number] = replace(entry, losses=tuple(curve), aucs=tuple(curve), seconds=seconds)
                entries[number] = replace(entries[number], status=planner.status_of(entries[number]))
    tried = [entry.trial for entry in entries if entry.trial.source == "columns"]
    assert [trial.dropped for trial in tried] == (droppable[:1] if harm < 0 else droppable)
    assert all(trial.phase == "features" and trial.interaction == _DLRM for trial in tried)
    # The architectures read what the best model reads.
    raced = {entry.trial.dropped for entry in entries if entry.trial.phase == "architectures"}
    assert raced == {("a", "b") if harm < 0 else ()}


def test_recipes_come_first_then_architectures_then_seeds():
    entries = replay(_planner(), _curve, trials=40)
    phases = [entry.trial.phase for entry in entries]
    assert phases == sorted(phases, key=["recipes", "architectures", "polish", "finals"].index) and "polish" in phases
    assert {entry.trial.interaction for entry in entries if entry.trial.phase == "recipes"} == {_DLRM}
    # Every usual baseline is in, at the recipe that was best.
    best = min((e for e in entries if e.trial.phase == "recipes"), key=lambda e: e.loss)
    raced = [entry.trial for entry in entries if entry.trial.phase == "architectures"]
    kinds = {trial.interaction.kind for trial in raced if isinstance(trial.interaction, Baseline)}
    assert kinds | {_DLRM.kind} >= set(USUAL)
    assert {trial.recipe for trial in raced} == {best.trial.recipe}
    sources = Counter(trial.source for trial in raced)
    assert {"random", "mutation"} <= set(sources)
    final = [entry for entry in entries if entry.trial.phase == "finals"]
    assert {entry.trial.seed for entry in final} == {1, 2}
    found = winner(entries)
    assert found is not None and isinstance(found.trial.interaction, Architecture)
    assert found.loss < min(entry.loss for entry in entries if isinstance(entry.trial.interaction, Baseline))


def test_the_best_three_teach_a_small_one_a_faster_one_and_the_best():
    def curve(trial: Trial) -> Curve:
        """Teaching helps."""
        return [(loss - 0.05 * bool(trial.teachers), auc, seconds) for loss, auc, seconds in _curve(trial)]

    entries = replay(_planner(), curve, trials=40)
    taught = [entry for entry in entries if entry.trial.teachers]
    first = taught[0]
    before = sorted((e for e in entries[: first.number] if e.status == "complete"), key=lambda entry: entry.loss)
    assert first.trial.teachers == tuple(entry.number for entry in before[:3])
    students = [entry.trial.interaction for entry in taught if entry.trial.source == "student"]
    # No replayed trial has a latency, so there is no faster one.
    assert students[:2] == [small_mlp(8), before[0].trial.interaction]
    # Students may win, and are taught by the same trials with every seed, but teach nobody and are no baselines.
    found = winner(entries)
    assert found is not None and found in taught
    assert {entry.trial.seed for entry in taught if entry.trial.configuration == found.trial.configuration} >= {0, 1}
    assert not {number for entry in taught for number in entry.trial.teachers} & {entry.number for entry in taught}
    assert not any(entry.trial.is_baseline for entry in taught)
    assert any(entry.trial.is_baseline for entry in finalists(entries, 1))
    assert not any(entry.trial.teachers for entry in replay(_planner(students=False), curve, trials=40))


@pytest.mark.parametrize(("seconds", "taught"), ((20.0, True), (5.0, False)))
def test_a_small_student_is_taught_where_larger_models_have_used_up_the_time(seconds: float, taught: bool):
    entries = [_entry(number, *[0.4 + number / 100] * _EPOCHS) for number in range(4)]
    entries[0] = replace(entries[0], seconds=(10.0,) * _EPOCHS)
    action = _planner(trials=None).next(Situation(entries, 0.9, seconds_left=seconds))
    assert isinstance(action, New)
    assert action.trial.teachers == ((0, 1, 2) if taught else ())
    assert not taught or action.trial.interaction == small_mlp(8)


@pytest.mark.parametrize("budget", [80, 100, 190])
def test_architectures_leave_the_time_of_a_student(budget: int):
    def curve(trial: Trial) -> Curve:
        """Networks of the search space take three times as long as baselines."""
        seconds = 3.0 if isinstance(trial.interaction, Architecture) else 1.0
        return [(loss, auc, seconds) for loss, auc, _ in _curve(trial)]

    entries = replay(_planner(trials=None, budget=f"{budget}s"), curve, seconds=budget)
    student = next(entry for entry in entries if entry.trial.teachers)
    assert student.trial.interaction == small_mlp(8) and student.status == "complete"


def test_only_the_chosen_sources_propose():
    for chosen in (("random",), ("mutation", "random"), ("baseline",), ()):
        entries = replay(_planner(sources=chosen), _curve, trials=40)
        assert len(entries) == 40
        kinds = {
            e.trial.interaction.kind
            for e in entries
            if isinstance(e.trial.interaction, Baseline) and not e.trial.teachers
        }
        assert kinds > set(USUAL) - {"dlrm"} if "baseline" in chosen else kinds == {_DLRM.kind}
        drawn = {entry.trial.source for entry in entries if isinstance(entry.trial.interaction, Architecture)}
        assert drawn - {"recipe", "student"} == set(chosen) - {"baseline"}
    with pytest.raises(ValueError, match=r"sources: expected any of .*'mutation'.*, found 'supernet'"):
        RaceConfig(sources=("supernet",))  # type: ignore[arg-type]


def test_nothing_is_trained_twice_and_trials_that_are_behind_stop():
    entries = replay(_planner(), _curve, trials=40)
    keys = [(entry.trial.configuration, entry.trial.seed) for entry in entries]
    assert len(set(keys)) == len(keys)
    stopped = [entry for entry in entries if entry.epochs < entry.trial.recipe.epochs]
    assert len(stopped) >= 4
    raced = [entry for entry in entries if entry.trial.phase == "recipes"][3:]
    whole = [entry for entry in raced if entry.status == "complete"]
    assert whole and min(raced, key=lambda entry: entry.loss) in whole


@pytest.mark.parametrize("budget", [200, 500])
def test_a_budget_of_seconds_is_kept_and_more_of_it_is_better(budget: int):
    planner = _planner(trials=None, budget=f"{budget}s")
    entries = replay(planner, _curve, seconds=budget)
    spent = sum(sum(entry.seconds) for entry in entries)
    assert 0.9 * budget <= spent <= budget
    found = winner(entries)
    assert found is not None
    if budget == 500:
        less = winner(replay(_planner(trials=None, budget="60s"), _curve, seconds=60))
        assert less is not None and _quality(found.trial) < _quality(less.trial)


@pytest.mark.parametrize("budget", [35, 47, 60, 75])
def test_the_end_of_a_small_budget_is_not_wasted(budget: int):
    entries = replay(_planner(trials=None, budget=f"{budget}s"), _curve, seconds=budget)
    assert 0.95 * budget <= sum(sum(entry.seconds) for entry in entries) <= budget
    # No training is cut by the end of the budget: what starts late has a schedule that fits.
    waiting = [entry for entry in entries if entry.status == "paused"]
    rungs = {epoch for share in (0.15, 0.25, 0.4, 0.6, 0.8) for epoch in rung_epochs(_EPOCHS, (share,))}
    assert {entry.epochs for entry in waiting} <= rungs
    shorter = [entry for entry in entries if entry.trial.source == "shorter schedule"]
    # Trainings of ten seconds each fill a budget of sixty.
    assert bool(shorter) == (budget != 60)
    assert all(entry.epochs == entry.trial.recipe.epochs < _EPOCHS for entry in shorter)


def test_networks_are_drawn_before_all_usual_baselines_are_trained():
    raced = [entry.trial.source for entry in replay(_planner(), _curve, trials=40) if entry.trial.phase != "recipes"]
    assert raced[:5] == ["baseline", "random", "baseline", "random", "baseline"]


def test_features_that_only_seem_to_help_are_repeated_and_then_left_out():
    def curve(trial: Trial) -> Curve:
        """A feature that helps the first seed a little, and the others not."""
        lucky = 0.006 if trial.features and trial.seed == 0 else 0.0
        return [(loss - lucky, auc, seconds) for loss, auc, seconds in _curve(replace(trial, features=()))]

    entries = replay(_planner(features=True), curve, trials=40, features=[["history_of_a"]], combinations=40)
    tried = [(e.trial.features, e.trial.seed) for e in entries if e.trial.phase == "features"]
    assert tried[0] == (("history_of_a",), 0)
    assert {seed for features, seed in tried if features} == {0, 1, 2} == {0, *(s for f, s in tried if not f)}
    after = [e.trial for e in entries if e.trial.phase in ("architectures", "finals")]
    assert after and not any(trial.features for trial in after)
    assert {judgement.verdict for judgement in judgements(entries, 40)} <= {"open", "rejected"}


def test_features_that_the_cheap_model_could_not_use_are_tried_with_the_best_one():
    def curve(trial: Trial) -> Curve:
        """A feature that helps networks, and DLRM next to not at all."""
        gain = 0.1 if isinstance(trial.interaction, Architecture) else 0.0001
        plain = _curve(replace(trial, features=()))
        return [(loss - gain * len(trial.features), auc, seconds) for loss, auc, seconds in plain]

    entries = replay(_planner(features=True), curve, trials=40, features=[["history_of_a"]], combinations=40)
    raced = [entry.trial for entry in entries if entry.trial.phase == "architectures"]
    assert raced and not any(trial.features for trial in raced)
    retried = next(e.trial for e in entries if e.trial.phase == "polish" and e.trial.source == "features")
    assert retried.features == ("history_of_a",) and isinstance(retried.interaction, Architecture)
    found = winner(entries)
    assert found is not None and found.trial.features == ("history_of_a",)
    (judgement,) = judgements(entries, 40)
    assert judgement.verdict == "accepted" and judgement.gain > 0.09


def test_features_are_tried_and_kept_where_they_help():
    planner = _planner(features=True)
    entries = replay(
        planner, _curve, trials=40, features=[["history_of_a", "history_of_b", "a_x_b"]], crosses=["a_x_b"]
    )
    tried = [e.trial.features for e in entries if e.trial.phase == "features"]
    assert tried[:2] == [("history_of_a",), ("history_of_a", "history_of_b")]
    assert ("history_of_a", "history_of_b", "a_x_b") in tried
    found = winner(entries)
    assert found is not None and found.trial.features == ("history_of_a", "history_of_b", "a_x_b")
    harmful = replay(planner, lambda trial: _curve(replace(trial, features=())), trials=40, features=[["history_of_a"]])
    least = min(harmful, key=lambda entry: entry.loss)
    assert least.trial.phase != "features"


@pytest.mark.parametrize("budget", [24, 30, 45])
def test_features_are_tried_even_if_recipes_took_their_time(budget: int):
    planner = _planner(trials=None, budget=f"{budget}s", features=True)
    entries = replay(planner, _curve, seconds=budget, features=[["history_of_a"]])
    found = winner(entries)
    assert found is not None and found.trial.features == ("history_of_a",)
    entries = replay(planner, _curve, seconds=2 * budget, features=[["history_of_a"]], buckets=["x_buckets"])
    tried = [entry.trial.features for entry in entries if entry.trial.phase == "features"]
    assert tried[:2] == [("x_buckets",), ("x_buckets", "history_of_a")]


@pytest.mark.parametrize("budget", [45, 60, 90])
def test_the_features_beside_one_that_helps_are_tried_even_if_their_time_has_passed(budget: int):
    planner = _planner(trials=None, budget=f"{budget}s", features=True)
    rankings = [["history_of_a", "history_of_b", "a_x_b"], ["history_of_c"]]
    entries = replay(planner, _curve, seconds=budget, features=rankings, crosses=["a_x_b"])
    tried = [entry.trial.features for entry in entries if entry.trial.phase == "features"]
    every = ("history_of_a", "history_of_b", "history_of_c")
    assert tried == [every[:1], every[:2], every]
    found = winner(entries)
    assert found is not None and found.trial.features == every


@pytest.mark.parametrize("budget", [60, 90])
def test_all_histories_are_tried_together_even_if_the_first_alone_is_within_chance(budget: int):
    def curve(trial: Trial) -> Curve:
        """The first history helps by no more than the luck of a seed, and both together by a lot."""
        gain = {0: 0.0, 1: 0.006, 2: 0.2}[len(trial.features)]
        return [(loss - gain, auc, seconds) for loss, auc, seconds in _curve(replace(trial, features=()))]

    planner, both = _planner(trials=None, budget=f"{budget}s", features=True), ("history_of_a", "history_of_b")
    entries = replay(planner, curve, seconds=budget, features=[list(both)], combinations=90)
    tried = [e.trial.features for e in entries if e.trial.source == "features"]
    assert tried[:2] == [both[:1], both] and judgements(entries, 90)[0].verdict == "open"
    found = winner(entries)
    assert found is not None and found.trial.features == both


def test_buckets_are_judged_together_before_histories_and_beside_them():
    planner, buckets = _planner(features=True), ["x_buckets", "y_buckets"]
    entries = replay(planner, _curve, trials=40, features=[["history_of_a"]], buckets=buckets)
    tried = [e.trial.features for e in entries if e.trial.phase == "features"]
    assert tried[:2] == [tuple(buckets), (*buckets, "history_of_a")]
    assert ("x_buckets",) not in tried and ("history_of_a",) not in tried

    def harmful(trial: Trial) -> Curve:
        """Buckets that cost as much as a history gains."""
        histories = tuple(name for name in trial.features if name not in buckets)
        losses = _curve(replace(trial, features=histories))
        return [(loss + 0.02 * len(set(trial.features) & set(buckets)), auc, took) for loss, auc, took in losses]

    entries = replay(planner, harmful, trials=40, features=[["history_of_a"]], buckets=buckets)
    assert [e.trial.features for e in entries if e.trial.phase == "features"][:2] == [tuple(buckets), ("history_of_a",)]
    found = winner(entries)
    assert found is not None and found.trial.features == ("history_of_a",)
    # Where no history was found, buckets are still judged.
    entries = replay(planner, _curve, trials=40, buckets=buckets)
    found = winner(entries)
    assert found is not None and found.trial.features == tuple(buckets)


def test_known_models_that_the_space_holds_race_and_have_children():
    space = RACE_SPACES["nasrec-2026"]
    known = reference_architectures(space, (3, 5, 8))
    assert {len(one.blocks) for one in known} == {3, 4, 5, 6, 7} and len(known) == 8
    assert not reference_architectures(RACE_SPACES["nasrec-full"], (3, 5, 8)), "they do not read the last block alone"
    config, recipes = RaceConfig(trials=60, features=False), starting_recipes(_SCHEMA, 10_000, _EPOCHS)

    def choices(recipe: Recipe) -> dict[str, BaseDistribution]:
        return recipe_space(_SCHEMA, recipe, _EPOCHS)

    def curve(trial: Trial) -> Curve:
        """Known models are better than what is drawn, and their children are better than they."""
        gain = {"reference": 0.1, "mutation": 0.2}.get(trial.source, 0.0)
        return [(loss - gain, auc, seconds) for loss, auc, seconds in _curve(trial)]

    planner = Planner(config, space, recipes, choices, 8, lambda one: len(one.blocks) != 7, known)
    entries = replay(planner, curve, trials=60)
    raced = [e.trial.interaction for e in entries if e.trial.source == "reference" and e.trial.phase != "finals"]
    allowed = [one for one in known if len(one.blocks) != 7]
    assert {*raced} == {*allowed}, "each once, without those that the limits forbid"
    children = [e.trial.interaction for e in entries if e.trial.source == "mutation"]
    assert any(isinstance(child, Architecture) and len(child.blocks) > space.num_blocks for child in children)


def test_rungs_are_where_losses_order_the_end():
    orderly = [_entry(n, *(n + 10.0 - epoch for epoch in range(10))) for n in range(5)]
    assert set(fidelity(orderly).values()) == {1.0} and calibrated_shares(orderly, False) == (0.15,)
    # Whoever leads before the eighth of ten epochs loses.
    late = [_entry(n, *(10.0 - n - e / 100 for e in range(7)), *(n / 10 - e / 100 for e in range(3))) for n in range(5)]
    assert fidelity(late)[0.6] == -1 and fidelity(late)[0.8] == 1 and calibrated_shares(late, False) == (0.8,)
    assert calibrated_shares(late[:3], True) == (0.6,) and calibrated_shares(late[:3], False) == (0.4,)  # not known yet
    flat = [_entry(n, *(10.0 - n for _ in range(8)), 1.0 + n, n / 10) for n in range(5)]
    assert calibrated_shares(flat, False) == ()  # nothing may be dropped
    assert rung_epochs(10, (0.15, 0.6)) == [2, 6] and rung_epochs(1, (0.6,)) == []
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_one_in_so_many_goes_on():
    rivals = [_entry(n, *(1 + n / 10 for _ in range(6)), status="paused") for n in range(9)]
    going_on = [entry.number for entry in rivals if promotable(entry, rivals, (0.6,), 3)]
    assert going_on == [0, 1, 2]
    assert [entry.number for entry in rivals[:2] if promotable(entry, rivals[:2], (0.6,), 3)] == [0]
    # One that waited may go on when worse ones have come.
    assert not promotable(rivals[1], rivals[:5], (0.6,), 3) and promotable(rivals[1], rivals[:6], (0.6,), 3)


def test_the_best_mean_wins_not_the_luckiest_seed():
    lucky, steady = _entry(0, 0.40), _entry(1, 0.41)
    more = [
        Entry(2, replace(lucky.trial, seed=1, phase="finals"), (0.46,), (0.7,), (1.0,), "complete"),
        Entry(3, replace(steady.trial, seed=1, phase="finals"), (0.42,), (0.7,), (1.0,), "complete"),
    ]
    assert winner([lucky, steady]) == lucky and winner([lucky, steady, *more]) == steady
    assert winner([_entry(0)]) is None
    assert finalists([lucky, steady], 1) == [lucky]


def test_the_surrogate_sees_the_widths_of_tables():
    """The narrower the first table, the better."""
    space = replace(SMALL_SPACE, embedding_widths=(4, 8, 16, 32), width_tables=("t_a", "t_b"))
    generator = torch.Generator().manual_seed(0)
    found = [space.sample(generator) for _ in range(40)]
    entries = [
        Entry(
            n, Trial("architectures", "random", one, _RECIPE), (dict(one.embedding_widths)["t_a"] / 32,), (0.5,), (1.0,)
        )
        for n, one in enumerate(found)
    ]
    surrogate = Surrogate.fit([replace(entry, status="complete") for entry in entries])
    assert surrogate is not None
    ranked = [dict(one.embedding_widths)["t_a"] for one in surrogate.ranked(found)]
    assert sum(ranked[:10]) < sum(ranked[-10:]) / 3


def test_the_surrogate_finds_what_the_trained_ones_have_in_common():
    entries = [e for e in replay(_planner(), _curve, trials=60) if isinstance(e.trial.interaction, Architecture)]
    surrogate = Surrogate.fit(entries)
    assert surrogate is not None and Surrogate.fit(entries[:5]) is None
    architectures = [e.trial.interaction for e in entries if isinstance(e.trial.interaction, Architecture)]
    widths = {architecture.blocks[-1].dense_width for architecture in architectures}
    found = surrogate.ranked(architectures)[0]
    assert found.blocks[-1].dense_width == max(widths)
