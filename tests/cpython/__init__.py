"""CPython's own test suites, over steertag's sockets."""
