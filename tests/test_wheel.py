"""The package as it is installed: what a wheel brings must be enough to make and show assets."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from command_line import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in (
        "flows",
        "tasks",
        "sjc_engine",
    ):  # a build leaves files behind
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "."], cwd=folder, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and this one's libraries, but without this checkout."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    own = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # As a plain path: files that end in .pth, such as the one of this checkout, have no effect.
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*install, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin" / "python"


def test_it_holds_the_packages_and_no_training(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert folders - {name for name in folders if name.endswith(".dist-info")} == {
        "flows", "tasks", "sjc_engine",
    }  # fmt: skip
    assert not [name for name in names if "/training/" in name]
    code = {path.relative_to(ROOT).as_posix() for package in ("flows", "tasks", "sjc_engine")
            for path in (ROOT / package).rglob("*.py") if "training" not in path.parts}  # fmt: skip
    assert code <= set(names)


@pytest.mark.slow
def test_it_makes_an_asset_and_shows_a_store(python: Path, judge: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def sjc(*words: str) -> str:
        command = [str(python.with_name("sjc")), *words]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    where = subprocess.run(
        [python, "-c", "import tasks; print(tasks.__path__[0])"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not Path(where.stdout.strip()).is_relative_to(ROOT)
    sjc("generate", "a yellow duck", "-o", "duck", "--recipe", "draft", *tiny(judge))
    assert (tmp_path / "duck" / "mesh.glb").stat().st_size > 1000
    (tmp_path / "m.csv").write_text("prompt\na yellow duck\n")
    sjc("run", "m.csv", "--recipe", "draft", "--devices", "cpu", "--quiet", *tiny(judge))
    page = Path(sjc("report").strip())
    assert "a yellow duck" in page.read_text()
    sjc("gallery", "-o", "pages")
    assert (tmp_path / "pages" / "index.html").exists()
    assert list((tmp_path / "pages").rglob("*.js"))
