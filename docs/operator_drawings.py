"""Draws what each operator of a block reads and emits, into ``docs/operators.svg``.

    python docs/operator_drawings.py [FILE]

The drawing follows from ``KINDS``, where operators are registered; a test compares the committed file with it.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from nasrec_torchrec.operator_kinds import KINDS, OperatorKind

FILE = Path(__file__).with_name("operators.svg")
_COLUMNS, _WIDTH, _HEIGHT, _MARGIN = 3, 330, 112, 10
_DENSE, _TOKENS, _OPERATOR = "#2b6cb0", "#c05621", "#4a5568"
# The places of what an operator reads, by its name in KINDS: label, whether these are tokens.
_SOURCES = {"dense": [("x", False)], "operands": [("left", False), ("right", False)], "tokens": [("X", True)]}


def drawing() -> str:
    """Returns the SVG: a panel for every built-in operator, dense operators first."""
    ordered = sorted(KINDS.items(), key=lambda item: item[1].side)
    rows = -(-len(ordered) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH + 2 * _MARGIN, rows * _HEIGHT + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{_OPERATOR}"/></marker></defs>',
    ]
    for place, (name, kind) in enumerate(ordered):
        row, column = divmod(place, _COLUMNS)
        left, top = _MARGIN + column * _WIDTH, _MARGIN + row * _HEIGHT
        parts.append(f'<g transform="translate({left},{top})">{"".join(_panel(name, kind))}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, kind: OperatorKind) -> Iterator[str]:
    middle = _HEIGHT / 2 + 8
    yield f'<text x="{_WIDTH / 2}" y="16" font-weight="bold" fill="{_OPERATOR}">{escape(name)}</text>'
    sources = [source for what in kind.reads for source in _SOURCES[what]]
    for number, (label, tokens) in enumerate(sources):
        y = middle + 40 * (number - (len(sources) - 1) / 2)
        yield from _box(8, y, 78, label, tokens)
        yield _arrow(86, y, 124, middle)
    yield f'<rect x="126" y="{middle - 15}" width="78" height="30" rx="7" fill="white" stroke="{_OPERATOR}"/>'
    yield f'<text x="165" y="{middle + 4}">{escape(kind.caption)}</text>'
    yield _arrow(204, middle, 242, middle)
    tokens = kind.side == "sparse"
    yield from _box(244, middle, 78, "tokens" if tokens else "columns", tokens)


def _box(x: float, y: float, width: float, label: str, tokens: bool) -> Iterator[str]:
    """A box of dense columns, or of tokens, which are drawn as a stack."""
    color = _TOKENS if tokens else _DENSE
    for shift in (6, 3, 0) if tokens else (0,):
        yield (
            f'<rect x="{x + shift}" y="{y - 15 - shift}" width="{width - 6}" height="30" rx="7" fill="white" '
            f'stroke="{color}"/>'
        )
    yield f'<text x="{x + (width - 6) / 2}" y="{y + 4}" fill="{color}">{label}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M{x},{y} L{to_x},{to_y}" fill="none" stroke="{_OPERATOR}" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else FILE).write_text(drawing())
