"""Drawings of architectures: as a Graphviz document, or as SVG without any other program."""

from collections.abc import Iterator
from html import escape

from nasrec_torchrec.architecture import Architecture, BlockArchitecture
from nasrec_torchrec.operator_kinds import KINDS
from nasrec_torchrec.table_widths import widths_text

_DENSE_COLOR, _SPARSE_COLOR, _MERGER_COLOR = "#2b6cb0", "#c05621", "#6b46c1"


def _edges(architecture: Architecture) -> Iterator[tuple[int, int, str]]:
    """Yields ``(output, block, side)`` of every connection that an operator uses; blocks are counted from 1."""
    for index, block in enumerate(architecture.blocks, start=1):
        yield from ((source, index, "dense") for source in block.dense_sources)
        yield from ((source, index, "sparse") for source in block.sparse_inputs)


def _operators(block: BlockArchitecture) -> tuple[str, str, str, str]:
    """Captions for a block's dense side, its sparse side, its mergers and its further choices."""
    dense = " + ".join(KINDS[name].caption for name in block.dense_operators)
    sparse = " + ".join(KINDS[name].caption for name in block.sparse_operators)
    mergers = [
        name for name, used in (("dense→sparse", block.dense_to_sparse), ("FM→dense", block.sparse_to_dense)) if used
    ]
    tokens = f"{block.sparse_width}{' + 8' if block.dense_to_sparse else ''} tokens"
    more = ", ".join(mergers), ", ".join(block.special)
    return f"{dense} · {block.dense_width}", f"{sparse} · {tokens}", *more


def _embeddings(architecture: Architecture) -> str:
    """Caption of the embeddings, with the range of their widths where these are a choice."""
    widths = [width for _, width in architecture.embedding_widths]
    if not widths:
        return "embeddings"
    return f"embeddings · {' to '.join(map(str, sorted({min(widths), max(widths)})))}"


def to_dot(architecture: Architecture) -> str:
    """Draws an architecture with Graphviz.

    Args:
        architecture: The architecture to draw.

    Returns:
        A document in the DOT language. Blue edges carry dense outputs, and orange ones carry tokens.
    """
    lines = [
        "digraph architecture {",
        '  rankdir=LR; node [shape=record, style=rounded, fontname="Helvetica"];',
        f'  output_0 [label="input|<dense> dense features|<sparse> {_embeddings(architecture)}"];',
    ]
    for index, block in enumerate(architecture.blocks, start=1):
        dense, sparse, mergers, special = _operators(block)
        merged = f"|{mergers.replace('>', '&gt;')}" if mergers else ""
        merged += f"|{special}" if special else ""
        lines.append(f'  output_{index} [label="block {index}|<dense> {dense}|<sparse> {sparse}{merged}"];')
    for source, target, side in _edges(architecture):
        color = _DENSE_COLOR if side == "dense" else _SPARSE_COLOR
        lines.append(f'  output_{source}:{side} -> output_{target}:{side} [color="{color}"];')
    lines.append('  logit [label="final linear|logit"];')
    for outputs, side, color in zip(
        architecture.outputs, ("dense", "sparse"), (_DENSE_COLOR, _SPARSE_COLOR), strict=True
    ):
        lines += [f'  output_{source}:{side} -> logit [color="{color}"];' for source in outputs]
    lines.append("}")
    return "\n".join(lines) + "\n"


def to_svg(architecture: Architecture) -> str:
    """Draws an architecture with one column per block.

    Dense operators are at the top and sparse operators at the bottom. An arc leads from each output to each block that
    reads it: blue arcs at the top carry dense outputs, and orange arcs at the bottom carry tokens.

    Args:
        architecture: The architecture to draw.

    Returns:
        An SVG document.

    Example:
        >>> from nasrec_torchrec import PUBLISHED
        >>> to_svg(PUBLISHED["criteo-small"]).startswith("<svg")
        True
    """
    box_width, box_height, gap, margin = 132, 46, 46, 20
    count = len(architecture.blocks)
    to_logit = [
        (source, count + 1, side)
        for outputs, side in zip(architecture.outputs, ("dense", "sparse"), strict=True)
        for source in outputs
    ]
    # The last block's line to the logit is straight, and earlier blocks' are arcs.
    arcs = [*_edges(architecture), *(edge for edge in to_logit if edge[0] != count)]
    reach = max((target - source for source, target, _ in arcs), default=1)
    arc_space = 26 + 24 * reach
    top = arc_space + margin
    width = margin * 2 + (count + 2) * box_width + (count + 1) * gap
    height = 2 * top + 2 * box_height + 34 + 14 * any(block.special for block in architecture.blocks)
    middle = top + box_height + 17

    def left(column: int) -> int:
        return margin + column * (box_width + gap)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker></defs>',
    ]

    def box(column: int, side: str, caption: str, color: str, hint: str = "") -> None:
        y = top if side == "dense" else middle + 17
        parts.append(
            f'<rect x="{left(column)}" y="{y}" width="{box_width}" height="{box_height}" rx="7" fill="{color}" '
            f'fill-opacity="0.12" stroke="{color}"/>'
            f'<text x="{left(column) + box_width / 2}" y="{y + box_height / 2 + 4}">{escape(caption)}'
            f"{f'<title>{escape(hint)}</title>' if hint else ''}</text>"
        )

    def title(column: int, caption: str) -> None:
        parts.append(
            f'<text x="{left(column) + box_width / 2}" y="{middle + 4}" font-weight="bold" fill="#4a5568">'
            f"{escape(caption)}</text>"
        )

    def arc(source: int, target: int, side: str) -> None:
        color = _DENSE_COLOR if side == "dense" else _SPARSE_COLOR
        start, end = left(source) + box_width * 0.62, left(target) + box_width * 0.38
        y = top if side == "dense" else middle + 17 + box_height
        bend = (26 + 24 * (target - source)) * 1.25 * (-1 if side == "dense" else 1)
        parts.append(
            f'<path d="M{start:.0f},{y} C{start + 12:.0f},{y + bend:.0f} {end - 12:.0f},{y + bend:.0f} {end:.0f},{y}" '
            f'fill="none" stroke="{color}" stroke-width="1.6" marker-end="url(#head)"/>'
        )

    title(0, "input")
    box(0, "dense", "dense features", _DENSE_COLOR)
    box(0, "sparse", _embeddings(architecture), _SPARSE_COLOR, widths_text(dict(architecture.embedding_widths)))
    for index, block in enumerate(architecture.blocks, start=1):
        dense, sparse, mergers, special = _operators(block)
        title(index, f"block {index}")
        box(index, "dense", dense, _DENSE_COLOR)
        box(index, "sparse", sparse, _SPARSE_COLOR)
        for line, caption in ((height - 6, mergers), (height - 20, special)):
            if caption:
                parts.append(
                    f'<text x="{left(index) + box_width / 2}" y="{line}" fill="{_MERGER_COLOR}" font-size="11">'
                    f"{escape(caption)}</text>"
                )
    title(count + 1, "final linear → logit")
    for source, target, side in arcs:
        arc(source, target, side)
    for source, _, side in to_logit:
        if source != count:
            continue
        color, y = (
            (_DENSE_COLOR, top + box_height / 2) if side == "dense" else (_SPARSE_COLOR, middle + 17 + box_height / 2)
        )
        parts.append(
            f'<path d="M{left(count) + box_width},{y:.0f} L{left(count + 1) + 4},{middle}" fill="none" '
            f'stroke="{color}" stroke-width="1.6" marker-end="url(#head)"/>'
        )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
