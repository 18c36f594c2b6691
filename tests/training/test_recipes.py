import pytest
from support import make_schema

from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.training.config import TrainConfig, TrainFlags
from nasrec_torchrec.training.recipes import fitted, paper

SMALL = make_schema()
LARGE = Schema("label", (), (SparseFeature("item", 10_000_000),))
NARROW = Schema("label", (), (SparseFeature("item", 10_000_000, embedding_dim=4),))  # 153 MiB


@pytest.mark.parametrize(
    "flags, rows, schema, supernet, expected",
    [
        (TrainFlags(), 58_284, SMALL, False, ("adam", 1e-3, 256, 10)),
        (TrainFlags(), 800_000, SMALL, False, ("adam", 1e-3, 4096, 2)),
        (TrainFlags(), 58_284, SMALL, True, ("adagrad", 0.05, 256, 6)),
        (TrainFlags(), 58_284, LARGE, False, ("adagrad", 0.05, 256, 10)),
        (TrainFlags(), 58_284, NARROW, False, ("adam", 1e-3, 256, 10)),
        (TrainFlags(), 36_000_000, LARGE, False, ("adagrad", 0.12, 512, 1)),
        (TrainFlags(), 100, SMALL, False, ("adam", 1e-3, 8, 10)),
        # A learning rate that somebody gave is one of Adagrad, which the flags' default was and the pages speak of.
        (TrainFlags(learning_rate=0.1), 58_284, SMALL, False, ("adagrad", 0.1, 256, 10)),
        (TrainFlags(sharding_type="row_wise"), 58_284, SMALL, False, ("adagrad", 0.05, 256, 10)),
        (TrainFlags(embedding_l2=0.1, learning_rate=0.01), 58_284, SMALL, False, ("adam", 0.01, 256, 10)),
        (TrainFlags(epochs=2, batch_size=7), 58_284, SMALL, False, ("adam", 1e-3, 7, 2)),
    ],
)
def test_what_is_left_open_follows_from_the_data(flags, rows, schema, supernet, expected):
    config, _ = fitted(flags, rows, schema, supernet=supernet)
    assert (config.optimizer, config.learning_rate, config.batch_size, config.epochs) == expected


def test_one_line_says_what_was_chosen_and_why():
    config, reason = fitted(TrainFlags(), 58_284, SMALL, supernet=True)
    assert config.full_path_steps == 6 * (58_284 // 256) // 4
    assert reason == (
        "58,284 training rows, 0.0 MiB of tables: 6 epochs at batch 256 = 1,362 steps; adagrad, learning rate 0.05; "
        "full path decays over 340 steps (--recipe paper takes the paper's settings)"
    )
    _, reason = fitted(TrainFlags(epochs=1), 58_284, SMALL, rates=(0.1, 0.2))
    assert "1 epoch at batch 256 = 227 steps; adagrad, learning rate 0.1, 0.2 (" in reason
    given = TrainFlags(1, 32, 0.1, optimizer="adagrad", embedding_l2=0)
    assert fitted(given, 1000, SMALL)[1] == ""


def test_ranks_share_a_fitted_batch():
    assert fitted(TrainFlags(), 1000, SMALL, ranks=3)[0].batch_size % 3 == 0


def test_the_papers_recipe_and_a_whole_configuration_follow_nothing():
    assert paper(TrainFlags(epochs=3)) == TrainConfig(epochs=3)
    assert fitted(TrainConfig(), 1000, SMALL) == (TrainConfig(), "")
    # 45 million rows of Criteo: 8 of 10 are for training. The paper's warm-up fits into these steps.
    assert fitted(TrainFlags(), 36_000_000, LARGE, supernet=True)[0] == TrainConfig(full_path_steps=15_000)
