"""Public helpers for testing what is built on steertag: conformance suites for families."""

from steertag.testing.families import DATAGRAM_CHECKS, STREAM_CHECKS, Endpoints, expect_errno

__all__ = ["DATAGRAM_CHECKS", "STREAM_CHECKS", "Endpoints", "expect_errno"]
