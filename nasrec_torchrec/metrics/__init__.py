"""Quality of click predictions: exact over a split, windowed while training."""
