"""The names of an asset's files, in a folder of `sjc generate` and below an attempt's in a store.

Datasets and the gallery keep these names, and readers of both know them. Imports no torch: pages
need it too.
"""

MESH = "mesh.glb"
FIELD = "field.safetensors"
PREVIEW = "preview.png"  # the contact sheet
TURNTABLE = "turntable.mp4"
THUMBNAIL = "thumbnail.webp"
VIEWS = "views"  # a folder


def view_file(source: str, view: int) -> str:
    """The name of a view's picture: "views/mesh_0.png"."""
    return f"{VIEWS}/{source}_{view}.png"
