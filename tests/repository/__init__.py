"""Tests of the repository itself: scripts, lock files, containers, and forbidden content."""
