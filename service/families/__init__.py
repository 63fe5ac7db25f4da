"""The endpoint of model families."""
