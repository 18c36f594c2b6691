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
