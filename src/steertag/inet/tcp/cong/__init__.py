"""Congestion control algorithms, and their registry."""
