"""The training loop, its optimizer, schedules, metrics and logs."""
