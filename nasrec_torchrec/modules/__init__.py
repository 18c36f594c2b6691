"""Operators, mergers and the choice blocks made of them: one concept per file."""
