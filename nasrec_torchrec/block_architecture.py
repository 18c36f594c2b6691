"""The choices for one block of an architecture: what it computes, how wide it is and what it reads."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

from nasrec_torchrec.operator_kinds import KINDS, Reads, Side, names_of

Activation = Literal["relu", "prelu", "gelu"]
Normalization = Literal["none", "layer", "batch"]
_CAPTIONS = {"prelu": "PReLU", "gelu": "GELU", "none": "no LayerNorm", "layer": "LayerNorm", "batch": "BatchNorm"}


@dataclass(frozen=True)
class BlockArchitecture:
    """The choices for one block.

    Args:
        dense_operators: Names of the operators that produce the dense output; their outputs are added.
        sparse_operators: Names of the operators that produce the sparse output; their outputs are added.
        dense_width: Number of columns of the dense output ``(B, dense_width)``.
        sparse_width: Number of tokens of the sparse output ``(B, sparse_width, E)``.
        dense_inputs: Indices of the dense outputs that the block reads and concatenates in ascending order. 0 is the
            raw input, and i is the output of block i-1 (counted from 0).
        sparse_inputs: Indices of the sparse outputs that the block reads, counted in the same way.
        left_inputs: Indices of the dense outputs that the binary operators (``sigmoid_gating``, ``sum``) read on
            their left side.
        right_inputs: Indices of the dense outputs that they read on their right side.
        dense_to_sparse: Whether 8 tokens that are projected from the dense output are appended to the sparse output.
        sparse_to_dense: Whether a factorization machine over the tokens is added to the dense output.
        activation: What the operators that end in an activation (:class:`~nasrec_torchrec.operator_kinds.OperatorKind`)
            apply there. What they apply inside is theirs.
        normalization: What follows the linear layers of the block: ``none``, ``layer`` for a LayerNorm, or ``batch``
            for batch normalization, which a supernet cannot have. None leaves it to the model's ``use_layernorm``.
        residual: Whether the newest of dense_inputs is added to the dense output, and the tokens of the newest of
            sparse_inputs to the sparse output: their first columns or tokens, padded with zeros if they have fewer.

    Raises:
        ValueError: If an operator is unknown, missing or repeated, a width is not positive, the inputs are not
            non-negative integers, or another choice does not exist.
    """

    dense_operators: tuple[str, ...]
    sparse_operators: tuple[str, ...]
    dense_width: int
    sparse_width: int
    dense_inputs: tuple[int, ...]
    sparse_inputs: tuple[int, ...]
    left_inputs: tuple[int, ...]
    right_inputs: tuple[int, ...]
    dense_to_sparse: bool
    sparse_to_dense: bool
    activation: Activation = "relu"
    normalization: Normalization | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        sides: tuple[Side, ...] = ("dense", "sparse")
        for side in sides:
            allowed = names_of(side)
            names = tuple(sorted(_strings(getattr(self, f"{side}_operators"), f"{side}_operators")))
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{side}_operators: expected one or more distinct names, found {names}")
            unknown = [name for name in names if name not in allowed]
            if unknown:
                raise ValueError(
                    f"{side}_operators: unknown operator {unknown}; allowed are {list(allowed)}, and those that a "
                    "module named by --plugins registers"
                )
            object.__setattr__(self, f"{side}_operators", names)
            width = getattr(self, f"{side}_width")
            if not is_integer(width) or width <= 0:
                raise ValueError(f"{side}_width: expected a positive integer, found {width!r}")
        for name in ("dense_inputs", "sparse_inputs", "left_inputs", "right_inputs"):
            values = getattr(self, name)
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise ValueError(f"{name}: expected a list of block indices, found {values!r}")
            values = list(values)
            if not values or not all(is_integer(v) and v >= 0 for v in values):
                raise ValueError(f"{name}: expected one or more non-negative integers, found {values}")
            # Order and repetition carry no meaning: inputs are concatenated in ascending order, each once.
            object.__setattr__(self, name, tuple(sorted(set(values))))
        for name in ("dense_to_sparse", "sparse_to_dense", "residual"):
            value = getattr(self, name)
            if value not in (0, 1, True, False) or not isinstance(value, bool | int):
                raise ValueError(f"{name}: expected true or false, found {value!r}")
            object.__setattr__(self, name, bool(value))
        check_choice("activation", self.activation)
        if self.normalization is not None:
            check_choice("normalization", self.normalization)

    @property
    def dense_sources(self) -> tuple[int, ...]:
        """Indices of the dense outputs that the dense side reads, in ascending order."""
        sources = self.dense_inputs if reads("dense", self.dense_operators) else ()
        operands = (*self.left_inputs, *self.right_inputs) if reads("operands", self.dense_operators) else ()
        newest = self.dense_inputs[-1:] if self.residual else ()
        return tuple(sorted({*sources, *operands, *newest}))

    @property
    def special(self) -> tuple[str, ...]:
        """What of the block is not as in the paper, in words for drawings: its activation, norm and residual."""
        named = [_CAPTIONS[name] for name in (self.activation, self.normalization) if name in _CAPTIONS]
        return (*named, *(["residual"] if self.residual else []))

    def computes(self, dense_is_read: bool, sparse_is_read: bool) -> tuple[bool, bool]:
        """Decides which operators of the block have to run.

        Args:
            dense_is_read: Whether anything reads the block's dense output.
            sparse_is_read: Whether anything reads the block's sparse output.

        Returns:
            Whether the dense operators have to run, and whether the sparse ones do.
        """
        return (
            dense_is_read or (sparse_is_read and self.dense_to_sparse),
            sparse_is_read or (dense_is_read and self.sparse_to_dense),
        )


def reads(what: Reads, operators: Iterable[str]) -> bool:
    """Returns whether any of the operators reads something."""
    return any(what in KINDS[name].reads for name in operators)


def check_choice(name: Literal["activation", "normalization"], value: object) -> None:
    """Raises ValueError unless a block can choose ``value`` as its activation or normalization."""
    allowed = get_args({"activation": Activation, "normalization": Normalization}[name])
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, found {value!r}")


def without_defaults(block: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out the fields of a block that are as in older versions, which did not have them."""
    return {name: value for name, value in block.items() if name not in OPTIONAL or value != OPTIONAL[name]}


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _strings(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{where}: expected a list of names, found {value!r}")
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: expected a list of names, found {names}")
    return names


# The fields that a document may leave out, and their values where it does.
OPTIONAL = {field.name: field.default for field in fields(BlockArchitecture) if field.default is not MISSING}
