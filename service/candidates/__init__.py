"""Endpoints of candidates."""
