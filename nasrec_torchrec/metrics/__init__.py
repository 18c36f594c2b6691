"""Quality of click predictions: exact metrics over a split, and windowed metrics during training."""
