"""Training over partitions, one step at a time: each reads some rows and what the steps before have left, and
leaves one file.

Only called inside a build child. The worker uses `job`, `sampling` and `dealing`, which touch no model.
"""
