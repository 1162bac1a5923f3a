"""Counters and listings of a running Stack."""
