"""Export of trained models to files that a process without this package can score with."""
