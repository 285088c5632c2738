"""The contact sheet of an asset: every evaluation view of its field and its mesh in one picture."""

from __future__ import annotations

import unicodedata

from PIL import Image, ImageDraw, ImageFont

from sjc_engine.camera import Camera
from sjc_engine.fields import Field
from sjc_engine.mesh_file import Mesh
from sjc_engine.pictures import Pictures, take_pictures, to_image

TILE = 144  # pixels; the pictures are larger, so that shrinking them smooths their edges
PICTURE = 256
MARGIN, GAP, LABELS, TITLE, HEADER = 16, 4, 64, 34, 20
INK, FAINT, FRAME = (32, 32, 36), (120, 120, 128), (232, 232, 236)
SIDES = {0: "front", 90: "left", 180: "back", 270: "right"}


def contact_sheet(
    field: Field, mesh: Mesh, prompt: str = "", pictures: Pictures | None = None
) -> Image.Image:
    """An RGB picture: the prompt, then rows for the field and the mesh, its shape and more.

    `pictures` saves the rendering where they were taken already. A prompt that is too long for the
    sheet is cut short. The built-in font knows ASCII: accents are dropped, and what remains
    unknown shows as boxes.
    """
    pictures = pictures or take_pictures(field, mesh, PICTURE)
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
