"""From a field to a mesh: isosurface, simplification, texture, and the files of a mesh."""
