"""Sharding with DistributedModelParallel, gradient synchronisation of the active path, checkpoints."""
