"""A run's report in a browser: as a file, with hostile text in it, on a phone and in the dark."""

from pathlib import Path

import pytest
from browser import browser
from PIL import Image
from task_samples import record_attempt, report, spec

from flows.settings import recorded_command
from tasks.manifest.resolve import read_manifest, resolve
from tasks.pages.report.contents import write_report
from tasks.records.attempts import finish_attempt, start_attempt
from tasks.records.commit import commit_asset
from tasks.records.runs import start_run
from tasks.store import open_store
from tasks.tables.write import record_run

HOSTILE = "</title></script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'> 🦆"
CONTRAST = """(() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => parts(color).slice(0, 3)
        .map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
    const back = (element) => {
        while (element && (parts(getComputedStyle(element).backgroundColor)[3] ?? 1) === 0)
            element = element.parentElement;
        return element ? getComputedStyle(element).backgroundColor : "rgb(255,255,255)";
    };
    const ratios = [...document.querySelectorAll("h1, h2 small, dt, dd, .note, td, .tile b, .none")]
        .map((element) => {
            const [a, b] = [light(getComputedStyle(element).color), light(back(element))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        });
    return Math.min(...ratios);
})()"""


@pytest.mark.system
def test_it_opens_as_a_file_and_runs_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    rows = [f'toy-{k},"{HOSTILE} {k}"\n' for k in range(14)]
    (tmp_path / "m.csv").write_text("id,prompt\n" + "".join(rows))
    manifest = read_manifest(tmp_path / "m.csv")
    plan = resolve(manifest.rows, prior_revision=lambda _: "r", recipe="draft")
    run = start_run(store, "run1", f"{HOSTILE}.csv", manifest.sha256, plan.entries, {})
    record_run(store, run)
    Image.new("RGB", (256, 256), (200, 60, 40)).save(tmp_path / "picture.png")
    for k in range(14):
        asset = spec(f"{HOSTILE} {k}")
        attempt = start_attempt(store, asset, "run1")["attempt"]
        files = dict.fromkeys(
            ("views/mesh_1.png", "preview.png", "mesh.glb"), tmp_path / "picture.png"
        )
        ok = k % 7 > 0
        committed = {}
        if ok:
            numbers = report(clip_score=2.0 * k)
            committed = commit_asset(store, asset.asset_id, attempt, files, asset, numbers, {}, {})
        error = None if ok else ValueError(HOSTILE)
        ended = finish_attempt(
            store, asset.asset_id, attempt, "ok" if ok else "failed", error=error
        )
        record_attempt(store, ended, committed)
    place = write_report(store, "run1", recorded_command)
    with browser() as page:
        for width in (360, 1280):
            page.size(width, 900)
            page.open(f"file://{place}")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run("document.querySelectorAll('.wall:not(.large) .tile').length") == 14
            assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
            assert page.run("performance.getEntriesByType('resource').length") == 0
            assert page.run("window.pwned") is None
            assert page.run("document.querySelectorAll('script').length") == 0
            assert page.run("document.querySelector('h1').textContent").startswith("script>")
            link = page.run("document.querySelector('.tile[href]').href")
            assert Path(link.removeprefix("file://")).is_file()
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            page.media(media)
            assert page.run(CONTRAST) >= 4.5, scheme
        assert page.complaints == []
