"""Prompt lists: files and where they are, entries, what they resolve to, and shards."""
