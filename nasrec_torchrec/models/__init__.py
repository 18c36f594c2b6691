"""Complete models: NASRecNet, SuperNet, baselines and the published architectures."""
