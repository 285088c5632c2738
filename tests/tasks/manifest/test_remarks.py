"""Warnings about a row's texts: cut words, other tools' syntax, blanks and errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_priors import build_deepfloyd_prior, build_pixel_prior

from sjc_engine.priors.tokens import text_limit, words_from
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.manifest.remarks import MOST, Reading, Remarks
from tasks.manifest.resolve import Resolved, read_entries

Write = Callable[..., Path]
LONG = "a yellow duck on a quiet pond with many lilies, reeds and an old wooden mill"


def plan(path: Path, prior: str | None = None) -> Resolved:
    return read_entries(path, prior_revision=lambda prior: "r", prior=prior)[1]


def said(text: str, column: str = "prompt", row_id: str = "x") -> list[str]:
    """What is remarked of one text, without its place."""
    texts = {"prompt": "a duck", "negative_prompt": "", column: text}
    spec = AssetSpec(
        **texts, image=None, seed=0, prior="toybox", prior_revision="", recipe=Recipe()
    )
    remarks = Remarks()
    remarks.add_entry("m.csv", 2, row_id, spec, Reading(None))
    assert all(line.startswith("m.csv:2: ") for line in remarks.texts())
    return [line.removeprefix("m.csv:2: ") for line in remarks.texts()]


# --- words that are cut ------------------------------------------------------------------------


def test_each_prompt_beyond_the_limit_is_named_with_what_is_cut(write: Write) -> None:
    found = plan(write(f'id,prompt,negative_prompt\na,a duck,\nb,"{LONG}",\nc,a pig,"{LONG}"\n'))
    path = found.entries[0].manifest
    cut = [text for text in found.warnings if "reads 24 tokens" in text]
    limit = text_limit("toybox")
    assert limit is not None
    lost = words_from(
        LONG, limit.prompt_end(LONG, found.entries[1].spec.recipe.optimize.view_style)
    )
    assert lost[-1] == "mill"
    assert lost != words_from(LONG, limit.read_end(LONG))
    named = ", ".join(map(repr, lost[:8]))
    more = f" and {len(lost) - 8} more words" if len(lost) > 8 else ""
    assert cut[0] == (
        f"{path}:3: prompt: the prior 'toybox' reads 24 tokens, the words for the view included,"
        f" and will leave out {named}{more}; shorten it, or put what matters first"
    )
    assert cut[1].startswith(
        f"{path}:4: negative_prompt: the prior 'toybox' reads 24 tokens and will leave out '"
    )
    assert len(cut) == 2


@pytest.mark.parametrize(
    ("build", "tokens"), [(build_pixel_prior, 24), (build_deepfloyd_prior, 77)]
)
def test_folders_have_limits_of_their_own(
    write: Write, tmp_path: Path, build: Callable[[Path], Path], tokens: int
) -> None:
    prior = build(tmp_path / "prior")
    long = " ".join(["a duck"] * 50)
    [warning] = plan(write(f"prompt\na duck\n{long}\n"), prior=str(prior)).warnings
    assert f":3: prompt: the prior {str(prior)!r} reads {tokens} tokens" in warning


def test_coverage_does_not_count_what_is_cut(write: Write) -> None:
    filler = " ".join(["a red blue green yellow orange purple pink white black gray brown"] * 3)
    found = plan(write(f"prompt\n{filler} duck\na duck {filler}\na duck\n"))
    first, second, third = (entry.prior_coverage for entry in found.entries)
    assert first == 0, "the only object is not read"
    assert second is not None
    assert 0.3 < second < 0.7, "all words are known, and half of them are read"
    assert third == 1
    assert not any("no such object" in text for text in found.warnings)
    assert len(found.warnings) == 2


def test_many_are_summarised(write: Write) -> None:
    rows = "".join(f"{k},(red:1.4) {LONG.replace(',', '')},NaN\n" for k in range(40))
    found = plan(write(f"id,prompt,negative_prompt\n{rows}"))
    path = found.entries[0].manifest
    for what, column in (
        ("texts are longer than their prior reads", "prompt"),
        ("texts have this syntax of other tools", "prompt"),
        ("cells hold what other programs write for blanks and errors", "negative_prompt"),
    ):
        lines = "12, 13, 14, 15, 16, ..."
        assert f"{path}: {column}: {40 - MOST} more {what} (lines {lines})" in found.warnings
    shown = [text for text in found.warnings if "reads 24 tokens" in text]
    assert [text.split(":")[1] for text in shown] == [str(line) for line in range(2, MOST + 2)]


def test_the_seeds_of_a_row_have_one_warning(write: Write) -> None:
    found = plan(write("id,prompt,seed\nnan,a (red:1.3) duck,0-30\n"))
    assert len([text for text in found.warnings if "does not know" not in text]) == 2


# --- the syntax of other tools -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a (red:1.4) duck", "(red:1.4)"),
        ("a (shiny red: .5) duck", "(shiny red: .5)"),
        ("a duck (ugly:-1)", "(ugly:-1)"),
        ("a ((red)) duck", "((red))"),
        ("a (((red))) duck", "((red))"),
        ("a [red] duck", "[red]"),
        ("a [red:blue:0.5] duck", "[red:blue:0.5]"),
        ("a {{red}} duck", "{red}"),
        ("a (red duck)1.4 on a pond", ")1.4"),
        ("a red++ duck", "d++"),
        ("red duck::2 pond::1", "k::"),
        ('("a duck", "a pig").blend(1, 1)', ").blend("),
        ("a duck <lora:toys_v2:0.8>", "<lora:toys_v2:0.8>"),
        ("a duck <hypernet:x>", "<hypernet:x>"),
        ("a duck embedding:easynegative", "embedding:easynegative"),
        ("a {red|blue} duck", "{red|blue}"),
        ("a __color__ duck", "__color__"),
        ("a duck BREAK a pond", "BREAK"),
        ("a duck AND a pond", "AND"),
        ("a duck --ar 16:9", "--ar"),
    ],
)
def test_the_syntax_of_other_tools_is_named(text: str, named: str) -> None:
    for column in ("prompt", "negative_prompt"):
        [warning] = said(text, column)
        assert warning.startswith(f"{column}: {named!r} is read as it stands; ")
        assert warning.endswith(
            ("so write the words alone", "so leave it out", "so write a row for each")
        )


@pytest.mark.parametrize(
    "text",
    [
        "a duck (yellow)", "a 3:2 picture of a duck", "a duck at 10:30", "salt & pepper, 50/50",
        "a duck -- a toy", "A DUCK AND A POND", "a break in the clouds and rain", "i <3 ducks",
        "a duck_toy", "half-open door", "a C sharp key", "a duck: yellow, small", "x < y > z", "",
        "dust jacket: 'a (very) odd duck'", "a 1:1.4 model", "e-mail to a@b.c", "=1+2",
        "a duck, scale 1:18", "[", "((", "a ) ( duck",
    ],
)  # fmt: skip
def test_ordinary_text_is_not(text: str) -> None:
    assert said(text or " ") == []


def test_each_kind_in_a_text_is_named_once() -> None:
    found = said("(a:1.1) (b:1.2) <lora:x:1> <lora:y:1> BREAK {a|b}")
    assert [text.split("'")[1] for text in found] == ["(a:1.1)", "<lora:x:1>", "BREAK", "{a|b}"]


PARTS = ("(", "(a:", "((", "[", "{", "{|", "{a|", "<a:", "__a", "_", "1", "(:1", "(:1.", ")", "-",
         "AND", "embedding:", "#", "a ")  # fmt: skip


@pytest.mark.parametrize("piece", PARTS)
def test_no_text_takes_long(piece: str) -> None:
    began = time.process_time()
    said((piece * 100_000)[:100_000])
    assert time.process_time() - began < 2


# --- blanks and errors of other programs -------------------------------------------------------

BLANKS = ["nan", "NaN", "None", "null", "NULL", "N/A", "#N/A", "n/a", "<NA>", "NaT", " nan "]
ERRORS = ["#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "Err:502"]


@pytest.mark.parametrize("column", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", BLANKS + ERRORS)
def test_what_stands_for_nothing_is_named(text: str, column: str) -> None:
    [warning] = said(text, column)
    assert warning.startswith(f"{column}: {text.strip()!r} is ")
    cure = "mend its formula" if text in ERRORS else "leave the cell blank"
    assert warning.endswith(cure)


@pytest.mark.parametrize(
    "text", ["a nan bread", "none of these", "nana", "a null sign", "naan", "# 1", "ref"]
)
def test_words_that_only_contain_them_are_not(text: str) -> None:
    assert said(text) == []


def test_ids_too_but_not_those_that_a_prompt_made(write: Write) -> None:
    found = plan(write("id,prompt\nnan,a duck\nok,a pig\n,none\n"))
    named = [text.split(":", 1)[1] for text in found.warnings if "is read as a word" in text]
    assert [text.partition(" is ")[0] for text in named] == ["2: id: 'nan'", "4: prompt: 'none'"]
