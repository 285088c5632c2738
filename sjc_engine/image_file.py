"""The image that a 3D asset starts from: a file, checked, square and on white.

Checking a file needs no torch, so that a manifest of images is checked at once.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sjc_engine.errors import SettingError

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from torch import Tensor

MAX_BYTES = 64 * 2**20
SIDES = (16, 8192)  # pixels: less shows nothing, and more is a mistake
KEPT_SIDE = 1024  # pixels; models take 256
# Of [0, 1], in each channel: a studio's white has shadows and noise, and a JPEG of quality 75 has
# waves around the object, down to 231 of 255.
WHITE_ABOVE = 0.9
BLANK_ABOVE = 0.98  # the same for an image without anything darker: of a pale object
OPAQUE_FROM = 0.5  # alpha
# Share of pixels that are not opaque where a file's transparency means something
LEAST_CLEAR = 0.001
LEAST_SHOWN = 0.001  # share of pixels that are not white; dust is less
TOUCHES_BORDER = 0.02  # at most this share of a white or clear border is the object
FRAMED = 0.5  # from this share on the border is no object that touches it, but a photo's
SMALL = 0.02, 0.35  # share of the area, or of the longer side, below which a model sees too little
OFF_CENTER = 0.1  # of a side
# Of the side, by the longer side of an object that Zero-1-to-3's demo prepares: 200 of 256 pixels
FILLED = 200 / 256
_NAME_ONE = "name a PNG, JPEG or WebP file"
_ORIENTATION = 0x0112  # EXIF's tag
# What Pillow raises for a file, or for metadata, that it cannot read
_BROKEN = (
    OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, OverflowError,
    AttributeError, struct.error, zlib.error,
)  # fmt: skip


class ImageError(SettingError):
    """A file that cannot be used as an input image."""


@dataclass(frozen=True)
class ImageFacts:
    """What a check finds in an image that can be used."""

    sha256: str  # of the file, in hex: what the asset's identity holds
    silhouette: bool  # whether transparency or a white border tells the object from the background
    warnings: tuple[str, ...]  # why it may give a poor asset, and what to do
    misplaced: tuple[str, ...]  # those of where its object is and how large, which `recenter` mends

    def remarks(self, recentered: bool) -> list[str]:
        """The warnings that matter for an image which is recentered, or which is not."""
        return [text for text in self.warnings if not (recentered and text in self.misplaced)]


@dataclass(frozen=True, eq=False)
class InputImage:
    """A square image of an object on white."""

    rgb: Tensor  # (3, S, S) in [-1, 1]
    opacity: Tensor | None  # (S, S) in [0, 1]; None where nothing tells object from background
    sha256: str
    warnings: tuple[str, ...] = ()


def read_image(path: str | Path) -> InputImage:
    """The image of a file. Raises ImageError.

    Transparent parts become white, and so does what pads the shorter side. Where the file has no
    transparency, a white border is taken for a background that goes on inwards.
    """
    import torch

    on_white, opacity, facts = _examine(Path(path))
    rgb = torch.from_numpy(2 * on_white - 1).movedim(-1, 0)
    clear = torch.from_numpy(opacity) if facts.silhouette else None
    return InputImage(rgb, clear, facts.sha256, facts.warnings)


def recenter(image: InputImage, opacity: Tensor) -> InputImage:
    """The image cut, or padded with white, to a square around its object, which fills 78% of it.

    opacity: the image's.
    """
    import torch.nn.functional as F

    places = (opacity >= OPAQUE_FROM * opacity.max()).nonzero()  # glass may be all but clear
    low, high = places.amin(0), places.amax(0) + 1  # (2,) of rows and columns
    side = math.ceil(int((high - low).max()) / FILLED)
    before = (side - (high - low)) // 2 - low
    after = side - before - len(opacity)
    (top, left), (bottom, right) = before.tolist(), after.tolist()
    pads = left, right, top, bottom  # those below zero cut
    return replace(
        image, rgb=F.pad(image.rgb, pads, value=1.0), opacity=F.pad(opacity, pads, value=0.0)
    )


def check_image(path: str | Path) -> ImageFacts:
    """What is known of an image's file once all of it was read. Raises ImageError."""
    return _examine(Path(path))[-1]


def _examine(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], ImageFacts]:
    """The image on white (S, S, 3) and its opacity (S, S), in [0, 1], and what is known of it."""
    data = _read(path)
    picture = _square(_decode(data, path))
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    alpha = pixels[..., 3:]
    on_white = pixels[..., :3] * alpha + (1 - alpha)
    darkest = on_white.min(axis=2)
    clear = _is_clear(picture)
    shown = darkest < WHITE_ABOVE
    if shown.mean() < LEAST_SHOWN:  # a pale object, unless it is the ground that is pale
        pale = darkest < BLANK_ABOVE
        shown = pale if clear or _on_border(pale) <= TOUCHES_BORDER else shown
    if (share := shown.mean()) < LEAST_SHOWN:
        problem = f"{path} shows nothing: {share:.2%} of it differs from white"
        raise ImageError("image", problem, "use one of an object, cut out or on white")
    opacity = alpha[..., 0] if clear else shown.astype(np.float32)
    mask = shown | (opacity >= OPAQUE_FROM)
    border = _on_border(mask)
    silhouette = clear or border <= TOUCHES_BORDER
    misplaced = tuple(_misplaced(mask)) if silhouette and border < FRAMED else ()
    found = (*_uncut(border, silhouette), *misplaced)
    sha256 = hashlib.sha256(data).hexdigest()
    return on_white, opacity, ImageFacts(sha256, silhouette, found, misplaced)


def _on_border(mask: NDArray[np.bool_]) -> float:
    """The share of the outermost pixels that is in the mask."""
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


# What is unlike the images that models were trained on: one object, whole, in the middle.


def _uncut(border: float, silhouette: bool) -> Iterator[str]:
    """border: the share of the outermost pixels that the object has."""
    if not silhouette or border >= FRAMED:
        yield (
            f"it is not cut out: {border:.0%} of its border is neither white nor transparent;"
            " remove the background, and leave a margin around the object"
        )
    elif border > TOUCHES_BORDER:
        yield f"the object touches {border:.0%} of the border and may be cut off; leave a margin"


def _misplaced(mask: NDArray[np.bool_]) -> Iterator[str]:
    """mask: (S, S), where the object is."""
    # Percentiles: a few grains of dust move no edge.
    low, high = ((np.percentile(np.nonzero(mask), q, axis=1) + 0.5) / len(mask) for q in (1, 99))
    (height, width), (y, x) = high - low, (high + low) / 2
    area = float(mask.mean())
    if area < SMALL[0] or max(height, width) < SMALL[1]:
        yield (
            f"the object covers {area:.1%} of the square image ({width:.0%} of its width,"
            f" {height:.0%} of its height); let it fill about three quarters, or set image_recenter"
        )
    if max(abs(x - 0.5), abs(y - 0.5)) > OFF_CENTER:
        yield (
            f"the object is off centre, at {x:.0%} of the width and {y:.0%} of the height;"
            " move it to the middle, or set image_recenter"
        )


def _read(path: Path) -> bytes:
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
    """All of the file's pixels as RGBA, the right way up.

    Where its metadata is broken, or larger than Pillow reads, it is left out.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        try:
            return _pixels(data, path)
        except ImageError:
            raise
        except _BROKEN:
            return _pixels(b"".join(_essential(data)), path)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("image", f"{path} is not an image", _NAME_ONE) from error
    except Image.DecompressionBombError as error:
        fix = f"use at most {SIDES[1]} pixels a side"
        raise ImageError("image", f"{path}: {error}", fix) from error
    except _BROKEN as error:
        raise ImageError("image", f"{path} is damaged ({error})", "save it again") from error


def _pixels(data: bytes, path: Path) -> PILImage.Image:
    from PIL import Image

    low, high = SIDES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many pixels: counted below; of odd metadata
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as file:
            if not low <= min(file.size) <= max(file.size) <= high:
                problem = f"{path} has {file.width} x {file.height} pixels"
                raise ImageError("image", problem, f"use {low} to {high} a side")
            if file.mode[0] in "IF":
                raise ImageError("image", f"{path} has 16-bit greys", "save it with 8 bits")
            file.load()
            turn = _turn(file)
            return (file if turn is None else file.transpose(turn)).convert("RGBA")


def _turn(picture: PILImage.Image) -> Any:
    """What brings a picture the right way up: a `Transpose`; None too if its EXIF is broken."""
    from PIL.Image import Transpose

    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except _BROKEN:
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }  # fmt: skip
    return turns.get(orientation) if isinstance(orientation, int) else None


def _essential(data: bytes) -> Iterator[bytes]:
    """The parts of a PNG or JPEG file that make its pixels, and the EXIF that turns them."""
    if data.startswith(b"\x89PNG"):
        yield data[:8]
        at = 8
        while at + 8 <= len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            chunk = data[at : at + size + 12]
            whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
            # Capitals make a chunk critical; Pillow reads no file with one that is not whole.
            if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and whole):
                yield chunk
            at += size + 12
    elif data.startswith(b"\xff\xd8"):
        yield data[:2]
        at = 2
        while at + 4 <= len(data) and data[at + 1] != 0xDA:  # the pixels follow that one
            marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
            exif = marker == 0xE1 and data.startswith(b"Exif", at + 4)
            # JFIF's and Adobe's say which colours these are; APP2 to APP15 and comments do not.
            if exif or not ((0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE):
                yield data[at : at + size + 2]
            at += size + 2
        yield data[at:]
    else:
        yield data


def _is_clear(picture: PILImage.Image) -> bool:
    """Whether a picture's transparency means something."""
    counts = picture.getchannel("A").histogram()
    return sum(counts[: round(OPAQUE_FROM * 255)]) >= LEAST_CLEAR * sum(counts)


def _square(picture: PILImage.Image) -> PILImage.Image:
    """In the middle of a white square, of which the padding is transparent if the picture is."""
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0 if _is_clear(picture) else 255))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    if side <= KEPT_SIDE:
        return square
    return square.resize((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BOX)
