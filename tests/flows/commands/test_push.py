"""`sjc push`: a dataset on the hub is what the folder holds, whole, or says that it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Said
from hub_server import TOKEN, Hub, hub_server
from huggingface_hub import constants
from task_samples import make_run

from tasks.datasets import push
from tasks.datasets.freeze import DatasetRequest, freeze
from tasks.store import open_store

Call = Callable[..., Said]
# huggingface_hub's own, of the way it calls httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ROWS = "".join(f"r{k},a toy {k},,\n" for k in range(4))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that `huggingface_hub` knows, and a token for it."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A frozen dataset whose files are large and small ones."""
    (tmp_path / "made").mkdir()
    store = open_store(tmp_path / "store")
    make_run(store, tmp_path / "made", "run1", ROWS, {"mesh.glb": bytes(range(256)) * 8})
    freeze(store, str(tmp_path / "ducks"), DatasetRequest())
    return tmp_path / "ducks"


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def on_hub(hub: Hub, name: str = "me/ducks") -> dict[str, bytes]:
    return {key: data for key, data in hub.repositories[name].items() if key != ".gitattributes"}


def test_a_pushed_dataset_is_the_folder(hub: Hub, dataset: Path, sjc: Call) -> None:
    said = sjc("push", "ducks", "me/ducks", "--private")
    assert (said.code, said.out) == (0, f"{hub.url}/datasets/me/ducks\n"), said.err
    assert on_hub(hub) == content(dataset)
    assert (hub.private["me/ducks"], hub.commits) == (True, 1)
    assert 0 < hub.uploads < len(content(dataset))
    assert hub.cards == [(dataset / "README.md").read_text()], "the hub has checked its YAML"
    again = sjc("push", "ducks", "me/ducks", "--json", "-q")
    assert (again.code, again.err, json.loads(again.out)["was_there"]) == (0, "", True)
    assert hub.commits == 1


def test_another_dataset_takes_the_place_of_the_first(
    hub: Hub, dataset: Path, sjc: Call, tmp_path: Path
) -> None:
    assert sjc("push", "ducks", "me/ducks", "-q").code == 0
    request = DatasetRequest(format="parquet")
    freeze(open_store(tmp_path / "store"), str(tmp_path / "table"), request)
    assert sjc("push", "table", "me/ducks", "-q").code == 0
    assert on_hub(hub) == content(tmp_path / "table")


def test_a_push_that_broke_off_goes_on(
    hub: Hub, dataset: Path, sjc: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing on the hub looks finished meanwhile, and nothing large is sent twice."""
    request = DatasetRequest(format="parquet")
    freeze(open_store(tmp_path / "store"), str(tmp_path / "table"), request)
    assert sjc("push", "table", "me/ducks", "-q").code == 0
    monkeypatch.setattr(push, "COMMIT_FILES", 10)
    hub.refused_commits = frozenset({3})
    said = sjc("push", "ducks", "me/ducks", "-q")
    assert (said.code, len(said.err.splitlines())) == (3, 1)
    assert "Busy." in said.err
    assert "run the same command again" in said.err
    assert "manifest.json" not in on_hub(hub)
    assert sjc("push", "ducks", "me/ducks", "-q").code == 0
    assert on_hub(hub) == content(dataset)
    assert hub.uploads == len(hub.large)


def test_a_strangers_repository_is_left_alone(hub: Hub, dataset: Path, sjc: Call) -> None:
    hub.repositories["me/ducks"] = {"train.csv": b"a,b"}
    said = sjc("push", "ducks", "me/ducks")
    assert (said.code, "holds other files; name another" in said.err) == (2, True)
    assert on_hub(hub) == {"train.csv": b"a,b"}


def test_mistakes_are_one_message(
    hub: Hub, dataset: Path, sjc: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for words, code, message in (
        ("made me/ducks", 2, "made is no finished dataset; `sjc curate -o made` makes one"),
        ("none me/ducks", 3, "There is no store at"),
        ("ducks ducks", 2, "'ducks' is no repository; write OWNER/NAME"),
        ("s3://x/y me/ducks", 2, "name a folder"),
    ):
        said = sjc("push", *words.split())
        assert (said.code, message in said.err, said.out) == (code, True, ""), said.err
        assert len(said.err.splitlines()) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = sjc("push", "ducks", "me/ducks")
    assert (said.code, "hf auth login" in said.err) == (3, True), said.err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = sjc("push", "ducks", "me/ducks")
    assert (said.code, "cannot be reached" in said.err) == (3, True), said.err
    [mesh, *_] = dataset.glob("data/*/*/mesh.glb")
    mesh.write_bytes(b"torn")
    said = sjc("push", "ducks", "me/ducks")
    assert (said.code, f"{mesh.relative_to(tmp_path)} is not what" in said.err) == (3, True)
    assert hub.repositories == {}
