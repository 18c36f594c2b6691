"""Sharding with DistributedModelParallel, and gradient synchronization of the active path."""
