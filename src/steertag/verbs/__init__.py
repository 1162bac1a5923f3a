"""The verbs API that applications import; names and call shapes as in pyverbs."""
