import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold
from support import SHARED

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.splits import LEFT_OUT, assign, stratified


def _sklearn(labels: np.ndarray, seed: int) -> np.ndarray:
    folds = np.empty(len(labels), int)
    for number, (_, rows) in enumerate(StratifiedKFold(10, shuffle=True, random_state=seed).split(labels, labels)):
        folds[rows] = number
    return folds


@given(st.integers(10, 300), st.integers(10, 300), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_folds_are_those_of_scikit_learn(zeros, ones, seed, order):
    labels = np.random.default_rng(order).permutation(np.repeat([0, 1], [zeros, ones])).astype(np.int8)
    assert np.array_equal(stratified(labels, seed), _sklearn(labels, seed))


@pytest.mark.skipif(not SHARED.exists(), reason="the real rows are not on this machine")
def test_the_split_of_real_criteo_rows_is_that_of_scikit_learn():
    lines = (SHARED / "data" / "criteo_10k_head.txt").read_text().splitlines()
    labels = np.array([int(line[0]) for line in lines], np.int8)
    expected = np.array([0] * 8 + [1, 2])[_sklearn(labels, 2018)]
    assert np.array_equal(assign(SplitConfig(), labels, None), expected)


def test_too_few_rows_of_a_label_are_refused():
    with pytest.raises(ValueError, match="label 1 has 3 rows, 10 or more are needed"):
        stratified(np.array([0] * 50 + [1] * 3), 0)


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=60))
def test_a_split_by_time_never_trains_on_what_comes_later(times):
    key = np.array(times, float)
    splits = assign(SplitConfig("time", "t", validation_share=0.25, test_share=0.25), np.zeros(len(key)), key)
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if np.any(splits == earlier) and np.any(splits == later):
            assert key[splits == earlier].max() <= key[splits == later].min()
    assert abs(np.count_nonzero(splits == 0) - len(key) / 2) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.floats(0.01, 1), st.integers(0, 9))
def test_of_the_training_rows_without_a_click_a_share_is_kept(clicks, share, seed):
    labels, key = np.array(clicks, np.int8), np.random.default_rng(seed).integers(0, 3, len(clicks))
    key[0], labels[0] = 0, 1
    whole, some = (assign(SplitConfig("column", "s", seed, keep_negatives=kept), labels, key) for kept in (1, share))
    left_out = some == LEFT_OUT
    assert np.array_equal(whole[~left_out], some[~left_out])
    assert np.all(whole[left_out] == 0) and np.all(labels[left_out] == 0)
    negatives = np.count_nonzero((whole == 0) & (labels == 0))
    error = 5 * np.sqrt(negatives * share * (1 - share)) + 1
    assert abs(negatives - np.count_nonzero(left_out) - share * negatives) <= error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_negatives": 0}, "keep_negatives: expected more than 0 and at most 1, found 0"),
        ({"split": "random"}, "split: expected one of .*found 'random'"),
        ({"split": "column"}, "split_column: the split 'column' needs it"),
        ({"split_column": "t"}, "only the splits 'time' and 'column' read it"),
        ({"split": "time", "validation_share": 0.6, "test_share": 0.4}, "nothing is left for train"),
        ({"split": "time", "test_share": -0.1}, "test_share: expected 0 or more"),
    ],
)
def test_bad_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**arguments)
