"""The picture that a 3D asset starts from: a file, checked, square and on white.

Checking a file needs no torch, so that a manifest of pictures is checked at once.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sjc_engine.priors.sources import family_of

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from torch import Tensor

    from sjc_engine.recipes import OptimizeRecipe

MAX_BYTES = 64 * 2**20
SIDES = (16, 8192)  # pixels: less shows nothing, and more is a mistake
KEPT_SIDE = 1024  # pixels; models take 256
WHITE_ABOVE = 0.95  # of [0, 1], in each channel: a studio's white has shadows and noise
TOUCHES_BORDER = 0.02  # at most this share of an object's outermost pixels is the object


NO_SILHOUETTE = (
    "the picture has neither transparency nor a white border, and so no silhouette; cut its object"
    " out, or use silhouette_weight = 0"
)


class ImageError(ValueError):
    """This file is no usable picture: what is wrong; what to do."""


@dataclass(frozen=True, eq=False)
class InputImage:
    """A square picture of an object on white."""

    rgb: Tensor  # (3, S, S) in [-1, 1]
    opacity: Tensor | None  # (S, S) in [0, 1]; None where nothing tells object from background
    sha256: str  # of the file, in hex: what the asset's identity holds


def read_image(path: str | Path) -> InputImage:
    """The picture of a file. Raises ImageError.

    Transparent parts become white, and so does what pads the shorter side. Where the file has no
    transparency, a white border is taken for a background that goes on inwards.
    """
    import numpy as np
    import torch

    data = _read(path)
    picture = _square(_decode(data, Path(path)))
    pixels = torch.from_numpy(np.array(picture)).float() / 255  # (S, S, 4)
    rgb, alpha = pixels[..., :3].movedim(-1, 0), pixels[..., 3]
    opacity: Tensor | None = alpha
    if bool((alpha > 0).all()):
        opacity = (rgb.amin(0) < WHITE_ABOVE).float()
        rim = torch.cat([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]])
        if float(rim.mean()) > TOUCHES_BORDER:
            opacity = None
    on_white = rgb * alpha + (1 - alpha)
    return InputImage(2 * on_white - 1, opacity, hashlib.sha256(data).hexdigest())


def mismatches(
    prior: str, takes_image: bool, has_image: bool, negative_prompt: str, recipe: OptimizeRecipe
) -> list[tuple[str, str]]:
    """What does not go together with a prior of this name: setting, and "problem; fix"."""
    found = []
    if takes_image and not has_image:
        problem = f"prior {prior!r} starts from an image, and there is none; name one"
        found.append(("image", problem))
    if not takes_image:
        for key in ("input_view_weight", "silhouette_weight"):
            if value := getattr(recipe, key):
                problem = f"{key} = {value:g} wants an input image, and prior {prior!r}"
                found.append((key, problem + " takes text only; use 0"))
        if has_image:
            problem = f"prior {prior!r} takes text only, not images; leave the image out, or"
            found.append(("image", problem + " use a prior such as kxic/zero123-xl"))
    if takes_image or family_of(prior)[0] == "unconditional":
        if negative_prompt:
            found.append(("negative_prompt", f"prior {prior!r} takes no words; leave it out"))
        if recipe.perp_neg_weight:
            found.append(("perp_neg_weight", f"prior {prior!r} takes no words; use 0"))
    if takes_image and recipe.background == "random":
        problem = "'random' contradicts an image on white; use white or learned"
        found.append(("background", problem))
    return found


def check_image(path: str | Path) -> str:
    """The SHA-256 of a picture's file, in hex, once all of it is known to be readable.

    Raises ImageError.
    """
    data = _read(path)
    _decode(data, Path(path))
    return hashlib.sha256(data).hexdigest()


def _read(path: str | Path) -> bytes:
    path = Path(path)
    try:
        if not path.is_file():
            problem = "is a directory" if path.is_dir() else "does not exist"
            raise ImageError(f"picture {path} {problem}; name a PNG, JPEG or WebP file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageError(
                f"picture {path} has {size / 2**20:.0f} MiB, and the limit is"
                f" {MAX_BYTES >> 20}; save it smaller"
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"picture {path} cannot be read ({error.strerror}); fix its permissions"
        ) from error


def _decode(data: bytes, path: Path) -> PILImage.Image:
    """All of the file's pixels as RGBA, the right way up."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    low, high = SIDES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: counted below; of odd metadata
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as file:
                if not low <= min(file.size) <= max(file.size) <= high:
                    size = f"{file.width} x {file.height}"
                    raise ImageError(
                        f"picture {path} has {size} pixels; use {low} to {high} a side"
                    )
                if file.mode[0] in "IF":
                    raise ImageError(f"picture {path} has 16-bit greys; save it with 8 bits")
                return ImageOps.exif_transpose(file).convert("RGBA")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"picture {path} is no picture; name a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"picture {path}: {error}; use at most {high} pixels a side") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:  # what PIL has for damage
        raise ImageError(f"picture {path} is damaged ({error}); save it again") from error


def _square(picture: PILImage.Image) -> PILImage.Image:
    """In the middle of a white square, of which the padding is transparent if anything is."""
    from PIL import Image

    side = max(picture.size)
    clear = picture.getchannel("A").getextrema()[0] == 0
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0 if clear else 255))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    if side <= KEPT_SIDE:
        return square
    return square.resize((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BOX)
