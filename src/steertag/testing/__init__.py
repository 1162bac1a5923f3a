"""Public helpers for testing protocols and families: clocks, links, conformance checks."""
