"""Cameras, the volume renderer (in plain torch and as fused kernels) and the mesh rasteriser."""
