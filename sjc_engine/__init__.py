"""Score Jacobian Chaining as a library: prompts in, meshes out.

prior = load_prior("toybox")
fields = optimize(["a DSLR photo of a yellow duck"], prior, Recipe.for_prior(prior), seeds=[0])
extract_mesh(fields[0]).export("duck.glb")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sjc_engine.fields.kinds import load_field as load_field
    from sjc_engine.fields.voxel import VoxelField as VoxelField
    from sjc_engine.image_file import read_image as read_image
    from sjc_engine.mesh.extract import extract_mesh as extract_mesh
    from sjc_engine.mesh.gltf import Mesh as Mesh
    from sjc_engine.optimization.loop import optimize as optimize
    from sjc_engine.priors.denoiser import load_prior as load_prior
    from sjc_engine.recipes import Recipe as Recipe
    from sjc_engine.spec import AssetSpec as AssetSpec

# After each operation torch's OpenMP threads spin for a while, on the cores that the renderer's
# threads want. A thirtieth of it serves torch as well (docs/benchmarks.md, "Threads"). Heard only
# before torch is imported.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

# Imported at first use: reading a manifest needs recipes, not torch. (No module or folder may be
# called `optimize`: importing it would put the module in the function's place.)
_HOMES = {
    "AssetSpec": "spec",
    "Mesh": "mesh.gltf",
    "Recipe": "recipes",
    "VoxelField": "fields.voxel",
    "extract_mesh": "mesh.extract",
    "load_field": "fields.kinds",
    "load_prior": "priors.denoiser",
    "optimize": "optimization.loop",
    "read_image": "image_file",
}
__all__ = list(_HOMES)


if not TYPE_CHECKING:  # which would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
