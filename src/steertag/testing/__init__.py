"""Public helpers for testing what is built on steertag: conformance suites for families."""

from steertag.testing.endpoints import Endpoints, expect_errno
from steertag.testing.families import DATAGRAM_CHECKS, OOB_CHECKS, STREAM_CHECKS

__all__ = ["DATAGRAM_CHECKS", "OOB_CHECKS", "STREAM_CHECKS", "Endpoints", "expect_errno"]
