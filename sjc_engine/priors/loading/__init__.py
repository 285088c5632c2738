"""From a model's files to its components: which are read, what is wrong with them, loading."""
