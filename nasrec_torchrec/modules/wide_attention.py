"""Attention with a few wide heads."""

from nasrec_torchrec.modules.attention import Attention


class WideAttention(Attention):
    """:class:`~nasrec_torchrec.modules.attention.Attention` with 2 heads of E / 2 columns instead of 8 heads of E / 8.

    It costs the same multiply-adds in larger matrix products, which suits hardware better; a head that sees half of a
    token can weight more of it at once, as in AutoInt (arXiv 1810.11921), which has 2 heads.
    """

    num_heads = 2
