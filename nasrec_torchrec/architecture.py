"""Architectures as values: what each choice block computes, how wide it is and what it reads.

An :class:`Architecture` is one point of a search space (NASRec, arXiv 2207.07187, section 3). It is frozen, hashable
and validated when it is created. It converts to and from two JSON formats: ours, and the one in which the research code
publishes its results (``{"micro": [...], "macro": [...]}``).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nasrec_torchrec.block_architecture import OPTIONAL, BlockArchitecture, is_integer, reads, without_defaults
from nasrec_torchrec.operator_kinds import KINDS

# Operator names in the order in which the research code numbers them, per published space.
_PUBLISHED_OPERATORS: dict[str, tuple[str, ...]] = {
    "xlarge": (
        "fully_connected",
        "dot_product",
        "sigmoid_gating",
        "sum",
        "attention",
        "embedded_fully_connected",
    ),
    "autoctr": ("fully_connected", "dot_product", "embedded_fully_connected"),
}
DENSE_OPERATORS: tuple[str, ...] = ("fully_connected", "dot_product", "sigmoid_gating", "sum")
SPARSE_OPERATORS: tuple[str, ...] = ("embedded_fully_connected", "attention")

_FORMAT = "nasrec-torchrec/architecture/1"
# Of an architecture whose logit does not just read the last block; readers of format 1 do not know such networks.
_FORMAT_OF_OUTPUTS = "nasrec-torchrec/architecture/2"
# Of an architecture that chooses the width of tables; it names its outputs, too.
_FORMAT_OF_WIDTHS = "nasrec-torchrec/architecture/3"
# Of one whose blocks choose their activation, normalization or a residual; it names all of the above, too.
_FORMAT_OF_CHOICES = "nasrec-torchrec/architecture/4"
_FORMATS = _FORMAT, _FORMAT_OF_OUTPUTS, _FORMAT_OF_WIDTHS, _FORMAT_OF_CHOICES
_LATER = "embedding_widths", "width_tables", "activations", "normalizations", "residuals", "batch_norm"


@dataclass(frozen=True)
class Architecture:
    """A whole network as the sequence of its choice blocks.

    Architectures are hashable, and two of them are equal if their blocks, outputs and widths of tables are.

    Args:
        blocks: One or more blocks. Block i may read the outputs 0 to i.
        dense_outputs: Indices of the dense outputs that the final linear layer reads. None stands for the last block's.
        sparse_outputs: Indices of the sparse outputs that the final linear layer reads, possibly none. None stands for
            the last block's.
        embedding_widths: Embedding dimension of each table whose width is a choice, by the name of the table; a mapping
            or pairs. Tables that it does not name have the width that the data or the collection gives them.

    Raises:
        ValueError: If there is no block, if something reads an output that does not exist (yet), if the final linear
            layer reads nothing, or if a width is not a positive integer.

    Example:
        >>> from nasrec_torchrec import PUBLISHED
        >>> PUBLISHED["criteo-small"].blocks[0].dense_operators
        ('fully_connected',)
        >>> Architecture.from_json(PUBLISHED["criteo-small"].to_json()) == PUBLISHED["criteo-small"]
        True
    """

    blocks: tuple[BlockArchitecture, ...]
    dense_outputs: tuple[int, ...] | None = None
    sparse_outputs: tuple[int, ...] | None = None
    embedding_widths: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise ValueError("blocks: an architecture needs at least one choice block, found none")
        for index, block in enumerate(self.blocks):
            for name in ("dense_inputs", "sparse_inputs", "left_inputs", "right_inputs"):
                for source in getattr(block, name):
                    if source > index:
                        raise ValueError(
                            f"block {index}: {name}: input {source} does not exist yet; "
                            f"block {index} may read 0..{index}"
                        )
        for name in ("dense_outputs", "sparse_outputs"):
            object.__setattr__(self, name, _outputs(getattr(self, name), name, len(self.blocks)))
        if not self.dense_outputs and not self.sparse_outputs:
            raise ValueError(
                "dense_outputs, sparse_outputs: expected something to read for the final layer, found none"
            )
        object.__setattr__(self, "embedding_widths", _widths(self.embedding_widths))

    @property
    def outputs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of the dense and of the sparse outputs that the final linear layer reads, each in ascending order."""
        assert self.dense_outputs is not None and self.sparse_outputs is not None
        return self.dense_outputs, self.sparse_outputs

    @property
    def reads_last_block(self) -> bool:
        """Whether the final linear layer reads the last block and nothing else, as in the paper."""
        return self.outputs == ((len(self.blocks),), (len(self.blocks),))

    def to_json(self, indent: int | None = 2) -> str:
        """Converts the architecture to our JSON format.

        Args:
            indent: Number of spaces per level, or None for a single line.

        Returns:
            The JSON document.
        """
        chosen = any(block.special for block in self.blocks)
        document: dict[str, Any] = {"format": _FORMAT, "blocks": [without_defaults(asdict(b)) for b in self.blocks]}
        if not self.reads_last_block or self.embedding_widths or chosen:
            dense, sparse = self.outputs
            document |= {"format": _FORMAT_OF_OUTPUTS, "dense_outputs": dense, "sparse_outputs": sparse}
        if self.embedding_widths or chosen:
            document |= {"format": _FORMAT_OF_WIDTHS, "embedding_widths": dict(self.embedding_widths)}
        if chosen:
            document["format"] = _FORMAT_OF_CHOICES
        return json.dumps(document, indent=indent)

    def to_published_json(self, indent: int | None = None) -> str:
        """Converts the architecture to the research code's format.

        Args:
            indent: Number of spaces per level, or None for a single line.

        Returns:
            The JSON document.

        Raises:
            ValueError: If the research code does not have one of the operators, if the final linear layer does not
                read the last block alone, or if the architecture chooses the width of tables or a block its
                activation, normalization or a residual.
        """
        if self.embedding_widths:
            raise ValueError(
                f"in the research code all tables have one width, found embedding_widths {dict(self.embedding_widths)}"
            )
        for index, block in enumerate(self.blocks):
            if block.special:
                raise ValueError(f"block {index}: the research code has no {', '.join(block.special)}")
        if not self.reads_last_block:
            raise ValueError(
                "in the research code the final linear layer reads the last block, found "
                f"dense_outputs {self.dense_outputs}, sparse_outputs {self.sparse_outputs}"
            )
        used = {name for block in self.blocks for name in (*block.dense_operators, *block.sparse_operators)}
        config = next((c for c in ("autoctr", "xlarge") if used <= set(_PUBLISHED_OPERATORS[c])), None)
        if config is None:
            raise ValueError(f"the research code has no operator {sorted(used - set(_PUBLISHED_OPERATORS['xlarge']))}")
        numbers = {name: number for number, name in enumerate(_PUBLISHED_OPERATORS[config])}
        micro = [
            {
                "active_nodes": sorted(numbers[name] for name in (*b.dense_operators, *b.sparse_operators)),
                "dense_in_dims": b.dense_width,
                "sparse_in_dims": b.sparse_width,
                "dense_sparse_interact": int(b.dense_to_sparse),
                "deep_fm": int(b.sparse_to_dense),
            }
            for b in self.blocks
        ]
        macro = [
            {
                "dense_idx": list(b.dense_inputs),
                "sparse_idx": list(b.sparse_inputs),
                "dense_left_idx": list(b.left_inputs),
                "dense_right_idx": list(b.right_inputs),
            }
            for b in self.blocks
        ]
        return json.dumps(
            {"micro": micro, "macro": macro, "num_blocks": len(self.blocks), "config": config}, indent=indent
        )

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Reads an architecture in our format or in the published one.

        Args:
            text: The JSON document.

        Returns:
            The architecture.

        Raises:
            ValueError: If the document is not valid. The message says what was found, what is allowed and in which
                block.
        """
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"not a JSON document: {error}") from None
        if not isinstance(document, dict):
            raise ValueError(f"expected a JSON object, found {type(document).__name__}")
        if "blocks" in document:
            return cls(tuple(_read_blocks(document)), *_read_outputs(document), _read_widths(document))
        if "micro" in document or "macro" in document:
            return cls(tuple(_read_published(document)))
        raise ValueError(
            "expected the key 'blocks' (our format) or 'micro' and 'macro' (the published format), "
            f"found the keys {sorted(document)}"
        )

    def outputs_read(self) -> list[tuple[bool, bool]]:
        """Finds out which outputs contribute to the logit.

        Returns:
            For the raw input (index 0) and for the output of each block, whether anything that contributes to the
            logit reads its dense side, and whether anything reads its sparse side.
        """
        count = len(self.blocks)
        dense, sparse = [False] * (count + 1), [False] * (count + 1)
        for source in self.outputs[0]:
            dense[source] = True
        for source in self.outputs[1]:
            sparse[source] = True
        for index in reversed(range(count)):
            block = self.blocks[index]
            computes_dense, computes_tokens = block.computes(dense[index + 1], sparse[index + 1])
            if computes_dense:
                for source in block.dense_sources:
                    dense[source] = True
            if computes_tokens or (computes_dense and reads("tokens", block.dense_operators)):
                for source in block.sparse_inputs:
                    sparse[source] = True
        return list(zip(dense, sparse, strict=True))

    def canonical(self) -> "Architecture":
        """Sets every choice that cannot matter to a fixed value.

        Returns:
            An architecture that computes the same. Two architectures with equal canonical forms are the same network.
        """
        blocks = []
        for block, (dense, sparse) in zip(self.blocks, self.outputs_read()[1:], strict=True):
            computes_dense, computes_tokens = block.computes(dense, sparse)
            operators = block.dense_operators if computes_dense else ()
            reads_tokens = computes_tokens or reads("tokens", operators)
            reads_operands = reads("operands", operators)
            computed = {*operators, *(block.sparse_operators if computes_tokens else ())}
            newest = block.dense_inputs[-1:] if block.residual and computes_dense else (0,)
            blocks.append(
                BlockArchitecture(
                    dense_operators=operators or DENSE_OPERATORS[:1],
                    sparse_operators=block.sparse_operators if computes_tokens else SPARSE_OPERATORS[:1],
                    dense_width=block.dense_width if computes_dense else 1,
                    sparse_width=block.sparse_width if computes_tokens else 1,
                    dense_inputs=block.dense_inputs if reads("dense", operators) else newest,
                    sparse_inputs=block.sparse_inputs if reads_tokens else (0,),
                    left_inputs=block.left_inputs if reads_operands else (0,),
                    right_inputs=block.right_inputs if reads_operands else (0,),
                    dense_to_sparse=block.dense_to_sparse and sparse,
                    sparse_to_dense=block.sparse_to_dense and dense,
                    activation=block.activation if any(KINDS[name].activated for name in computed) else "relu",
                    normalization=block.normalization if computed else None,
                    residual=block.residual and bool(computed),
                )
            )
        return Architecture(tuple(blocks), *self.outputs, self.embedding_widths)


def recorded(value: Any) -> dict[str, Any]:
    """Returns the fields of an architecture, a search space or a baseline, for records and what identifies a run.

    What is not used looks the same as in older versions, which did not have it.
    """
    found = {name: item for name, item in asdict(value).items() if item or name not in _LATER}
    return found | {"blocks": tuple(map(without_defaults, found["blocks"]))} if "blocks" in found else found


def _outputs(value: object, where: str, count: int) -> tuple[int, ...]:
    """Checks indices of outputs that the final linear layer reads, and sorts them."""
    if value is None:
        return (count,)
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{where}: expected a list of output indices, found {value!r}")
    values = list(value)
    if not all(is_integer(v) and 0 <= v <= count for v in values):
        raise ValueError(f"{where}: expected integers in 0..{count}, found {values}")
    return tuple(sorted(set(values)))


def _widths(value: object) -> tuple[tuple[str, int], ...]:
    """Checks the widths of tables, and sorts them by the names of the tables."""
    where = "embedding_widths: expected the width of each table by its name"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{where}, found {value!r}")
    pairs: list[Any] = list(value.items() if isinstance(value, Mapping) else value)
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"{where}, found {value!r}")
    for name, width in pairs:
        if not is_integer(width) or width <= 0:
            raise ValueError(f"embedding_widths: table '{name}': expected a positive integer, found {width!r}")
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"{where}, each once, found {sorted(name for name, _ in pairs)}")
    return tuple(sorted((name, width) for name, width in pairs))


def _entries(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    if key not in document:
        raise ValueError(f"missing key '{key}'; found the keys {sorted(document)}")
    entries = document[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{key}: expected a list of objects")
    return entries


def _value(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise ValueError(f"{where}: missing key '{key}'; found the keys {sorted(entry)}")
    return entry[key]


def _block(index: int, **values: Any) -> BlockArchitecture:
    try:
        return BlockArchitecture(**values)
    except ValueError as error:
        raise ValueError(f"block {index}: {error}") from None


def _read_blocks(document: Mapping[str, Any]) -> Iterable[BlockArchitecture]:
    form = document.get("format", _FORMAT)
    if form not in _FORMATS:
        expected = ", ".join(f"'{name}'" for name in _FORMATS[:-1])
        raise ValueError(f"format: expected {expected} or '{_FORMATS[-1]}', found {form!r}")
    names = {field.name for field in fields(BlockArchitecture)}
    needed = names - set(OPTIONAL)
    for index, entry in enumerate(_entries(document, "blocks")):
        unknown = sorted(set(entry) - names)
        if unknown:
            raise ValueError(f"block {index}: unknown keys {unknown}; allowed are {sorted(names)}")
        if form != _FORMAT_OF_CHOICES and (found := sorted(set(entry) - needed)):
            raise ValueError(
                f"block {index}: {found[0]}: only architectures of the format '{_FORMAT_OF_CHOICES}' have it"
            )
        yield _block(index, **dict(entry) | {name: _value(entry, name, f"block {index}") for name in needed})


def _read_outputs(document: Mapping[str, Any]) -> tuple[Any, Any]:
    names = ("dense_outputs", "sparse_outputs")
    if document.get("format", _FORMAT) == _FORMAT:
        if found := [name for name in names if name in document]:
            raise ValueError(f"{found[0]}: only architectures of the format '{_FORMAT_OF_OUTPUTS}' have it")
        return None, None
    return tuple(_value(document, name, "architecture") for name in names)


def _read_widths(document: Mapping[str, Any]) -> Any:
    if document.get("format", _FORMAT) not in (_FORMAT_OF_WIDTHS, _FORMAT_OF_CHOICES):
        if "embedding_widths" in document:
            raise ValueError(f"embedding_widths: only architectures of the format '{_FORMAT_OF_WIDTHS}' have it")
        return ()
    return _value(document, "embedding_widths", "architecture")


def _read_published(document: Mapping[str, Any]) -> Iterable[BlockArchitecture]:
    micro, macro = _entries(document, "micro"), _entries(document, "macro")
    count = document.get("num_blocks", len(micro))
    if len(micro) != len(macro) or count != len(micro):
        raise ValueError(
            f"micro, macro and num_blocks must agree: found {len(micro)} micro blocks, {len(macro)} macro blocks, "
            f"num_blocks {count}"
        )
    nodes: list[list[int]] = []
    for index, entry in enumerate(micro):
        active = _value(entry, "active_nodes", f"block {index}")
        if not isinstance(active, list) or not all(is_integer(node) for node in active):
            raise ValueError(f"block {index}: active_nodes: expected a list of operator indices, found {active!r}")
        nodes.append(active)
    # Without "config" the space can be inferred: every block has a sparse operator, 4 or 5 in NASRec-Full, 2 in Small.
    inferred = "xlarge" if any(node > 2 for active in nodes for node in active) else "autoctr"
    config = document.get("config", inferred)
    if config not in _PUBLISHED_OPERATORS:
        raise ValueError(f"config: expected one of {sorted(_PUBLISHED_OPERATORS)}, found {config!r}")
    operators = _PUBLISHED_OPERATORS[config]
    for index, (small, large) in enumerate(zip(micro, macro, strict=True)):
        where = f"block {index}"
        unknown = [node for node in nodes[index] if not 0 <= node < len(operators)]
        if unknown:
            allowed = ", ".join(f"{number} {name}" for number, name in enumerate(operators))
            raise ValueError(f"{where}: active_nodes: unknown operator {unknown}; '{config}' has {allowed}")
        names = [operators[node] for node in nodes[index]]
        yield _block(
            index,
            dense_operators=[name for name in names if name in DENSE_OPERATORS],
            sparse_operators=[name for name in names if name in SPARSE_OPERATORS],
            dense_width=_value(small, "dense_in_dims", where),
            sparse_width=_value(small, "sparse_in_dims", where),
            dense_inputs=_value(large, "dense_idx", where),
            sparse_inputs=_value(large, "sparse_idx", where),
            left_inputs=_value(large, "dense_left_idx", where),
            right_inputs=_value(large, "dense_right_idx", where),
            dense_to_sparse=_value(small, "dense_sparse_interact", where),
            sparse_to_dense=_value(small, "deep_fm", where),
        )
