"""Known models as architectures, from which a search can start. Importing this module does not import PyTorch.

Each is a function of the data, because some widths follow from it: ``REFERENCE["dcn-v2"](13, 26, 16)`` is DCN-V2 for 13
dense features and 26 sparse ones that are embedded in 16 columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nasrec_torchrec.architecture import Architecture, BlockArchitecture

Reference = Callable[[int, int, int], Architecture]

_FIRST_LAYER = 64
_DEEP = (128, 64)
_CROSS_LAYERS = 2
_STREAM = 256
_TOKENS = 16


def _dense(operator: str, width: int, reads: Sequence[int] = (0,), left: int = 0, right: int = 0) -> BlockArchitecture:
    """A block with a dense side only: no block reads its tokens, so that they are not computed."""
    return BlockArchitecture(
        dense_operators=(operator,),
        sparse_operators=("embedded_fully_connected",),
        dense_width=width,
        sparse_width=1,
        dense_inputs=tuple(reads),
        sparse_inputs=(0,),
        left_inputs=(left,),
        right_inputs=(right,),
        dense_to_sparse=False,
        sparse_to_dense=False,
    )


def _sparse(operator: str, width: int, reads: Sequence[int] = (0,)) -> BlockArchitecture:
    """A block with a sparse side only."""
    block = _dense("fully_connected", 1)
    return replace(block, sparse_operators=(operator,), sparse_width=width, sparse_inputs=tuple(reads))


def _deep(reads: Sequence[int], first: int, layers: Sequence[int] = _DEEP) -> list[BlockArchitecture]:
    """An MLP; its first layer is the output ``first``."""
    return [
        _dense("fully_connected", width, reads if index == 0 else (first + index - 1,))
        for index, width in enumerate(layers)
    ]


def _network(blocks: Sequence[BlockArchitecture], dense: Sequence[int], sparse: Sequence[int] = ()) -> Architecture:
    return Architecture(tuple(blocks), tuple(dense), tuple(sparse))


def dlrm(dense_in_features: int, num_tokens: int, embedding_dim: int) -> Architecture:
    """DLRM (arXiv 1906.00091) exactly as ``torchrec.models.dlrm.DLRM`` with layers 64, E and 128, 64, 1."""
    products = num_tokens * (num_tokens + 1) // 2
    blocks = [*_deep((0,), 1, (_FIRST_LAYER, embedding_dim)), _dense("dot_product", products, (2,))]
    return _network([*blocks, *_deep((2, 3), 4)], (5,))


def _crossed(
    operator: str, num_tokens: int, embedding_dim: int, layers: int = _CROSS_LAYERS
) -> list[BlockArchitecture]:
    """An MLP over the dense features, x0 as output 3, and cross layers."""
    width = (num_tokens + 1) * embedding_dim
    blocks = [*_deep((0,), 1, (_FIRST_LAYER, embedding_dim)), _dense("flatten", width, (2,))]
    return [*blocks, *(_dense(operator, width, left=3, right=3 + layer) for layer in range(layers))]


def dcn_v2(dense_in_features: int, num_tokens: int, embedding_dim: int) -> Architecture:
    """DCN-V2 (arXiv 2008.13535), the stacked form: an MLP reads the last of two cross layers.

    Exactly ``torchrec.models.dlrm.DLRM_DCN`` with layers 64, E and 128, 64, 1 and a quarter of the columns as the rank.
    """
    blocks = _crossed("low_rank_cross", num_tokens, embedding_dim)
    return _network([*blocks, *_deep((5,), 6)], (7,))


def dcn_v2_parallel(dense_in_features: int, num_tokens: int, embedding_dim: int) -> Architecture:
    """DCN-V2, the parallel form: the logit reads the last cross layer and an MLP over the input."""
    blocks = _crossed("low_rank_cross", num_tokens, embedding_dim)
    return _network([*blocks, *_deep((3,), 6)], (5, 7))


def gdcn(
    dense_in_features: int,
    num_tokens: int,
    embedding_dim: int,
    hidden: Sequence[int] = _DEEP,
    cross_layers: int = _CROSS_LAYERS,
) -> Architecture:
    """GDCN-S (arXiv 2311.04635): an MLP reads the last of the gated cross layers."""
    blocks = _crossed("gated_cross", num_tokens, embedding_dim, cross_layers)
    blocks += _deep((len(blocks),), len(blocks) + 1, hidden)
    return _network(blocks, (len(blocks),))


def finalnet(dense_in_features: int, num_tokens: int, embedding_dim: int) -> Architecture:
    """FinalNet (SIGIR 2023) nearly: two streams of factorized interactions, the first of them over gated fields too.

    The paper's normalizes its batches, gates fields with a linear layer instead of squeeze and excitation, and
    teaches each stream with the mean of both.
    """
    width = dense_in_features + num_tokens * embedding_dim
    return _network(
        [
            _sparse("squeeze_excitation", num_tokens),
            replace(_dense("flatten", width + num_tokens * embedding_dim), sparse_inputs=(0, 1)),
            _dense("flatten", width),
            _dense("factorized_interaction", _STREAM, (2,)),
            _dense("factorized_interaction", _STREAM, (4,)),
            _dense("factorized_interaction", _STREAM, (3,)),
        ],
        (5, 6),
    )


def masknet(
    dense_in_features: int, num_tokens: int, embedding_dim: int, hidden: Sequence[int] = (_STREAM,) * 3
) -> Architecture:
    """MaskNet (arXiv 2102.07619), the serial form: MaskBlocks one after another, all masks from the flattened input."""
    blocks = [_dense("flatten", dense_in_features + num_tokens * embedding_dim)]
    blocks += [_dense("instance_mask", width, left=1, right=layer) for layer, width in enumerate(hidden, start=1)]
    return _network(blocks, (len(blocks),))


def wukong(dense_in_features: int, num_tokens: int, embedding_dim: int, hidden: Sequence[int] = _DEEP) -> Architecture:
    """Wukong (arXiv 2403.02545): three layers of compressed factorization machines and an MLP over their tokens.

    Dense features become eight tokens, which the first layer reads. The MLP reads the dense features themselves too.
    """
    embed = _sparse("embedded_fully_connected", 1)
    embed = replace(embed, dense_operators=("fully_connected",), dense_width=_FIRST_LAYER, dense_to_sparse=True)
    layers = [_sparse("compressed_fm", _TOKENS, (0, 1) if dense_in_features else (0,))]
    layers += [_sparse("compressed_fm", _TOKENS, (2 + layer,)) for layer in range(2)]
    flat = replace(_dense("flatten", dense_in_features + _TOKENS * embedding_dim), sparse_inputs=(4,))
    blocks = [embed, *layers, flat, *_deep((5,), 6, hidden)]
    return _network(blocks, (len(blocks),))


def rankmixer(dense_in_features: int, num_tokens: int, embedding_dim: int) -> Architecture:
    """RankMixer (arXiv 2507.15551) nearly: two blocks of token mixing over 16 tokens, read without pooling.

    Dense features become eight tokens, which the first block reads.
    """
    embed = _sparse("embedded_fully_connected", 1)
    embed = replace(embed, dense_operators=("fully_connected",), dense_width=_FIRST_LAYER, dense_to_sparse=True)
    blocks = [_sparse("token_mixing", _TOKENS, (0, 1) if dense_in_features else (0,))]
    return _network([embed, *blocks, _sparse("token_mixing", _TOKENS, (2,))], (), (3,))


REFERENCE: dict[str, Reference] = {
    "dlrm": dlrm,
    "dcn-v2": dcn_v2,
    "dcn-v2-parallel": dcn_v2_parallel,
    "gdcn": gdcn,
    "finalnet": finalnet,
    "masknet": masknet,
    "wukong": wukong,
    "rankmixer": rankmixer,
}
