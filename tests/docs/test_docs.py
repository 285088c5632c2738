"""README.md and docs/*.md do what they say: their commands run, their links lead somewhere.

What stands in a fenced block says by its language what becomes of it:

sh        runs, block by block in the page's order, in a folder with `manifests/` and the
          `store` of a finished run of `manifests/quick.csv`; `make TARGET` is looked up in the
          Makefile (make -n) and not made
python    runs there as a program of its own, which like `sjc` has imported what it needs
sql       runs as `sjc query` does
others    of SHOWN are there to be read: ```console for what takes a GPU, a network or patience
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from warm_start import warm_programs

from tasks.store import open_store
from tasks.tables.read import query
from tasks.tables.write import rebuild_tables

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
RUN = ("sh", "python", "sql")
SHOWN = ("console", "csv", "text", "json", "yaml", "toml", "ini", "dockerfile", "html")
# What makes the example's store; pages that run it again find everything done.
QUICK = "sjc run manifests/quick.csv --devices cpu --quiet"
# What `sjc` and the pages' programs import; test_wheel.py starts them cold.
IMPORTED = (
    "flows.commands.main", "flows.generate", "flows.evaluate", "tasks.stages.evaluate",
    "tasks.tables.read", "sjc_engine.rendering.kernels",
    "diffusers.models.unets.unet_2d_condition", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "polars", "webdataset",
)  # fmt: skip
MAKE = f'make() {{ command make --silent -n -C "{ROOT}" "$@" > /dev/null; }}\n'
# All that GitHub renders: links lead somewhere on these too
MARKDOWN = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("sjc_engine/**/*.md")})
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```\s*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
PAGE_NAME = re.compile(r"`([\w./-]+\.md)`")  # named in words, as in a message or a list of changes
COMMAND = re.compile(r"^( {4}|\t)(\$ )?(sjc|make|python|pip|git|prefect) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and line in the page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(found[2], found[3], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))


@pytest.fixture(scope="session")
def surroundings(
    prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A user's environment: `sjc` and `python` of this installation, no network."""
    chosen = {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    variables = {**os.environ, **chosen, "PYTHONPATH": str(ROOT)}
    with warm_programs(tmp_path_factory.mktemp("programs"), variables, IMPORTED) as programs:
        places = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        yield {**variables, "PATH": os.pathsep.join(places)}


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory, surroundings: dict[str, str]) -> Path:
    """A folder with `manifests/` and the store of one run."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    shell(QUICK, folder, surroundings, "the example")
    return folder


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    """The example for one page alone. A store that has moved makes its tables again."""
    copy = tmp_path / "example"
    shutil.copytree(example, copy, ignore=shutil.ignore_patterns(".sjc"))
    rebuild_tables(open_store(copy / "store"))
    return copy


def shell(text: str, folder: Path, surroundings: dict[str, str], place: str) -> str:
    """Runs a block as bash does, up to its first error; returns what it printed."""
    command = ["bash", "-euo", "pipefail", "-c", MAKE + text]
    return process(command, "", folder, surroundings, place)


def process(
    command: list[str], text: str, folder: Path, surroundings: dict[str, str], place: str
) -> str:
    ran = subprocess.run(
        command, input=text, cwd=folder, env=surroundings, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, f"{place}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name)
        for page, name in zip(PAGES, IDS, strict=True)
        if any(block.language in RUN for block in blocks(page))
    ],
)
def test_its_commands_run(page: Path, folder: Path, surroundings: dict[str, str]) -> None:
    for block in blocks(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        match block.language:
            case "sh":
                shell(block.text, folder, surroundings, place)
            case "python":
                process(["python", "-"], block.text, folder, surroundings, place)
            case "sql":
                query(open_store(folder / "store", writable=False), block.text.rstrip().rstrip(";"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sjc assets --store nowhere | cat", 3),
        ("python - <<< 'print(unknown)'", 1),
        ("python - <<< 'import os; os.abort()'", 134),
    ],
)
def test_a_command_that_fails_is_noticed(
    text: str, code: int, tmp_path: Path, surroundings: dict[str, str]
) -> None:
    with pytest.raises(AssertionError, match=f"exit code {code}\n"):
        shell(text, tmp_path, surroundings, "here")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_block_says_what_it_is(page: Path) -> None:
    """So that no command is left out of the test above by accident."""
    text = page.read_text("utf-8")
    assert text.count("```") == 2 * len(blocks(page)), "a fence is not closed, or not alone"
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        assert block.language in RUN + SHOWN, f"{place}: write one of {RUN + SHOWN}"
    found = COMMAND.search(FENCE.sub("", text))
    assert not found, f"{page.name}: an indented command; fence it: {found and found[0]}"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", MARKDOWN, ids=[str(p.relative_to(ROOT)) for p in MARKDOWN])
def test_its_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    assert text.count("](") == len(LINK.findall(text)), f"{page.name}: a link is not one: a blank?"
    for name in PAGE_NAME.findall(FENCE.sub("", page.read_text("utf-8"))):
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name}: {name}"
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        assert place.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(place), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_tests_that_it_names_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text("utf-8")):
        assert f"\ndef {name}(" in (ROOT / path).read_text("utf-8"), f"{page.name}: {path}::{name}"


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall(prose(ROOT / "docs" / "README.md")))
    missing = {page.name for page in ROOT.glob("docs/*.md")} - linked - {"README.md"}
    assert not missing, f"docs/README.md: link to {missing}"
