"""Watching a training: running means, tables of completions, and the check for collapse."""
