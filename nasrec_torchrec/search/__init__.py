"""Search over a trained supernet: cost, evaluation of candidates, evolution, report."""
