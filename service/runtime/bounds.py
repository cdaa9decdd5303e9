"""Bounds that the documents speak of before any model, and numpy with it, is there."""

MAX_INSTANCES = 10_000  # rows in one predict call
