from dataclasses import replace

from nasrec_torchrec import PUBLISHED
from nasrec_torchrec.drawing import to_dot, to_svg


def test_drawings_show_operators_widths_and_connections():
    architecture = PUBLISHED["criteo-full"]
    dot, svg = to_dot(architecture), to_svg(architecture)
    for text in ("SG · 128", "AT · 64 + 8 tokens", "DP · 768", "FM→dense".replace(">", "&gt;")):
        assert text in dot and text in svg
    assert "output_4:dense -> output_5:dense" in dot
    # one arc per connection, and the two edges into the final linear
    assert svg.count('<path d="M') == dot.count(" -> ") + 1


def test_drawings_show_the_widths_of_the_tables():
    architecture = PUBLISHED["criteo-full"]
    chosen = replace(architecture, embedding_widths={"a": 4, "b": 16, "c": 4})
    for drawing in (to_dot(chosen), to_svg(chosen)):
        assert "embeddings · 4 to 16" in drawing
    assert "<title>4 columns: a, c; 16 columns: b</title>" in to_svg(chosen)
    same = replace(architecture, embedding_widths={"a": 8})
    assert "embeddings · 8<" in to_svg(same) and "<title>" not in to_svg(architecture)
