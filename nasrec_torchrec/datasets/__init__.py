"""Schemas, preparation of raw data, and batches of KeyedJaggedTensors."""
