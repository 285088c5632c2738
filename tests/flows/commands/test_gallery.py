"""The gallery: its files, what hostile text may do in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import shlex
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from browser import Page, browser
from PIL import Image
from synthetic_fields import TOTEM, centers, make_field, soft_density
from task_samples import make, rating, record_attempt, report
from typer.testing import CliRunner

from flows.commands.main import app
from sjc_engine.evaluation.turntable import write_video
from sjc_engine.mesh.extract import extract_mesh
from sjc_engine.mesh.gltf import TO_GLTF, Mesh
from sjc_engine.recipes import MeshRecipe, Recipe
from sjc_engine.rendering.camera import orbit
from sjc_engine.rendering.rasterize import rasterize
from sjc_engine.spec import AssetSpec
from tasks.pages.gallery import build
from tasks.pages.gallery.build import VIEWER, build_gallery, command, index_page
from tasks.records.annotations import read_annotations, save_annotations
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.read import QueryError, query
from tasks.tables.schemas import COLUMNS, RATINGS

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'>\u2028 \"&\" 🦆"
)
SHOWN_FILES = {
    "index.html", "mesh.glb", "mesh.js", "preview.png", "thumbnail.webp", "turntable.mp4",
}  # fmt: skip


def asset(prompt: str, seed: int = 0, **changes: Any) -> AssetSpec:
    recipe = Recipe.for_prior("toybox", "draft").override(changes)
    return AssetSpec(prompt, "", None, seed, "toybox", "r", recipe)


def commit(store: Store, folder: Path, spec: AssetSpec, video: bool = True, **metrics: Any) -> None:
    """An asset with files that a browser can show."""
    attempt = start_attempt(store, spec, "run1", prior_coverage=1.0)["attempt"]
    solid = trimesh.creation.icosphere(subdivisions=2, radius=0.4)
    vertices = np.asarray(solid.vertices, np.float32)
    files = {}
    for name in ("mesh.glb", "preview.png", "thumbnail.webp", "turntable.mp4", "views/mesh_1.png"):
        files[name] = folder / name.replace("/", "-")
    placed, faces = vertices @ TO_GLTF, np.asarray(solid.faces)
    Mesh(placed, faces, placed / np.float32(0.4), abs(vertices)).export(files["mesh.glb"])
    for name in ("preview.png", "thumbnail.webp", "views/mesh_1.png"):
        Image.new("RGB", (128, 128), (200, 60, 40)).save(files[name])
    if video:
        write_video(np.zeros((4, 32, 32, 3), np.uint8), files["turntable.mp4"])
    else:
        del files["turntable.mp4"]
    timings = {"queue": 0.0, "optimize": 40.0, "extract": 2.0, "evaluate": 1.0}
    versions = {"code": "1.0", "engine": "1.0/1"}
    manifest = commit_asset(
        store, spec.asset_id, attempt, files, spec, report(**metrics), timings, versions
    )
    ended = finish_attempt(
        store, spec.asset_id, attempt, "ok", device="cpu", first_step=0, last_step=3
    )
    record_attempt(store, ended, manifest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three assets: a duck, one with a hostile prompt, and a failure."""
    opened = open_store(tmp_path / "store")
    commit(opened, tmp_path, asset("a duck", steps=77), faces=1000, clip_score=10.0)
    commit(opened, tmp_path, asset(HOSTILE), faces=3000, clip_score=30.0)
    make(opened, tmp_path, asset("a mug"), "run1", "failed")
    return opened


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_asset_has_its_page_and_its_files(store: Store, tmp_path: Path) -> None:
    made = build_gallery(store, tmp_path / "pages")
    assert (made.assets, made.copied) == (3, 8)
    data = data_of(made.index.read_text())
    names = [column["name"] for column in data["columns"]]
    prompts = [row[names.index("prompt")] for row in data["rows"]]
    assert sorted(prompts) == sorted(["a duck", "a mug", HOSTILE])
    for row in data["rows"]:
        folder = tmp_path / "pages" / "assets" / row[names.index("asset_id")]
        page = (folder / "index.html").read_text()
        made_files = {path.name for path in folder.iterdir()}
        if row[names.index("status")] == "ok":
            assert made_files == SHOWN_FILES
            assert "<model-viewer" in page
            assert page.count("<polyline") == 5
            assert "views/mesh_1.png" in page  # listed with its checksum, though not copied
        else:
            assert made_files == {"index.html"}
            assert "loss is NaN" in page
            assert "<model-viewer" not in page
            assert "<polyline" not in page


def test_a_second_time_copies_only_what_is_new(store: Store, tmp_path: Path) -> None:
    build_gallery(store, tmp_path / "pages")
    torn = next((tmp_path / "pages").glob("assets/*/mesh.glb"))
    torn.write_bytes(torn.read_bytes()[:100])
    commit(store, tmp_path, asset("a pig"))
    again = build_gallery(store, tmp_path / "pages")
    assert (again.assets, again.copied) == (4, 5)
    assert torn.stat().st_size > 100


def test_an_asset_without_a_video_shows_its_thumbnail(store: Store, tmp_path: Path) -> None:
    spec = asset("a pig")
    commit(store, tmp_path, spec, video=False)
    build_gallery(store, tmp_path / "pages")
    shown = {
        path.parent.name: path.read_text() for path in (tmp_path / "pages/assets").rglob("*.html")
    }
    thumbnail = 'src="thumbnail.webp"'
    assert (thumbnail in shown[spec.asset_id], "<video" in shown[spec.asset_id]) == (True, False)
    other = shown[asset("a duck", steps=77).asset_id]
    assert (thumbnail in other, "<video" in other) == (False, True)


def test_where_chooses_and_wrong_sql_is_told(store: Store, tmp_path: Path) -> None:
    made = build_gallery(store, tmp_path / "pages", "faces > 2000")
    assert made.assets == 1
    with pytest.raises(QueryError):
        build_gallery(store, tmp_path / "pages", "facez > 2000")


def test_text_of_manifests_stays_text(store: Store, tmp_path: Path) -> None:
    build_gallery(store, tmp_path / "pages")
    for path in (tmp_path / "pages").rglob("*.html"):
        page = path.read_text()
        assert "<img src=x" not in page
        assert "window.pwned=1</script>" not in page
        assert "Content-Security-Policy" in page
        assert re.search(r"script-src [^;\"]*'unsafe-inline'", page) is None


def test_the_command_makes_the_same_asset(store: Store) -> None:
    rows = query(store, "SELECT * FROM best_assets WHERE prompt = 'a duck'").to_pylist()
    words = shlex.split(command(rows[0]))
    assert words[:3] == ["sjc", "generate", "a duck"]
    changes = dict(word.split("=") for flag, word in pairwise(words) if flag == "--set")
    recipe = Recipe.for_prior("toybox", words[words.index("--recipe") + 1]).override(changes)
    assert recipe == asset("a duck", steps=77).recipe


def test_a_recipe_of_another_version_has_a_command_too(store: Store) -> None:
    [row] = query(store, "SELECT * FROM best_assets WHERE prompt = 'a duck'").to_pylist()
    spec = json.loads(row["spec_json"])
    spec["recipe"]["name"] = "no-longer-there"
    spec["recipe"]["optimize"]["no_longer_a_key"] = 3
    assert "no_longer_a_key=3" in command({**row, "spec_json": json.dumps(spec)})


def test_the_command_line_says_where_the_index_is(store: Store, tmp_path: Path) -> None:
    arguments = ["gallery", "--store", str(tmp_path / "store"), "-o", str(tmp_path / "pages")]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/pages/index.html\n"), done.stderr
    assert "3 of 3 assets" in done.stderr
    wrong = CliRunner().invoke(app, [*arguments, "--where", "facez > 1"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "--where" in wrong.stderr
    (tmp_path / "file").touch()
    wrong = CliRunner().invoke(app, ["gallery", "-o", str(tmp_path / "file")])
    assert (wrong.exit_code, "is a file; name a folder" in wrong.stderr) == (2, True)


# --- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """The tab, which is empty after each test: a mesh that turns takes the most of a core."""
    yield tab
    tab.open("about:blank")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "pages")
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SHOWN = "[...document.querySelectorAll('.card .prompt')].map((node) => node.textContent)"
SET = """(() => {{
    const node = document.getElementById('{}');
    node.value = {};
    node.dispatchEvent(new Event('input', {{bubbles: true}}));
}})()"""


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_the_wall_searches_sorts_and_filters(
    store: Store, tmp_path: Path, page: Page, served: str, scheme: str
) -> None:
    build_gallery(store, tmp_path / "pages")
    root = f"file://{tmp_path}/pages" if scheme == "file" else served
    page.complaints.clear()
    page.open(f"{root}/index.html")
    assert sorted(page.run(SHOWN)) == sorted(["a duck", "a mug", HOSTILE])
    page.run(SET.format("search", "'DUCK'"))
    assert page.run(SHOWN) == ["a duck"]
    page.run(SET.format("search", "''"))
    page.run(SET.format("sort", "'clip_score'"))
    assert page.run(SHOWN) == [HOSTILE, "a duck", "a mug"]  # what is not known comes last
    page.run("document.getElementById('down').click()")
    assert page.run(SHOWN) == ["a duck", HOSTILE, "a mug"]
    page.run("addFilter('faces', '≥', '2000'); update();")
    assert page.run(SHOWN) == [HOSTILE]
    page.run("addFilter('coverage', '≠', 'good'); update();")
    assert page.run(SHOWN) == []
    page.run("filters.lastChild.children[1].value = '='; update();")
    assert page.run(SHOWN) == [HOSTILE]
    # Another metric brings its own tests and values.
    page.run("""(() => {
        const metric = filters.lastChild.children[0];
        metric.value = 'faces';
        metric.dispatchEvent(new Event('input', {bubbles: true}));
    })()""")
    assert page.run("filters.lastChild.children[2].type") == "number"
    assert page.run(SHOWN) == [HOSTILE]
    page.run("filters.lastChild.remove(); addFilter('coverage', '=', 'good'); update();")
    # The address keeps it all.
    kept = page.run("location.href")
    page.open("about:blank")
    page.open(kept)
    assert page.run(SHOWN) == [HOSTILE]
    page.wait("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert page.run("window.pwned") is None
    assert page.complaints == []


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_the_viewer_shows_the_mesh(
    store: Store, tmp_path: Path, page: Page, served: str, scheme: str
) -> None:
    build_gallery(store, tmp_path / "pages", "status = 'ok'")
    root = f"file://{tmp_path}/pages" if scheme == "file" else served
    for folder in sorted((tmp_path / "pages" / "assets").iterdir()):
        page.complaints.clear()
        page.open(f"{root}/assets/{folder.name}/index.html")
        page.wait("document.querySelector('model-viewer').loaded", 120)
        title = page.run("document.querySelector('.prompt-title').textContent")
        assert title in ("a duck", HOSTILE)
        size = page.run("document.querySelector('model-viewer').getDimensions().x")
        assert size == pytest.approx(0.8, abs=0.02)
        assert page.run("window.pwned") is None
        assert page.complaints == []


def test_ten_thousand_rows_are_a_page_of_a_few_megabytes() -> None:
    assert len(index_page([wall_row(k, status="ok") for k in range(10_000)], "s")) < 8e6


def wall_row(number: int, **values: Any) -> dict[str, Any]:
    """What the wall shows of an asset that nobody has rated."""
    row: dict[str, Any] = dict.fromkeys(column.name for column in (*COLUMNS["assets"], *RATINGS))
    row |= {"asset_id": f"{number:016x}", "prompt": "a duck", "entries": "duck", "said": None}
    return row | {"rating_count": 0, "labels": [], "clip_score": 31.23456789} | values


CARD = "document.querySelector('.card.chosen')"
SAY = "[...document.querySelectorAll('.card .judged')].map((node) => node.textContent)"


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_person_rates_by_keys_and_the_tables_get_it(
    store: Store, tmp_path: Path, page: Page, served: str, scheme: str
) -> None:
    duck, other = asset("a duck", steps=77), asset(HOSTILE)
    save_annotations(store, [rating(duck, "1", "ben"), rating(other, "4", HOSTILE)])
    build_gallery(store, tmp_path / "pages")
    root = f"file://{tmp_path}/pages" if scheme == "file" else served
    page.complaints.clear()
    page.open(f"{root}/index.html#sort=prompt")
    assert page.run(SAY)[page.run(SHOWN).index("a duck")] == "★ 1 (1)"
    for _ in range(page.run(SHOWN).index("a duck") + 1):
        page.key("ArrowRight")
    page.key("4")  # whose name is asked first
    page.type('Zoë, "Z"')
    page.key("Enter")
    page.key("l")
    page.type(" round; toy;round ")
    page.key("Enter")
    assert page.run(f"{CARD}.querySelector('.judged').textContent") == (
        "★ 2.5 (2), spread 3 · round, toy"
    )
    page.key("?")
    assert "withdraw the rating" in page.run("document.querySelector('dialog[open]').innerText")
    page.key("Escape")
    page.key("ArrowRight")
    page.key("5")
    page.key("0")
    for chosen, prompts in (
        ("unrated", ["a mug"]), ("in dispute", ["a duck"]), ("not rated by me", ["a mug", HOSTILE]),
    ):  # fmt: skip
        page.run(SET.format("rated", f"'{chosen}'"))
        assert sorted(page.run(SHOWN)) == sorted(prompts)
    page.run(SET.format("rated", "'any rating'"))
    page.run("addFilter('labels', 'has', 'toy'); update();")
    page.run("addFilter('rating', '≥', '2.5'); update();")
    page.reload()
    assert page.run(SHOWN) == ["a duck"]
    page.key("ArrowRight")
    page.key("Enter")  # opens the asset's page, which knows the rating
    page.wait("location.href.includes('/assets/') && document.readyState === 'complete'")
    assert page.run("document.querySelectorAll('#bar button')[3].textContent") == "★"
    page.key("3")
    page.download(tmp_path, "e")
    assert page.run("window.pwned") is None
    assert page.complaints == []
    save_annotations(store, read_annotations(store, tmp_path / "ratings.csv", "nobody"))
    rows = query(store, "SELECT who, key, value FROM annotations ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in rows if row["who"] == 'Zoë, "Z"'] == [
        ('Zoë, "Z"', "label", "round;toy"), ('Zoë, "Z"', "rating", "3"),
        ('Zoë, "Z"', "rating", None),
    ]  # fmt: skip
    build_gallery(store, tmp_path / "pages")
    page.open(f"{root}/index.html")
    assert page.run("document.querySelector('#bar').innerText").endswith("export 0\n?")


@pytest.mark.system
def test_a_hundred_of_ten_thousand_are_rated_by_keys(tmp_path: Path, page: Page) -> None:
    rows = [wall_row(k, status="failed") for k in range(10_000)]
    (tmp_path / "index.html").write_text(index_page(rows, "of ten thousand"))
    page.open(f"file://{tmp_path}/index.html#sort=asset_id")
    page.run("judgements.who = 'anna'")
    for k in range(100):
        page.key("j")
        page.key(f"{k % 5 + 1}")
    lines = page.run("judgements.csv()").splitlines()[1:]
    assert [line.split(",")[:4] for line in lines] == [
        [f"{k:016x}", "rating", f"{k % 5 + 1}", "anna"] for k in range(100)
    ]
    page.wait(f"{CARD} && {CARD}.getBoundingClientRect().bottom < window.innerHeight")
    page.run(SET.format("rated", "'rated'"))
    page.reload()
    assert page.run("shown.length") == 100


VIEWER_PAGE = """<!doctype html>
<style>body {{ margin: 0 }} model-viewer {{ width: 512px; height: 512px; background: #fff;
--progress-bar-height: 0px }}</style><script src="viewer.js"></script>
<model-viewer interaction-prompt="none" shadow-intensity="0" camera-target="0m 0m 0m"
min-camera-orbit="auto auto 0m" max-camera-orbit="auto auto 9m" min-field-of-view="10deg"
max-field-of-view="90deg" src="data:model/gltf-binary;base64,{glb}"></model-viewer>"""
AIM = """new Promise((done) => {{
    const viewer = document.querySelector('model-viewer');
    viewer.cameraOrbit = '{}deg {}deg 1.5m';
    viewer.fieldOfView = '60deg';
    viewer.jumpCameraToGoal();
    setTimeout(done, 1000);
}})"""


@pytest.mark.system
def test_a_browser_draws_a_file_as_the_rasteriser_does(tmp_path: Path, page: Page) -> None:
    """Geometry, texture, colours, axes: all of it is right, or the pictures differ."""
    points = centers(40)
    colors = 0.8 * np.sin(np.array([7.0, 5.0, 6.0]) * points)
    field = make_field(soft_density(TOTEM(points), density=60.0), colors)
    mesh = extract_mesh(field, MeshRecipe(mesh_resolution=64, texture_size=512, iso_level=20.0))
    mesh.export(tmp_path / "mesh.glb")
    glb = base64.b64encode((tmp_path / "mesh.glb").read_bytes()).decode()
    (tmp_path / "viewer.js").write_bytes(
        Path(build.__file__).with_name("vendor").joinpath(VIEWER).read_bytes()
    )
    (tmp_path / "index.html").write_text(VIEWER_PAGE.format(glb=glb))
    page.size(512, 512)
    page.open(f"file://{tmp_path}/index.html")
    page.wait("document.querySelector('model-viewer').loaded", 120)
    for azimuth, elevation in ((0, 15), (60, 30), (200, 0)):
        page.run(AIM.format(azimuth, 90 - elevation))
        page.screenshot(tmp_path / "seen.png")
        seen = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"), float)
        drawn = rasterize(mesh, orbit(azimuth, elevation, 1.5, 60.0), 512, 512)
        ours = ((drawn.rgb + 1 - drawn.opacity).clamp(-1, 1) + 1) * 127.5
        error = np.mean((seen - ours.permute(1, 2, 0).numpy()) ** 2)
        assert 10 * np.log10(255**2 / error) >= 38
