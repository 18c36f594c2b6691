"""Whole models: NASRecNet, SuperNet and the published architectures."""
