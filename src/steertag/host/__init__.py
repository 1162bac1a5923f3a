"""Families that forward to the host kernel's own sockets."""
