"""Operators, mergers, and the choice blocks that consist of them."""
