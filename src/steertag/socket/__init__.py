"""The SOCKET layer: stands in for the standard library's `socket` module."""
