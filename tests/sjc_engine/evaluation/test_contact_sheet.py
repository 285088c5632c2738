from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sjc_engine.evaluation.pictures import (
    GAP,
    HEADER,
    LABELS,
    MARGIN,
    TILE,
    TITLE,
    Pictures,
    contact_sheet,
)
from sjc_engine.rendering.camera import evaluation_cameras


def flat(level: float) -> torch.Tensor:
    """Nine pictures, each darker than the one before."""
    return level - torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, 32, 32) * 0.05


PICTURES = Pictures(
    evaluation_cameras(),
    field=flat(0.9),
    field_opacity=torch.ones(9, 32, 32),
    mesh=flat(0.4),
    mesh_opacity=torch.ones(9, 32, 32),
    geometry=flat(-0.1),
    normals=flat(0.2),
    depth=flat(0.6),
)


def title(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)[: MARGIN + TITLE - 8]


def test_every_view_is_at_its_place() -> None:
    sheet = np.asarray(contact_sheet(PICTURES, "a ball"))
    for row, level in enumerate([0.9, 0.4, -0.1, 0.2, 0.6]):
        for column in range(9):
            y = MARGIN + TITLE + HEADER + row * (TILE + GAP) + TILE // 2
            x = MARGIN + LABELS + column * (TILE + GAP) + TILE // 2
            expected = round((level - 0.05 * column + 1) * 127.5)
            assert sheet[y, x].tolist() == pytest.approx([expected] * 3, abs=1)
    edges = [sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]]
    assert all((edge == 255).all() for edge in edges)
    assert (sheet[:, :LABELS] < 128).any()  # the rows' names


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "🦆" * 300,
        "a duck 🦆❤️‍🔥 鸭子 بطة",
        "two\nlines\tand \x00 a NUL \u202e",
        "word " * 5000,
        "W" * 100_000,
    ],
    ids=["empty", "blank", "emoji", "scripts", "control", "long", "one word"],
)
def test_no_prompt_breaks_the_sheet(prompt: str) -> None:
    sheet = contact_sheet(PICTURES, prompt)
    plain = contact_sheet(PICTURES, "")
    assert sheet.size == plain.size
    assert np.array_equal(np.asarray(sheet)[MARGIN + TITLE :], np.asarray(plain)[MARGIN + TITLE :])
    assert (title(sheet)[:, -MARGIN:] == 255).all()  # nothing runs off the edge
    assert (title(sheet) < 128).any() == bool(prompt.strip())


def test_control_characters_become_spaces() -> None:
    plain = contact_sheet(PICTURES, "a duck on a pond")
    marked = contact_sheet(PICTURES, "a duck\x00on\u202e\na pond\x1b")
    assert np.array_equal(title(plain), title(marked))


def test_accents_do_not_become_boxes() -> None:
    plain = contact_sheet(PICTURES, "eclair creme")
    accented = contact_sheet(PICTURES, "éclair crème")
    assert np.array_equal(title(plain), title(accented))
