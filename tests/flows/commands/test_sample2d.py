"""`sjc sample2d`, as a user types it."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flows.commands.main import app


def sample2d(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sample2d", "a duck", *map(str, arguments)])


@pytest.mark.slow
def test_one_picture_of_both_embedded_priors(tmp_path: Path) -> None:
    out = tmp_path / "experiments.png"
    result = sample2d("-o", out, "--steps", 2, "--guidance", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert "6 of 6" in result.stderr
    with Image.open(out) as picture:
        assert picture.width > 500
    assert [path.name for path in tmp_path.iterdir()] == ["experiments.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "picture.jpg"], "name a .png file"),
        (["-o", "nowhere/picture.png"], "its folder does not exist"),
        (["-o", "picture.png", "--prior", "nonsense"], "'nonsense' is unknown; use toybox"),
        (["-o", "picture.png", "--prior", "dylanebert/mvdream"], "sees several views at once"),
        (["-o", "picture.png", "--guidance", "1;2"], "write numbers with commas between"),
        (["-o", "picture.png", "--device", "cuda:9"], "cuda:9"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sample2d(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
