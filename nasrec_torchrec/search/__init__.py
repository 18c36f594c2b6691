"""Search over a trained supernet: costs, evaluation of candidates, evolution and report."""
