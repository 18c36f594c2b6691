"""Search spaces: sets of architectures from which one can sample and mutate (NASRec, sections 3 and 4.1)."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from nasrec_torchrec.architecture import DENSE_OPERATORS, SPARSE_OPERATORS, Architecture, BlockArchitecture
from nasrec_torchrec.block_architecture import Activation, Normalization, check_choice
from nasrec_torchrec.table_widths import check_width

if TYPE_CHECKING:  # a command line only needs the values, and importing torch takes seconds
    import torch

Strategy = Literal[
    "single_operator_any_connection",
    "single_operator_single_connection",
    "any_operator_any_connection",
    "full",
]
Outputs = Literal["last", "any"]


@dataclass(frozen=True)
class SearchSpace:
    """A set of architectures whose weights one supernet can hold.

    Args:
        num_blocks: Number of choice blocks of every architecture.
        dense_operators: Names of the dense operators that a block may use.
        sparse_operators: Names of the sparse operators that a block may use.
        dense_widths: Allowed numbers of columns of a dense output.
        sparse_widths: Allowed numbers of tokens of a sparse output.
        max_inputs: Maximum number of earlier outputs that a block reads on the dense side, and on the sparse side.
            The binary operators always read one on their left and one on their right.
        outputs: What the final linear layer reads: the ``last`` block, as in the paper, or ``any`` blocks, up to
            max_inputs on the dense side and as many or none on the sparse side.
        embedding_widths: Embedding dimensions among which an architecture chooses for each table, multiples of 4, such
            as 4,8,16,32; none leaves the tables as the data has them. A supernet stores tables of the largest one.
        width_tables: Names of the tables whose width is a choice, if it is not one for all; the others keep theirs.
        activations: Activations among which a block chooses, for the operators that end in one: relu, prelu, gelu. None
            leaves all of them at relu.
        normalizations: What may follow the linear layers of a block: none, layer for a LayerNorm, or batch for batch
            normalization, which a supernet refuses. None leaves it to use_layernorm.
        residuals: Whether a block may add its newest inputs to its outputs.

    Raises:
        ValueError: If a count is not positive, a choice is empty, an operator is unknown, or a width of tables is no
            multiple of 4.

    Example:
        >>> import torch
        >>> NASREC_SMALL.cardinality > 10**20
        True
        >>> architecture = NASREC_SMALL.sample(torch.Generator().manual_seed(0))
        >>> NASREC_SMALL.mutate(architecture, torch.Generator()) != architecture
        True
    """

    num_blocks: int = 7
    dense_operators: tuple[str, ...] = DENSE_OPERATORS
    sparse_operators: tuple[str, ...] = SPARSE_OPERATORS
    dense_widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 768, 1024)
    sparse_widths: tuple[int, ...] = (16, 32, 48, 64)
    max_inputs: int = 4
    outputs: Outputs = "last"
    embedding_widths: tuple[int, ...] = ()
    width_tables: tuple[str, ...] = ()
    activations: tuple[Activation, ...] = ()
    normalizations: tuple[Normalization, ...] = ()
    residuals: bool = False

    def __post_init__(self) -> None:
        for name in ("num_blocks", "max_inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, found {getattr(self, name)}")
        for name in ("dense_operators", "sparse_operators", "dense_widths", "sparse_widths"):
            values = tuple(getattr(self, name))
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: expected one or more distinct values, found {values}")
            object.__setattr__(self, name, values)
        if self.outputs not in get_args(Outputs):
            raise ValueError(f"outputs: expected one of {list(get_args(Outputs))}, found {self.outputs!r}")
        for name in ("embedding_widths", "width_tables", "activations", "normalizations"):
            values = tuple(getattr(self, name))
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: expected distinct values, found {values}")
            object.__setattr__(self, name, values)
        for width in self.embedding_widths:
            check_width(width, "embedding_widths")
        if self.width_tables and not self.embedding_widths:
            raise ValueError(f"width_tables: expected none without embedding_widths, found {self.width_tables}")
        for activation in self.activations:
            check_choice("activation", activation)
        for normalization in self.normalizations:
            check_choice("normalization", normalization)
        self.union()  # BlockArchitecture checks operators and widths.

    @property
    def cardinality(self) -> int:
        """Number of architectures with one dense and one sparse operator per block, the set that a search covers.

        Widths of tables count once the tables are known, see :meth:`for_tables`.
        """
        per_block = (
            len(self.dense_operators)
            * len(self.sparse_operators)
            * len(self.dense_widths)
            * len(self.sparse_widths)
            * 2  # dense-to-sparse merger
            * 2  # sparse-to-dense merger
            * math.prod(map(len, self.block_choices.values()))
        )
        total = 1
        for block in range(self.num_blocks):
            available = block + 1
            subsets = sum(math.comb(available, size) for size in range(1, min(available, self.max_inputs) + 1))
            total *= per_block * subsets**2 * available**2
        if self.outputs == "any":
            subsets = sum(math.comb(self.num_blocks, size) for size in range(1, self._most_outputs + 1))
            total *= subsets * (subsets + 1)  # the sparse side may be left out
        if self.embedding_widths:
            total *= len(self.embedding_widths) ** len(self.width_tables)
        return total

    @property
    def block_choices(self) -> dict[str, tuple[Any, ...]]:
        """The values of each field of a block that the paper's blocks do not have, the first being the simplest."""
        return {
            "activation": self.activations or ("relu",),
            "normalization": self.normalizations or (None,),
            "residual": (False, True) if self.residuals else (False,),
        }

    def for_tables(self, names: Iterable[str]) -> "SearchSpace":
        """Tells the space which tables there are, so that it can choose the width of each.

        Args:
            names: Names of the tables of the data or of a collection.

        Returns:
            A space that chooses the width of all of them, or of those that it names already. A space without widths of
            tables remains as it is.

        Raises:
            ValueError: If it names a table that does not exist.
        """
        if not self.embedding_widths:
            return self
        known = tuple(names)
        if unknown := [name for name in self.width_tables if name not in known]:
            raise ValueError(f"width_tables: there is no table {unknown}; the tables are {list(known)}")
        return self if self.width_tables else replace(self, width_tables=known)

    def sample(
        self, generator: "torch.Generator | None" = None, strategy: Strategy = "single_operator_any_connection"
    ) -> Architecture:
        """Samples an architecture.

        Args:
            generator: Source of randomness. Ranks that use the same seed sample the same architecture.
            strategy: How to sample. ``single_operator_any_connection`` is the paper's strategy: one dense and one
                sparse operator, and 1 + Binomial(min(i, max_inputs - 1), 1/2) inputs for block i.
                ``single_operator_single_connection`` samples one input, ``any_operator_any_connection`` also samples
                1 + Binomial operators, and ``full`` takes everything at its maximum and only samples the operands of
                the binary operators.

        Returns:
            The architecture.

        Raises:
            ValueError: If the strategy is unknown, or widths of tables are a choice and the tables are not known.
        """
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy: expected one of {list(get_args(Strategy))}, found {strategy!r}")
        rng = _rng(generator)
        blocks = tuple(self._sample_block(index, strategy, rng) for index in range(self.num_blocks))
        dense, sparse = self._sample_outputs(strategy, rng)
        return Architecture(blocks, dense, sparse, self._sample_widths(strategy, rng))

    def mutate(self, architecture: Architecture, generator: "torch.Generator | None" = None) -> Architecture:
        """Samples one choice of one block again, as the paper does.

        A connection and a choice inside the block are equally likely. Unlike in the paper, the result always differs
        from its parent.

        Args:
            architecture: The parent, an architecture of this space.
            generator: Source of randomness.

        Returns:
            The mutated architecture.

        Raises:
            ValueError: If the architecture does not belong to this space, or if the space has only one architecture.
        """
        self.check(architecture)
        if self.cardinality == 1:
            raise ValueError("cannot mutate: this search space holds a single architecture")
        rng = _rng(generator)
        while True:
            # With outputs to choose, they count as one more block, and so do the widths of tables.
            others = [self._mutate_outputs] * (self.outputs == "any") + [self._mutate_widths] * bool(self.width_tables)
            index = rng.randrange(self.num_blocks + len(others))
            if index >= self.num_blocks:
                child = others[index - self.num_blocks](architecture, rng)
                if child != architecture:
                    return child
                continue
            chosen = [field for field, values in self.block_choices.items() if len(values) > 1]
            names = rng.choice((_CONNECTION_FIELDS, (*_INNER_FIELDS, *chosen)))
            name = rng.choice(names)
            value: Any = getattr(self._sample_block(index, "single_operator_any_connection", rng), name)
            if name in ("dense_inputs", "sparse_inputs"):
                # Mutation draws the number of inputs uniformly, path sampling draws it binomially.
                value = tuple(rng.sample(range(index + 1), 1 + rng.randrange(min(index + 1, self.max_inputs))))
            blocks = list(architecture.blocks)
            blocks[index] = replace(blocks[index], **{name: value})
            child = replace(architecture, blocks=tuple(blocks))
            if child != architecture:
                return child

    def union(self) -> Architecture:
        """Builds the architecture that uses everything at its maximum, which is what a supernet has to store.

        Returns:
            The architecture. Its binary operators read all earlier outputs on both sides.
        """
        outputs = tuple(range(1, self.num_blocks + 1)) if self.outputs == "any" else None
        # Those with parameters.
        most = {"prelu", "layer", True}
        choices = {name: next((v for v in found if v in most), found[0]) for name, found in self.block_choices.items()}
        return Architecture(
            dense_outputs=outputs,
            sparse_outputs=outputs,
            embedding_widths=self._widest,
            blocks=tuple(
                BlockArchitecture(
                    dense_operators=self.dense_operators,
                    sparse_operators=self.sparse_operators,
                    dense_width=max(self.dense_widths),
                    sparse_width=max(self.sparse_widths),
                    dense_inputs=tuple(range(index + 1)),
                    sparse_inputs=tuple(range(index + 1)),
                    left_inputs=tuple(range(index + 1)),
                    right_inputs=tuple(range(index + 1)),
                    dense_to_sparse=True,
                    sparse_to_dense=True,
                    **choices,
                )
                for index in range(self.num_blocks)
            ),
        )

    def check(self, architecture: Architecture) -> None:
        """Checks that a supernet of this space can run an architecture.

        Args:
            architecture: The architecture to check.

        Raises:
            ValueError: If it cannot. The message says why.
        """
        if len(architecture.blocks) != self.num_blocks:
            raise ValueError(f"expected {self.num_blocks} choice blocks, found {len(architecture.blocks)}")
        for index, block in enumerate(architecture.blocks):
            for name in ("dense_operators", "sparse_operators"):
                unknown = sorted(set(getattr(block, name)) - set(getattr(self, name)))
                if unknown:
                    raise ValueError(
                        f"block {index}: {name}: {unknown} not in this space, it has {getattr(self, name)}"
                    )
            widths = {"dense_width": self.dense_widths, "sparse_width": self.sparse_widths}
            for name, allowed in (widths | self.block_choices).items():
                if getattr(block, name) not in allowed:
                    raise ValueError(
                        f"block {index}: {name}: {getattr(block, name)} not in this space, it has {allowed}"
                    )
            for name in ("left_inputs", "right_inputs"):
                if len(getattr(block, name)) != 1:
                    raise ValueError(f"block {index}: {name}: expected one input, found {getattr(block, name)}")
        if self.outputs == "last" and not architecture.reads_last_block:
            raise ValueError(
                "in this space the final layer reads the last block, found dense_outputs "
                f"{architecture.dense_outputs}, sparse_outputs {architecture.sparse_outputs}"
            )
        if any(0 in outputs for outputs in architecture.outputs):
            raise ValueError("in this space the final layer reads blocks, found output 0, the raw input")
        self._check_widths(architecture)

    def fitted(self, architecture: Architecture) -> Architecture:
        """Brings an architecture into this space, such as one of :data:`~nasrec_torchrec.models.reference.REFERENCE`.

        Widths become the next larger ones that the space has, or its largest, and blocks that nobody reads fill up
        their number. A wider network can compute the same. A normalization that a block leaves open becomes ``none``,
        or what the space has.

        Args:
            architecture: An architecture of other widths, or with fewer blocks. Tables whose width it does not choose
                get the largest one.

        Returns:
            An architecture of this space.

        Raises:
            ValueError: If the space lacks an operator, has fewer blocks, or reads its outputs differently.
        """
        spare = replace(self.union().blocks[0], dense_to_sparse=False, sparse_to_dense=False, residual=False)
        spare = replace(spare, dense_operators=spare.dense_operators[:1], sparse_operators=spare.sparse_operators[:1])
        blocks = [*architecture.blocks, *[spare] * (self.num_blocks - len(architecture.blocks))]
        norms: tuple[Normalization | None, ...] = self.block_choices["normalization"]
        norm: Normalization | None = "none" if "none" in norms else norms[0]
        fitting = [
            replace(
                block,
                dense_width=_next_larger(block.dense_width, self.dense_widths),
                sparse_width=_next_larger(block.sparse_width, self.sparse_widths),
                normalization=block.normalization or norm,
            )
            for block in blocks
        ]
        chosen = dict(architecture.embedding_widths)
        widths = {name: chosen.get(name, width) for name, width in self._widest}
        fitted = tuple((name, _next_larger(width, self.embedding_widths)) for name, width in widths.items())
        found = Architecture(tuple(fitting), *architecture.outputs, fitted)
        self.check(found)
        return found

    @property
    def _widest(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, max(self.embedding_widths)) for name in self.width_tables)

    def _check_widths(self, architecture: Architecture) -> None:
        chosen = dict(architecture.embedding_widths)
        if self.embedding_widths and not self.width_tables:
            raise ValueError(f"embedding_widths: {_NO_TABLES}")
        if set(chosen) != set(self.width_tables):
            raise ValueError(
                f"embedding_widths: in this space an architecture chooses the width of the tables "
                f"{sorted(self.width_tables)}, found those of {sorted(chosen)}"
            )
        for name, width in chosen.items():
            if width not in self.embedding_widths:
                raise ValueError(
                    f"embedding_widths: table '{name}': {width} not in this space, it has {self.embedding_widths}"
                )

    def _sample_widths(self, strategy: Strategy, rng: random.Random) -> tuple[tuple[str, int], ...]:
        """Draws the width of every table."""
        if self.embedding_widths and not self.width_tables:
            raise ValueError(f"embedding_widths: {_NO_TABLES}")
        if strategy == "full":
            return self._widest
        return tuple((name, rng.choice(self.embedding_widths)) for name in self.width_tables)

    def _mutate_widths(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Draws the width of one table again."""
        changed = {rng.choice(self.width_tables): rng.choice(self.embedding_widths)}
        return replace(architecture, embedding_widths=tuple((dict(architecture.embedding_widths) | changed).items()))

    @property
    def _most_outputs(self) -> int:
        return min(self.num_blocks, self.max_inputs)

    def _sample_outputs(
        self, strategy: Strategy, rng: random.Random
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Draws what the final layer reads on the dense and on the sparse side."""
        if self.outputs == "last":
            return None, None
        blocks = range(1, self.num_blocks + 1)
        if strategy == "full":
            return tuple(blocks), tuple(blocks)
        most = 1 if strategy == "single_operator_single_connection" else self._most_outputs
        dense, sparse = (tuple(rng.sample(blocks, _one_plus_binomial(most - 1, rng))) for _ in range(2))
        return dense, sparse if rng.random() < 0.5 else ()

    def _mutate_outputs(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Draws one side of what the final layer reads again."""
        name = rng.choice(("dense_outputs", "sparse_outputs"))
        size = rng.randint(1 if name == "dense_outputs" else 0, self._most_outputs)
        value: Any = tuple(rng.sample(range(1, self.num_blocks + 1), size))
        return replace(architecture, **{name: value})

    def _sample_block(self, index: int, strategy: Strategy, rng: random.Random) -> BlockArchitecture:
        sources = range(index + 1)
        full = strategy == "full"

        def inputs() -> tuple[int, ...]:
            if full:
                return tuple(sources)
            if strategy == "single_operator_single_connection":
                return (rng.choice(sources),)
            return tuple(rng.sample(sources, _one_plus_binomial(min(index, self.max_inputs - 1), rng)))

        def operators(names: tuple[str, ...]) -> tuple[str, ...]:
            if full:
                return names
            if strategy == "any_operator_any_connection":
                return tuple(rng.sample(names, _one_plus_binomial(len(names) - 1, rng)))
            return (rng.choice(names),)

        return BlockArchitecture(
            dense_operators=operators(self.dense_operators),
            sparse_operators=operators(self.sparse_operators),
            dense_width=max(self.dense_widths) if full else rng.choice(self.dense_widths),
            sparse_width=max(self.sparse_widths) if full else rng.choice(self.sparse_widths),
            dense_inputs=inputs(),
            sparse_inputs=inputs(),
            left_inputs=(rng.choice(sources),),
            right_inputs=(rng.choice(sources),),
            dense_to_sparse=full or rng.random() < 0.5,
            sparse_to_dense=full or rng.random() < 0.5,
            **self._sample_choices(full, rng),
        )

    def _sample_choices(self, full: bool, rng: random.Random) -> dict[str, Any]:
        """Draws what the paper's blocks do not have, and nothing where there is no choice."""
        found = {n: rng.choice(values) if len(values) > 1 else values[0] for n, values in self.block_choices.items()}
        return found | ({"residual": self.residuals} if full else {})


_NO_TABLES = "the space does not know the tables yet; for_tables(names) tells it"
_CONNECTION_FIELDS = ("dense_inputs", "sparse_inputs", "left_inputs", "right_inputs")
_INNER_FIELDS = (
    "dense_operators",
    "sparse_operators",
    "dense_width",
    "sparse_width",
    "dense_to_sparse",
    "sparse_to_dense",
)


def _rng(generator: "torch.Generator | None") -> random.Random:
    # One number from the tensor generator seeds all choices: sampling 70 tensors would cost more than a small forward
    # pass.
    import torch

    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def _next_larger(width: int, allowed: tuple[int, ...]) -> int:
    return min((w for w in allowed if w >= width), default=max(allowed))


def _one_plus_binomial(trials: int, rng: random.Random) -> int:
    return 1 + sum(rng.random() < 0.5 for _ in range(trials))


NASREC_FULL = SearchSpace()
NASREC_SMALL = SearchSpace(
    dense_operators=("fully_connected", "dot_product"), sparse_operators=("embedded_fully_connected",)
)

NASREC_2026 = SearchSpace(
    dense_operators=(
        *DENSE_OPERATORS,
        *("flatten", "low_rank_cross", "gated_cross", "factorized_interaction", "instance_mask"),
    ),
    sparse_operators=(
        *SPARSE_OPERATORS,
        *("wide_attention", "squeeze_excitation", "compressed_fm", "token_mixing"),
    ),
    dense_widths=(16, 32, 64, 128, 256, 512),
    sparse_widths=(8, 16, 32, 48),
    outputs="any",
)

# By the name that a command line has for them.
SPACES = {"nasrec-full": NASREC_FULL, "nasrec-small": NASREC_SMALL, "nasrec-2026": NASREC_2026}
