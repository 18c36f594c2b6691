"""Run folders: their names, how files are published, locked, checked and removed, and where they may lie."""
