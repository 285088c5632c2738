"""The picture that a 3D asset starts from: a file, checked, square and on white.

Checking a file needs no torch, so that a manifest of pictures is checked at once.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sjc_engine.errors import SettingError
from sjc_engine.priors.sources import family_of

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from torch import Tensor

    from sjc_engine.recipes import OptimizeRecipe

MAX_BYTES = 64 * 2**20
SIDES = (16, 8192)  # pixels: less shows nothing, and more is a mistake
KEPT_SIDE = 1024  # pixels; models take 256
WHITE_ABOVE = 0.95  # of [0, 1], in each channel: a studio's white has shadows and noise
_NAME_ONE = "name a PNG, JPEG or WebP file"
TOUCHES_BORDER = 0.02  # at most this share of an object's outermost pixels is the object


class ImageError(SettingError):
    """A file that cannot be used as an input image."""


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
) -> Iterator[SettingError]:
    """What does not go together with a prior of this name."""
    if takes_image and not has_image:
        yield SettingError("image", f"prior {prior!r} needs an image", "name one")
    if not takes_image:
        text_only = f"prior {prior!r} takes text only, not images"
        for key in ("input_view_weight", "silhouette_weight"):
            if getattr(recipe, key):
                yield SettingError(key, text_only, "use 0")
        if has_image:
            fix = "leave the image out, or use a prior such as kxic/zero123-xl"
            yield SettingError("image", text_only, fix)
    if takes_image or family_of(prior)[0] == "unconditional":
        no_words = f"prior {prior!r} takes no words"
        if negative_prompt:
            yield SettingError("negative_prompt", no_words, "leave it out")
        if recipe.perp_neg_weight:
            yield SettingError("perp_neg_weight", no_words, "use 0")
    if takes_image and recipe.background == "random":
        problem = "'random' contradicts an image on white"
        yield SettingError("background", problem, "use white or learned")


def no_silhouette() -> SettingError:
    """The error for a silhouette that is asked of an image without one."""
    problem = "the image has neither transparency nor a white border, so it has no silhouette"
    return SettingError("silhouette_weight", problem, "cut the object out, or use 0")


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
            raise ImageError("image", f"{path} {problem}", _NAME_ONE)
        if (size := path.stat().st_size) > MAX_BYTES:
            problem = f"{path} has {size / 2**20:.0f} MiB, and the limit is {MAX_BYTES >> 20}"
            raise ImageError("image", problem, "save it smaller")
        return path.read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
        raise ImageError("image", problem, "fix its permissions") from error


def _decode(data: bytes, path: Path) -> PILImage.Image:
    """All of the file's pixels as RGBA, the right way up."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    low, high = SIDES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: counted below; of odd metadata
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as file:
                if not low <= min(file.size) <= max(file.size) <= high:
                    problem = f"{path} has {file.width} x {file.height} pixels"
                    raise ImageError("image", problem, f"use {low} to {high} a side")
                if file.mode[0] in "IF":
                    raise ImageError("image", f"{path} has 16-bit greys", "save it with 8 bits")
                return ImageOps.exif_transpose(file).convert("RGBA")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("image", f"{path} is not an image", _NAME_ONE) from error
    except Image.DecompressionBombError as error:
        fix = f"use at most {high} pixels a side"
        raise ImageError("image", f"{path}: {error}", fix) from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:  # what PIL has for damage
        raise ImageError("image", f"{path} is damaged ({error})", "save it again") from error


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
