"""Presets: named settings that fit a family of priors. Each says what differs from the defaults."""

from __future__ import annotations

from sjc_engine.priors.image_pose import image_pose
from sjc_engine.priors.sources import BUILTINS, family_of

Value = int | float | bool | str

# Small pixel models, rendered as their training images were (`toybox.dataset`): from no nearer, and
# told by the finest view prompts that they know. Emptiness 250 over about 1e5 samples is 2.5e-3 a
# sample: less leaves a fog that makes outlines a pixel too wide. High noise finds the shape and low
# noise finishes it: its top falls as the steps go on.
PIXELS_32: dict[str, Value] = {
    "steps": 1000, "guidance_scale": 15.0, "tick_end": 500, "views_per_step": 2,
    "grid_size": 48, "half_length": 0.7, "color_init": 0.1, "background": "random",
    "render_size": 32, "ray_step": 2.1 / 96, "ray_jitter": True, "view_style": "detailed",
    "fov_min": 46.0, "fov_max": 60.0, "elevation_min": -5.0, "elevation_max": 58.0,
    "emptiness_weight": 250.0, "binary_weight": 100.0,
}  # fmt: skip
SMALL: dict[str, Value] = {
    "steps": 300, "views_per_step": 1, "grid_start": 0, "grid_size": 32, "ray_step": 0.03,
    "render_start": 0, "render_size": 32, "mesh_smoothing": 0.5,
}  # fmt: skip
# The embedded prior: the shape at 32 x 32 pixels, which take half the time, the rest at 64 x 64
# with little guidance; what is still rough then the mesh's blur makes smooth.
TOYBOX: dict[str, Value] = {
    **PIXELS_32,
    "steps": 730, "guidance_end": 5.0, "tick_end": 200, "mesh_smoothing": 0.8,
    "grid_start": 48, "grid_size": 64, "render_start": 32, "render_size": 64, "grid_grow_at": 0.68,
}  # fmt: skip

# Two faults of the published code that the paper's results have and the recipe's defaults fix; see
# `view_prompts.OVERHEAD_ABOVE_DEG` and `losses.center_depth`.
PAPER: dict[str, Value] = {"overhead_prompt": "official", "depth_loss": "official"}
# What the 24 published commands change; the rest of each is the code's own default.
PAPER_EXCEPTIONS: dict[str, dict[str, Value]] = {
    "burger": {},
    "duck": {"depth_weight": 10.0},
    "ficus": {"depth_weight": 100.0},
    "tank": {"steps": 20_000},
    "icecream": {"depth_weight": 10.0},
    "giraffe": {"depth_weight": 50.0},
    "biden": {},
    "car": {},
    "castle": {"depth_weight": 50.0},
    "chair": {"steps": 50_000, "lr": 0.01, "emptiness_weight": 7000.0},
    "fries": {"depth_weight": 10.0},
    "horse": {},
    "motorcycle": {},
    "obama": {"steps": 30_000, "variance_reduction": False},
    "opera-house": {},
    "pig": {},
    "printer": {"variance_reduction": False},
    "rocket": {"steps": 30_000, "variance_reduction": False},
    "rose": {"depth_weight": 50.0},
    "school-bus": {"steps": 30_000, "variance_reduction": False},
    "temple": {},
    "trump": {"steps": 30_000},
    "zebra": {"lr": 0.02, "emptiness_weight": 3e4, "variance_reduction": False},
    "zelda": {"variance_reduction": False},
}
DRAFT: dict[str, Value] = {"steps": 1000, "grid_size": 64, "ray_step": 2.0 / 128}
# DreamFusion's own loss on the prior at hand; its field and camera stay SJC's.
SDS: dict[str, Value] = {"score": "sds"}
# 64 x 64 pixels from T5: DreamFusion's setting.
IF: dict[str, Value] = {
    "guidance_scale": 20.0, "background": "random", "color_init": 0.1,
    "grid_size": 128, "half_length": 0.7, "ray_step": 0.011,
}  # fmt: skip
# Models of one kind of picture follow the noise down (the paper's section 5.1).
ANNEALED: dict[str, Value] = {
    "sigma_schedule": "annealed", "tick_end": 0, "view_style": "none",
    "color_init": 0.1, "tick_min": 20,
}  # fmt: skip
# Zero-1-to-3 as its 3drec sets it, on the command line that its README gives: the picture's view
# and its latents' 32 x 32 rays, on the white that the model was trained with.
ZERO123: dict[str, Value] = {
    "view_style": "none", "background": "white", "render_size": 32,
    "radius": 2.0, "radius_spread": 0.2, "fov_min": 49.1, "fov_max": 49.1,
    "elevation_min": -14.5, "elevation_max": 90.0,  # the eye's height above -0.5, at radius 2
    "emptiness_weight": 0.0, "input_view_weight": 1e4, "near_view_weight": 1e4,
    "smooth_weight": 1e4,
}  # fmt: skip
# Stable Zero123 was trained at one distance and field of view, which it is not told: the cameras of
# threestudio's stable-zero123.yaml, and a box as large as what they see. The rest as above; not
# measured with these weights.
STABLE_ZERO123: dict[str, Value] = {
    **ZERO123,
    "image_pose": "elevation", "radius": 3.8, "radius_spread": 0.0, "half_length": 0.7,
    "fov_min": 20.0, "fov_max": 20.0, "elevation_min": -10.0, "elevation_max": 80.0,
}  # fmt: skip
# MVDream as MVDream-threestudio sets it, where that has a counterpart here; not measured with the
# model. Ticks: 0.98 of the noise levels at first, in 8,000 of 10,000 steps down to a range of 0.02
# to 0.5. Cameras: of its fields of view the 40 degrees that it evaluates with, from 0.8 to 1 times
# the distance 1 / tan(20 degrees) at which the box fills the picture. It knows where a camera is
# from its matrix, so the prompt has no words for it. The paper's score is divided by sigma, which
# changes its mean size little (1 / sigma is 1.2 on average over the paper's ticks), and has twice
# the guidance: half of the paper's emptiness keeps the balance.
MVDREAM: dict[str, Value] = {
    "score": "recon", "guidance_scale": 50.0, "guidance_rescale": 0.5,
    "tick_start": 980, "tick_min": 20, "tick_max": 980, "tick_end": 500, "tick_share": 0.8,
    "view_style": "none", "views_per_step": 4, "render_size": 32,
    "radius": 2.473, "radius_spread": 0.275, "fov_min": 40.0, "fov_max": 40.0,
    "elevation_min": 0.0, "elevation_max": 30.0, "emptiness_weight": 5000.0,
}  # fmt: skip
PRESETS: dict[str, dict[str, dict[str, Value]]] = {
    "toybox": {
        "toybox": TOYBOX,
        # Half the time for the same shapes, but for thin ones (docs/benchmarks.md)
        "fast": {**TOYBOX, "steps": 365},
        "draft": {**TOYBOX, **SMALL},
        "sds": {**TOYBOX, **SDS},
    },
    "stable_diffusion": {
        "paper": PAPER,
        # What makes the toybox fast, and a coarse grid at first; not measured with these models
        "fast": {"steps": 5000, "tick_end": 500, "grid_start": 50},
        "draft": DRAFT,
        **{f"paper-{name}": PAPER | changes for name, changes in PAPER_EXCEPTIONS.items()},
        "sds": SDS,
    },
    "deepfloyd": {"if": IF, "draft": {**IF, **DRAFT, "ray_step": 0.022}},
    "unconditional": {"annealed": ANNEALED, "draft": {**ANNEALED, **DRAFT}},
    "toybox_unconditional": {
        "annealed": {**PIXELS_32, **ANNEALED},
        "draft": {**PIXELS_32, **SMALL, **ANNEALED},
    },
    "zero123": {
        "zero123": ZERO123,
        "draft": {**ZERO123, **DRAFT},
        "stable-zero123": STABLE_ZERO123,
    },
    "stable_zero123": {
        "stable-zero123": STABLE_ZERO123,
        "draft": {**STABLE_ZERO123, **DRAFT},
        "zero123": ZERO123,
    },
    "mvdream": {"mvdream": MVDREAM, "draft": {**MVDREAM, **DRAFT}},
}


# What presets of version 0.1 set otherwise: their assets, asked for again, are made again
_TOYBOX_IN_01: dict[str, Value] = {
    "steps": 1000, "guidance_end": -1.0, "tick_end": 500, "grid_start": 0, "grid_size": 48,
    "render_start": 0, "render_size": 32, "mesh_smoothing": 0.5,
}  # fmt: skip
PRESETS_IN_01: dict[str, dict[str, dict[str, Value]]] = {
    "toybox": {
        "toybox": _TOYBOX_IN_01,
        "fast": {**_TOYBOX_IN_01, "steps": 500},
        "draft": {"guidance_end": -1.0, "tick_end": 500},
        "sds": _TOYBOX_IN_01,
    },
    "stable_diffusion": {
        name: {"overhead_prompt": "elevation", "depth_loss": "fixed"}
        for name in PRESETS["stable_diffusion"]
        if name.startswith("paper")
    },
}


def presets_of(prior_id: str) -> dict[str, dict[str, Value]]:
    """The presets of the prior's family by name, the default first."""
    return PRESETS[preset_family(prior_id)]


def preset_family(prior_id: str) -> str:
    """The prior's key in PRESETS. A small pixel model without a VAE counts as a toybox."""
    family, index = family_of(prior_id)
    if family == "stable_diffusion" and not (index.get("vae") or [None])[0]:
        family = "toybox"
    if family == "unconditional" and prior_id in BUILTINS:
        family = "toybox_unconditional"
    if family == "zero123" and image_pose(prior_id)[0] == "elevation":
        family = "stable_zero123"
    return family
