"""Recipes: everything about a training but the model, the rows and the features."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.recipes import adam_fits, usual_batch_size


@dataclass(frozen=True)
class Recipe:
    """How a trial is trained; the fields are those of :class:`~nasrec_torchrec.training.config.TrainConfig`.

    Args:
        learning_rate: learning rate at the end of the warm-up; from there it decays as a cosine to the last epoch.
        epochs: passes over the training split; the best of them is kept.
        batch_size: rows of a global batch.
        optimizer: ``adam``, or ``adagrad`` where the tables are large.
        embedding_l2: with adam alone.
        embedding_std: deviation of the tables' initial weights; None is Xavier's.
        dropout: share of dropped outputs.
        warmup_fraction: share of the steps.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    optimizer: Literal["adam", "adagrad"] = "adam"
    embedding_l2: float = 0.0
    embedding_std: float | None = None
    dropout: float = 0.0
    warmup_fraction: float = 0.02

    def train_config(self, seed: int) -> TrainConfig:
        """Returns the settings of a training by this recipe."""
        return TrainConfig(
            **asdict(self),
            seed=seed,
            log_every=100,
            checkpoint_every=1_000_000_000,  # after every epoch alone
            keep_checkpoints=1,
        )

    @property
    def decay(self) -> float:
        """The share that an SGD step at the full learning rate would take off an embedding: how strong L2 is."""
        return self.learning_rate * self.embedding_l2

    def __str__(self) -> str:
        parts = [f"{self.optimizer} {self.learning_rate:.2g}", f"batch {self.batch_size}", f"{self.epochs} epochs"]
        parts += [f"L2 {self.embedding_l2:.2g}"] if self.embedding_l2 else []
        parts += [f"dropout {self.dropout:g}"] if self.dropout else []
        return ", ".join(parts)


def starting_recipes(schema: Schema, rows: int, epochs: int) -> list[Recipe]:
    """Returns what to try first: recipes that were published for data of this kind.

    Args:
        schema: schema of the data.
        rows: number of rows of the training split.
        epochs: number of epochs of every training.
    """
    batch = usual_batch_size(rows)
    adagrad = Recipe(0.1, epochs, batch, "adagrad", warmup_fraction=0.1)  # the NASRec paper's kind
    if not adam_fits(schema):
        return [adagrad, *(replace(adagrad, learning_rate=rate) for rate in (0.03, 0.2, 0.01))]
    adam = Recipe(1e-3, epochs, batch, "adam", embedding_std=1e-4, dropout=0.2)
    return [
        # The high rate comes first: it gets furthest in the few epochs of a small budget.
        replace(adam, learning_rate=1e-2, embedding_l2=5e-2),
        replace(adam, learning_rate=3e-3, embedding_l2=1e-2),
        replace(adam, embedding_l2=1e-3),
        replace(adam, embedding_l2=5e-2),  # BARS' for Frappe
        replace(adam, embedding_l2=1e-5, dropout=0.0),
        adagrad,
    ]


def recipe_space(schema: Schema, around: Recipe, epochs: int) -> dict[str, BaseDistribution]:
    """Returns what a sampler may choose, by the name of the field.

    Args:
        schema: schema of the data.
        around: recipe whose batch size is varied and whose other values are kept unless they are sampled.
        epochs: the usual number of them.
    """
    adam = adam_fits(schema)
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(3e-4, 2e-2, log=True) if adam else FloatDistribution(3e-3, 0.5, log=True),
        "batch_size": CategoricalDistribution([max(64, around.batch_size // 2), around.batch_size]),
        "dropout": CategoricalDistribution([0.0, 0.1, 0.2, 0.4]),
        "epochs": CategoricalDistribution(sorted({max(1, (epochs + 1) // 2), epochs})),
    }
    if adam:
        space["embedding_l2"] = FloatDistribution(1e-6, 0.2, log=True)
        space["embedding_std"] = CategoricalDistribution([None, 1e-4])
    return space


def with_parameters(recipe: Recipe, parameters: dict[str, Any]) -> Recipe:
    """Returns the recipe with what a sampler chose; numbers are rounded to what a person would write."""
    rounded: dict[str, Any] = {
        name: _rounded(value) if isinstance(value, float) else value for name, value in parameters.items()
    }
    return replace(recipe, **rounded)


def neighbours(recipe: Recipe, adam: bool) -> Iterator[Recipe]:
    """Recipes that differ in one number, the weightier ones first."""
    if adam and recipe.optimizer == "adam":
        yield replace(recipe, embedding_l2=_rounded(max(recipe.embedding_l2, 1e-6) * 3))
        yield replace(recipe, embedding_l2=_rounded(recipe.embedding_l2 / 3))
    yield replace(recipe, learning_rate=_rounded(recipe.learning_rate * 2))
    yield replace(recipe, learning_rate=_rounded(recipe.learning_rate / 2))
    yield replace(recipe, dropout=_rounded(min(0.6, recipe.dropout + 0.2)))
    yield replace(recipe, dropout=_rounded(max(0.0, recipe.dropout - 0.2)))
    yield replace(recipe, batch_size=max(64, recipe.batch_size // 2))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
