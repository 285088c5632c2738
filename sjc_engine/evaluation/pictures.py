"""The evaluation pictures of an asset, and all of them on one contact sheet.

Field and mesh are seen by the same "8 + 1" cameras.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sjc_engine.fields.field import Field
from sjc_engine.mesh.gltf import Mesh
from sjc_engine.progress import OnWork, unheard
from sjc_engine.rendering.camera import Camera, evaluation_cameras
from sjc_engine.rendering.rasterize import Raster, rasterize_views
from sjc_engine.rendering.volume import composite, render

AROUND = 8  # the first views are a ring, 45 degrees apart, the first one from the front
WHITE = 1.0
AMBIENT, DIFFUSE = 0.35, 0.55  # strengths of the light on grey pictures

# The contact sheet, in pixels; the pictures are mostly larger, so that shrinking smooths edges
TILE = 144
MARGIN, GAP, LABELS, TITLE, HEADER = 16, 4, 64, 34, 20
INK, FAINT, FRAME = (32, 32, 36), (120, 120, 128), (232, 232, 236)
SIDES = {0: "front", 90: "left", 180: "back", 270: "right"}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Views by camera: RGB in [-1, 1] over white (9, 3, S, S), opacities in [0, 1] (9, S, S)."""

    cameras: list[Camera]
    field: Tensor
    field_opacity: Tensor
    mesh: Tensor
    mesh_opacity: Tensor
    geometry: Tensor  # the mesh in plain shaded grey: the shape without its colours
    normals: Tensor  # of the mesh, as the camera sees them: red to the right, green up
    depth: Tensor  # of the mesh in grey, near is bright


@torch.no_grad()
def take_pictures(field: Field, mesh: Mesh, size: int, on_work: OnWork = unheard) -> Pictures:
    """Render field and mesh from `evaluation_cameras`, size x size pixels; the field on its device.

    The field is sampled once per voxel: half that step changes a picture by 0.2 of 255 grey levels
    on average and takes four times as long. `on_work` hears of each view of the field.
    """
    device = field.device
    cameras = evaluation_cameras()
    renderings = []
    for number, camera in enumerate(cameras):
        on_work("taking pictures", number, len(cameras))
        renderings.append(render(field, camera, size, size, step=field.voxel_length))
    rasters = list(rasterize_views(mesh, cameras, size, size))
    white = torch.full((3, 1, 1), WHITE, device=device)
    pairs = list(zip(rasters, cameras, strict=True))
    return Pictures(
        cameras,
        field=torch.stack([composite(r, white).clamp(-1, 1) for r in renderings]).cpu(),
        field_opacity=torch.stack([r.opacity for r in renderings]).cpu(),
        mesh=torch.stack([_over_white(raster.rgb, raster) for raster in rasters]),
        mesh_opacity=torch.stack([raster.opacity for raster in rasters]),
        geometry=torch.stack([_over_white(_shade(*pair), pair[0]) for pair in pairs]),
        normals=torch.stack([_over_white(_seen_normals(*pair), pair[0]) for pair in pairs]),
        depth=torch.stack([_over_white(_nearness(*pair), pair[0]) for pair in pairs]),
    )


def to_image(picture: Tensor) -> Image.Image:
    """An 8-bit image of a picture (3, H, W) in [-1, 1]; what lies beyond is cut off."""
    levels = ((picture + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")


def _over_white(rgb: Tensor, raster: Raster) -> Tensor:
    return (rgb + (1 - raster.opacity) * WHITE).clamp(-1, 1)


def _shade(raster: Raster, camera: Camera) -> Tensor:
    """Grey (3, H, W) in [-1, 1], premultiplied, lit by `lamp`."""
    towards = lamp(camera).to(raster.normals)
    lambert = (raster.normals * towards[:, None, None]).sum(0).clamp(min=0)
    brightness = AMBIENT * raster.opacity + DIFFUSE * lambert  # premultiplied, in [0, 0.9]
    return (2 * brightness - raster.opacity).expand(3, -1, -1)


def lamp(camera: Camera) -> Tensor:
    """The unit vector (3,) to the lamp of grey pictures, above the camera's left shoulder."""
    pose = camera.camera_to_world[:3, :3]
    return pose @ F.normalize(pose.new_tensor([-0.4, 0.6, 1.0]), dim=0)


def _seen_normals(raster: Raster, camera: Camera) -> Tensor:
    """Normals (3, H, W) along the camera's axes, premultiplied."""
    pose = camera.camera_to_world[:3, :3].to(raster.normals)
    return torch.einsum("wc,wij->cij", pose, raster.normals)


def _nearness(raster: Raster, camera: Camera) -> Tensor:
    """Grey (3, H, W) in [-1, 1], premultiplied, over the depth of a unit ball at the origin."""
    distance = camera.camera_to_world[:3, 3].norm().to(raster.depth)
    near = ((distance + 1 - raster.depth) / 2).clamp(0.05, 1)
    return ((2 * near - 1) * raster.opacity).expand(3, -1, -1)


def contact_sheet(pictures: Pictures, prompt: str) -> Image.Image:
    """An RGB picture: the prompt, then rows for the field and the mesh, its shape and more.

    A prompt that is too long for the sheet is cut short. The built-in font knows ASCII: accents
    are dropped, and what remains unknown shows as boxes.
    """
    rows = {
        "field": pictures.field,
        "mesh": pictures.mesh,
        "shape": pictures.geometry,
        "normals": pictures.normals,
        "depth": pictures.depth,
    }
    columns = len(pictures.cameras)
    width = 2 * MARGIN + LABELS + columns * (TILE + GAP) - GAP
    height = 2 * MARGIN + TITLE + HEADER + len(rows) * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    title, label = ImageFont.load_default(20), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), _fit(prompt, title, width - 2 * MARGIN), INK, title)
    for column, camera in enumerate(pictures.cameras):
        x = MARGIN + LABELS + column * (TILE + GAP)
        y = MARGIN + TITLE
        draw.text((x + TILE / 2, y), _view_name(camera), FAINT, label, anchor="ma")
        for row, views in enumerate(rows.values()):
            top = y + HEADER + row * (TILE + GAP)
            tile = to_image(views[column]).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x, top))
            draw.rectangle((x, top, x + TILE - 1, top + TILE - 1), outline=FRAME)
    for row, name in enumerate(rows):
        middle = MARGIN + TITLE + HEADER + row * (TILE + GAP) + TILE / 2
        draw.text((MARGIN, middle), name, INK, label, anchor="lm")
    return sheet


def _view_name(camera: Camera) -> str:
    if camera.elevation_deg > 30:
        return "from above"
    azimuth = round(camera.azimuth_deg)
    return SIDES.get(azimuth, f"{azimuth}°")


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """One line of text no wider than `width` pixels."""
    plain = [c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn"]
    text = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    if font.getlength(text) <= width:
        return text
    short = text[: width // 4]  # no letter run is narrower; a manifest's cell can be a novel
    while font.getlength(short + " …") > width:
        short = short[:-1]
    return short.rstrip() + " …"
