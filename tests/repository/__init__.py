"""The repository's own frame: scripts, locks, containers, and what no file may hold."""
