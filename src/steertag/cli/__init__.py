"""The `stag` command."""
