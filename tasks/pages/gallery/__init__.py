"""A static web page over a store, with a 3D viewer."""
