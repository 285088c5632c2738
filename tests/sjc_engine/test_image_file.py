"""Pictures to start from: what a file becomes, and which files are refused."""

import hashlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sjc_engine import image_file
from sjc_engine.image_file import FILLED, ImageError, check_image, read_image, recenter

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
    assert image.sha256 == check_image(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("size", "place"), [((40, 40), (1, 1)), ((40, 40), (18, 28)), ((300, 200), (180, 60))]
)
@pytest.mark.parametrize("ground", [(9, 9, 9, 0), WHITE])
def test_a_recentered_object_fills_the_middle(tmp_path, size, place, ground):
    """Wherever it was; nothing is resampled, so each of its pixels stays as it is."""
    picture = Image.new("RGBA", size, ground)
    picture.paste(GREEN, (*place, place[0] + 20, place[1] + 10))
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    moved = recenter(image, image.opacity)
    side = moved.rgb.shape[-1]
    assert moved.rgb.shape[1:] == moved.opacity.shape == (side, side)
    assert moved.opacity.sum() == image.opacity.sum() == ((moved.rgb < 1).any(0)).sum()
    rows, columns = moved.opacity.nonzero().unbind(1)
    for line in (rows, columns):
        assert abs((line.min() + line.max() + 1) / 2 - side / 2) <= 0.5
    assert (columns.max() - columns.min() + 1) / side == pytest.approx(FILLED, abs=0.02)
    assert torch.equal(recenter(moved, moved.opacity).rgb, moved.rgb)


def test_soft_edges_and_glass_are_recentered_whole(tmp_path):
    picture = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 40), (6, 6, 30, 30))  # glass: nothing of it is half opaque
    picture.paste((0, 0, 0, 90), (8, 8, 28, 28))
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    moved = recenter(image, image.opacity)
    assert moved.rgb.shape[-1] == 26  # 20 pixels of 90
    assert moved.opacity.sum().item() == pytest.approx(image.opacity.sum().item())


def test_what_recentering_mends_is_no_warning_of_it(tmp_path):
    facts = seen(tmp_path, cut_out(box=(2, 2, 20, 20)))
    assert len(facts.warnings) == 2
    assert facts.remarks(recentered=False) == list(facts.warnings)
    assert facts.remarks(recentered=True) == []
    assert "or set image_recenter" in facts.warnings[0]
    [cut] = seen(tmp_path, cut_out(box=(30, 15, 100, 85))).remarks(recentered=True)
    assert "touches 18% of the border" in cut


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
    monkeypatch.setattr(image_file, "KEPT_SIDE", 20)
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
    monkeypatch.setattr(image_file, "MAX_BYTES", 2**20)
    (tmp_path / "good.png").write_bytes(whole + bytes(2**21))
    with pytest.raises(ImageError, match="has 2 MiB, and the limit is 1; save it smaller"):
        check_image(tmp_path / "good.png")


def test_checking_a_picture_needs_no_torch(tmp_path):
    drawn().save(tmp_path / "a.png")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sjc_engine.image_file import check_image; check_image('a.png')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


# --- what an image shows ---------------------------------------------------------------------


def cut_out(size=(100, 100), box=(15, 15, 85, 85), ground=(0, 0, 0, 0), colour=GREEN):
    picture = Image.new("RGBA", size, ground)
    picture.paste(colour, box)
    return picture


def seen(tmp_path, picture, name="a.png", **options):
    picture.save(tmp_path / name, **options)
    facts = check_image(tmp_path / name)
    assert read_image(tmp_path / name).warnings == facts.warnings
    return facts


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGBA", (40, 40), (9, 9, 9, 0)),
        Image.new("RGBA", (40, 40), (9, 9, 9, 3)),  # as good as clear
        Image.new("RGB", (40, 40), "white"),
        Image.new("RGB", (40, 40), (246, 246, 246)),  # a scan's white
        Image.new("L", (40, 400), 255),
        cut_out(colour=WHITE),  # white on white
        cut_out((1000, 1000), (500, 500, 503, 503)),  # a grain of dust
    ],
)
def test_an_image_that_shows_nothing_is_refused(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    for read in (check_image, read_image):
        with pytest.raises(ImageError, match=r"a.png shows nothing: 0\.\d\d% of it differs from w"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("picture", "remarks"),
    [
        (cut_out(), []),
        (cut_out(ground=WHITE), []),
        (cut_out(colour=(235, 235, 235, 255)), []),  # pale, and transparency tells it
        (cut_out(colour=(240, 240, 235, 255), ground=WHITE), []),  # and a border of pure white
        (cut_out((300, 100), (20, 10, 280, 90)), []),  # padded to a square
        (cut_out(box=(15, 15, 85, 85), colour=(0, 255, 51, 250)), []),  # opaque enough
        (cut_out((1000, 1000), (10, 10, 60, 60)),
         ["covers 0.2% of the square image (5% of its width, 5% of its height); let it fill",
          "off centre, at 3% of the width and 3% of the height; move it"]),
        (Image.new("RGB", (2048, 20), "black"), ["covers 1.0% of the square image (98% of its wi"]),
        (cut_out(box=(30, 15, 100, 85)), ["touches 18% of the border", "off centre, at 65%"]),
        (cut_out(box=(40, 30, 90, 80)), ["at 65% of the width and 55% of the height"]),
        (cut_out(ground=(90, 90, 90, 255)), ["not cut out: 100% of its border is neither white"]),
        (cut_out(box=(30, 15, 100, 85), ground=WHITE), ["not cut out: 18% of its border is "]),
        (cut_out(box=(0, 0, 100, 100)), ["not cut out: 100% of its border is "]),
    ],
)  # fmt: skip
def test_what_is_unlike_the_models_images_is_said_with_numbers(tmp_path, picture, remarks):
    found = seen(tmp_path, picture).warnings
    assert len(found) == len(remarks), found
    for text, part in zip(found, remarks, strict=True):
        assert part in text


def test_one_clear_pixel_does_not_cut_an_image_out(tmp_path):
    photo = Image.new("RGBA", (100, 100), (90, 90, 90, 255))
    photo.putpixel((0, 0), (0, 0, 0, 0))
    facts = seen(tmp_path, photo)
    assert not facts.silhouette
    [text] = facts.warnings
    assert text.startswith("it is not cut out: ")
    almost = cut_out(ground=(0, 0, 0, 2))  # what a lossy file makes of a clear ground
    assert seen(tmp_path, almost).warnings == ()
    assert (read_image(tmp_path / "a.png").opacity[:10] < 0.01).all()


def test_the_waves_of_a_jpeg_are_white(tmp_path):
    """Around an object whose blocks touch the border."""
    picture = cut_out((64, 64), (6, 6, 58, 58), ground=WHITE, colour=(200, 30, 30, 255))
    picture.convert("RGB").save(tmp_path / "a.jpg", quality=75)
    pixels = np.asarray(Image.open(tmp_path / "a.jpg"))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert rim.min() == 231
    assert (rim.min(axis=1) < 239).mean() > image_file.TOUCHES_BORDER
    assert check_image(tmp_path / "a.jpg").silhouette
    assert read_image(tmp_path / "a.jpg").opacity[0].max() == 0


# --- metadata --------------------------------------------------------------------------------


def with_chunks(png, *chunks, wrong_sum=False):
    """A PNG with more chunks behind its header."""
    added = b""
    for kind, content in chunks:
        check = zlib.crc32(kind + content) ^ wrong_sum
        added += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return png[:33] + added + png[33:]


def with_segments(jpeg, *segments):
    added = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        for marker, content in segments
    )
    return jpeg[:2] + added + jpeg[2:]


LYING = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
BOMB = zlib.compress(bytes(70 << 20), 9)
PNG_METADATA = {
    "text that grows": [(b"zTXt", b"a\0\0" + BOMB)],
    "international text that grows": [(b"iTXt", b"a\0\x01\0\0\0" + BOMB)],
    "a profile that grows": [(b"iCCP", b"a\0\0" + BOMB)],
    "much text": [(b"tEXt", b"a\0" + b"x" * (3 << 20))] * 5,
    "text that is cut short": [(b"zTXt", b"a\0\0" + BOMB[:50])],
    "short resolution": [(b"pHYs", b"\0")],
    "an animation of nothing": [(b"acTL", b"\0")],
    "EXIF that is none": [(b"eXIf", b"MM\0*\xff\xff\xff\xff")],
}
JPEG_METADATA = {
    "EXIF that is none": [(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")],
    "much EXIF": [(0xE1, b"Exif\0\0" + bytes(65_000))] * 40,
    "much of a profile": [(0xE2, b"ICC_PROFILE\0\x01\x63" + bytes(65_000))] * 99,
    "several images that are none": [(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x7f")],
    "comments": [(0xFE, bytes(65_000))] * 99,
    "Photoshop's, cut short": [(0xED, b"Photoshop 3.0\x008BIM\x03")],
}


@pytest.mark.parametrize("kind", PNG_METADATA)
def test_no_metadata_makes_a_png_damaged(tmp_path, kind):
    plain = io.BytesIO()
    drawn().save(plain, "PNG")
    for wrong_sum in (False, True):
        data = with_chunks(plain.getvalue(), *PNG_METADATA[kind], wrong_sum=wrong_sum)
        (tmp_path / "a.png").write_bytes(data)
        image = read_image(tmp_path / "a.png")
        assert image.opacity[15:25, 10:30].all()
        assert image.opacity.sum() == 200
        assert image.sha256 == hashlib.sha256(data).hexdigest()
    if b"eXIf" not in (chunk for chunk, _ in PNG_METADATA[kind]):  # it is still turned
        data = with_chunks(plain.getvalue(), *PNG_METADATA[kind], (b"eXIf", LYING))
        (tmp_path / "a.png").write_bytes(data)
        assert read_image(tmp_path / "a.png").opacity[10:30, 15:25].all()


@pytest.mark.parametrize("kind", JPEG_METADATA)
def test_no_metadata_makes_a_jpeg_damaged(tmp_path, kind):
    plain = io.BytesIO()
    drawn(mode="RGB").save(plain, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(plain.getvalue())
    expected = read_image(tmp_path / "a.jpg").rgb
    (tmp_path / "a.jpg").write_bytes(with_segments(plain.getvalue(), *JPEG_METADATA[kind]))
    assert torch.equal(read_image(tmp_path / "a.jpg").rgb, expected)


def test_what_is_wrong_with_the_pixels_stays_damage(tmp_path):
    picture = io.BytesIO()
    drawn((400, 400)).save(picture, "PNG")
    data = with_chunks(picture.getvalue(), *PNG_METADATA["text that grows"])
    (tmp_path / "a.png").write_bytes(data[:-100])
    with pytest.raises(ImageError, match=r"a\.png is damaged"):
        check_image(tmp_path / "a.png")
