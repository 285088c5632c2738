"""The embedded prior and its judge: the words they know, and their weights."""
