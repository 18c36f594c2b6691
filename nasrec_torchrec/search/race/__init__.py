"""A race of recipes, features and architectures for one budget, judged by real training; see docs/search.md."""
