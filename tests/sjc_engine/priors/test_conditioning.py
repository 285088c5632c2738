"""Pictures to start from: what a file becomes, and which files are refused."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sjc_engine.priors import conditioning as input_image
from sjc_engine.priors.conditioning import ImageError, check_image, read_image

GREEN, WHITE = (0, 255, 51, 255), (255, 255, 255, 255)


def drawn(size=(40, 20), ground=WHITE, mode="RGBA"):
    """A green block of 20 x 10 in the middle of a ground."""
    picture = Image.new("RGBA", size, ground)
    left, top = size[0] // 2 - 10, size[1] // 2 - 5
    picture.paste(GREEN, (left, top, left + 20, top + 10))
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("ground", "mode", "name"),
    [
        ((9, 9, 9, 0), "RGBA", "a.png"),  # what is transparent has a colour of its own
        (WHITE, "RGB", "a.png"),
        (WHITE, "P", "a.png"),
        (WHITE, "RGB", "a.webp"),
    ],
)
def test_a_picture_is_square_and_on_white(tmp_path, ground, mode, name):
    path = tmp_path / name
    drawn(ground=ground, mode=mode).save(path, **({"lossless": True} if "webp" in name else {}))
    image = read_image(path)
    assert image.rgb.shape == (3, 40, 40)
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[15:25, 10:30] = True
    green = torch.tensor([-1.0, 1.0, -0.6]).view(3, 1)
    torch.testing.assert_close(image.rgb[:, inside], green.expand(3, 200))
    assert (image.rgb[:, ~inside] == 1).all()
    assert torch.equal(image.opacity, inside.float())
    assert image.sha256 == check_image(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 51)).save(tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.rgb[0, 8, 8].item() == pytest.approx(2 * 0.8 - 1)
    assert image.opacity[8, 8].item() == pytest.approx(0.2)


def test_a_photo_without_a_white_border_has_no_silhouette(tmp_path):
    drawn(ground=(200, 180, 160, 255), mode="RGB").save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.opacity is None
    assert image.rgb.shape == (3, 40, 40)


def test_a_phones_picture_is_turned_upright_and_a_large_one_is_reduced(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    picture = Image.new("RGB", (40, 40), "white")
    picture.paste((0, 0, 0), (0, 0, 40, 20))
    picture.save(tmp_path / "a.png", exif=exif)
    dark = read_image(tmp_path / "a.png").rgb[0] < 0
    assert dark[:, 20:].all()
    assert not dark[:, :20].any()
    monkeypatch.setattr(input_image, "KEPT_SIDE", 20)
    assert read_image(tmp_path / "a.png").rgb.shape == (3, 20, 20)


def test_files_that_are_no_usable_pictures_are_refused(tmp_path, monkeypatch):
    drawn().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[:-40])
    (tmp_path / "text.png").write_text("a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("L", (8193, 16)).save(tmp_path / "wide.png")
    Image.new("L", (8, 8)).save(tmp_path / "tiny.png")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "deep.png")
    drawn(mode="RGB").save(tmp_path / "other.bmp")
    (tmp_path / "folder.png").mkdir()
    for name, problem in {
        "none.png": "does not exist; ",
        "folder.png": "is a directory; ",
        "torn.png": "is damaged ",
        "text.png": "is not an image; ",
        "empty.png": "is not an image; ",
        "other.bmp": "is not an image; ",
        "wide.png": "has 8193 x 16 pixels; use 16 to 8192 a side",
        "tiny.png": "has 8 x 8 pixels; ",
        "deep.png": "has 16-bit greys; ",
    }.items():
        for read in (check_image, read_image):
            with pytest.raises(ImageError) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(f"image: {tmp_path / name} {problem}")
    monkeypatch.setattr(input_image, "MAX_BYTES", 2**20)
    (tmp_path / "good.png").write_bytes(whole + bytes(2**21))
    with pytest.raises(ImageError, match="has 2 MiB, and the limit is 1; save it smaller"):
        check_image(tmp_path / "good.png")


def test_checking_a_picture_needs_no_torch(tmp_path):
    drawn().save(tmp_path / "a.png")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sjc_engine.priors.conditioning import check_image; check_image('a.png')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
