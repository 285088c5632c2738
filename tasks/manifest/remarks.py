"""Warnings about rows, such as of words beyond a prior's length, other tools' syntax, blanks.

A run is possible with all of them, so none is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sjc_engine.priors.tokens import words_from
from sjc_engine.spec import AssetSpec
from tasks.manifest.formats import shown

MOST = 10  # remarks of a kind and file that are shown in full
MOST_WORDS = 8  # of those that are cut
MOST_LINES = 5
_SHORTEN = "shorten it, or put what matters first"

# What many of a kind are called
CUT = "texts are longer than their prior reads"
SYNTAX = "texts have this syntax of other tools"
LITERAL = "cells hold what other programs write for blanks and errors"
DUPLICATES = "rows ask for an asset that another row asks for"
STRANGE = "prompts name no object that their prior knows"
UNKNOWN = "prompts have words that their prior does not know"
IMAGES = "images have this warning"

_WEIGHT = "weights are not supported, so write the words alone"
_CHOICE = "nothing is expanded here, so write a row for each"
_PART = "a prompt is not split here, so leave it out"
# Each pattern takes time in proportion to the text, whatever that is.
_FOREIGN = {
    r"<\w+:[^<>]*>|\bembedding:\w+": "no such network is loaded, so leave it out",
    r"\([^()]*:\s*[-+]?(?:\d+(?:\.\d+)?|\.\d+)\s*\)|\(\([^()]+\)\)|\[[^][]+\]": _WEIGHT,
    r"\)(?:\+\+|\d+\.\d+)|\w\+\+(?=[\s,.;)]|$)|\w::|\)\.(?:and|blend|swap)\(": _WEIGHT,
    r"\{[^{}|]*\|[^{}]*\}|__[a-zA-Z0-9][\w/-]*__": _CHOICE,
    r"\{[^{}]+\}": _WEIGHT,
    r"(?<!\S)--(?:ar|aspect|c|chaos|iw|niji|no|q|quality|s|seed|stop|style|stylize|tile|v|version"
    r"|weird)(?!\S)": "options are columns here, so leave it out",
    r"\b(?:BREAK|AND)\b": _PART,
}
_ANY_FOREIGN = re.compile("|".join(f"({pattern})" for pattern in _FOREIGN))
_HINT = re.compile(r"[(<[{:+]|__|--|BREAK|AND")  # without which a text has nothing of it
_FIXES = list(_FOREIGN.values())

_BLANKS = {
    "#n/a", "#n/a n/a", "#na", "-nan", "<na>", "n/a", "na", "nan", "nat", "nil", "none", "null",
    "undefined",
}  # fmt: skip
_ERRORS = re.compile(
    r"#(?:blocked|busy|calc|connect|div/0|field|name|null|num|python|ref|spill|unknown|value)[!?]"
    r"|#error!?|#getting_data|err:\d+",
    re.IGNORECASE,
)
_LONGEST_LITERAL = 20


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a prior reads an entry's texts. tokens: its limit, None if that is not known."""

    tokens: int | None
    prompt_end: int | None = None  # the index from which on it is cut
    negative_end: int | None = None


class Remarks:
    """What is to be known of many entries; of a kind that is frequent only the first in full."""

    def __init__(self) -> None:
        # By file, column, kind and fix: lines with their rows' ids, and what is said of them; "" of
        # those not shown
        self._found: dict[tuple[str, str, str, str], dict[tuple[int, str], str]] = {}

    def add_entry(
        self, manifest: str, line: int, row_id: str, spec: AssetSpec, reading: Reading
    ) -> None:
        """Adds what is to be known of an entry's texts. Seeds of one row have the same."""
        place = manifest, line
        texts = (
            ("prompt", spec.prompt, reading.prompt_end),
            ("negative_prompt", spec.negative_prompt, reading.negative_end),
        )
        for column, text, end in texts:
            if end is not None and end < len(text) and (words := words_from(text, end)):
                shared = ", the words for the view included," if column == "prompt" else ""
                start = f"the prior {spec.prior!r} reads {reading.tokens} tokens{shared}"
                self._add(*place, column, CUT, f"{start} and will leave out", words)
            for found, fix in _foreign(text):
                self._add(*place, column, SYNTAX, fix, [found])
            if fix := _literal(text):
                self._add(*place, column, LITERAL, fix, [text.strip()])
        given = row_id.removesuffix(f"-s{spec.seed}")  # a range's
        # An id that was made of the prompt is the same word.
        if (fix := _literal(given)) and given.lower() != spec.prompt.strip().lower():
            self._add(*place, "id", LITERAL, fix, [given])

    def _add(
        self, manifest: str, line: int, column: str, kind: str, about: str, words: Sequence[str]
    ) -> None:
        named = ", ".join(repr(shown(word)) for word in words[:MOST_WORDS])
        if len(words) > MOST_WORDS:
            named += f" and {len(words) - MOST_WORDS:,} more words"
        text = f"{about} {named}; {_SHORTEN}" if kind == CUT else f"{named} {about}"
        self.add(manifest, line, column, kind, text, about=about)

    def add(
        self, manifest: str, line: int, column: str, kind: str, text: str,
        *, row_id: str = "", about: str = "",
    ) -> None:  # fmt: skip
        """Adds what `text` says of a line, or of each of its entries if they have a `row_id` here.

        kind: what many of these are called. about: what tells groups of a kind apart.
        """
        lines = self._found.setdefault((manifest, column, kind, about), {})
        lines.setdefault((line, row_id), text if len(lines) < MOST else "")

    def texts(self) -> list[str]:
        found = []
        for (manifest, column, kind, _), lines in self._found.items():
            for (line, _), text in list(lines.items())[:MOST]:
                found.append(f"{manifest}:{line}: {column}: {text}")
            if others := list(lines)[MOST:]:
                numbers = dict.fromkeys(line for line, _ in others)
                first = ", ".join(map(str, list(numbers)[:MOST_LINES]))
                first += ", ..." if len(numbers) > MOST_LINES else ""
                found.append(f"{manifest}: {column}: {len(others):,} more {kind} (lines {first})")
        return found


def _foreign(text: str) -> Iterator[tuple[str, str]]:
    """What a text has of other tools' syntax, with what to do about it: one of each kind."""
    if not _HINT.search(text):
        return
    fixes = set()
    for found in _ANY_FOREIGN.finditer(text):
        if found[0] in ("BREAK", "AND") and text.isupper():
            continue
        assert found.lastindex
        fix = _FIXES[found.lastindex - 1]
        if fix not in fixes:
            fixes.add(fix)
            yield found[0], f"is read as it stands; {fix}"


def _literal(text: str) -> str:
    """What to do about a text that other programs write for a blank or an error; "" for others."""
    text = text.strip()
    if not text or len(text) > _LONGEST_LITERAL:
        return ""
    if text.lower() in _BLANKS:
        return "is read as a word; if it stands for nothing, leave the cell blank"
    if _ERRORS.fullmatch(text):
        return "is a spreadsheet's error, and read as a word; mend its formula"
    return ""
