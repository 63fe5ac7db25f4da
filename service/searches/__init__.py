"""Endpoints of searches."""
