"""A model checker for programs that share a store: all their interleavings, with crashes.

A program is a function of a store. It runs on a `ModelStore`, and what it does next depends only on
what its calls to the store have returned so far, its *history*. So each history is run once, from
the beginning, up to the next call; after that the program is a node of a graph, and the search is
over states (content of the store, node of each program), which are visited once.

A call of a function in `summarise` is forgotten once it has returned: its result takes the place of
its calls in the history, so that histories that differ in nothing that matters later are one.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from tasks.store.interface import (
    AlreadyCommitted,
    Listed,
    NotInStore,
    StoredFile,
    StoreError,
    bytes_digest,
    check_key,
)

Call = tuple[str, str, Any]  # what, the key, and the content or the other key
Content = dict[str, bytes]
Program = Callable[["ModelStore"], object]
DEAD, ENDED = -1, ("ended", "", None)
T = TypeVar("T")

digest = functools.cache(bytes_digest)
_content = functools.cache(Path.read_bytes)


class Violation(AssertionError):
    """A promise that is broken, with the steps that lead there."""


class _Paused(BaseException):
    """A program has come to a call that has no result yet. Ends it as a kill does."""


@dataclass(frozen=True)
class Step:
    """What a program learned: what a call returned, or a summarised function; and its identity."""

    function: str
    value: Any
    counter: int
    text: str


@dataclass
class Execution:
    """A program on the way through its history."""

    name: str
    history: list[Step]
    position: int = 0
    counter: int = 0  # of the names that it has made up
    call: Call = ENDED
    passed: frozenset[str] = frozenset()

    def passes(self, resource: str) -> None:
        """From here on the program touches nothing of this resource but what has its own name."""
        self.passed |= {resource}

    def new_name(self) -> str:
        """One that no other program has, and the same in each execution."""
        self.counter += 1
        return f"{self.name}-{self.counter}"

    def ask(self, call: Call) -> Any:
        if self.call is not ENDED or self.position == len(self.history):
            if self.call is ENDED:
                self.call = call
            raise _Paused
        self.position += 1
        return self.history[self.position - 1].value


PURE = {"query"}  # slow, and their results depend on nothing but their arguments and the store
_memory: dict[Any, dict[tuple[str, ...], Any]] = {}
_execution: Execution | None = None


def execution() -> Execution:
    assert _execution is not None
    return _execution


class ModelStore:
    """The store of a program. conditional: whether a put can be made to depend on a free key."""

    url = "/store"

    def __init__(self, conditional: bool = True) -> None:
        self._conditional = conditional

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def put_file(self, key: str, path: Path, *, replace: bool = False) -> StoredFile:
        return self.put_bytes(key, _content(path), replace=replace)

    def put_bytes(self, key: str, data: bytes, *, replace: bool = False) -> StoredFile:
        check_key(key)
        if not replace:
            found = _ask("put" if self._conditional else "get", key, data)
            if found not in (None, data):
                raise AlreadyCommitted(f"{key} is already committed with other content")
        if replace or (found is None and not self._conditional):
            _ask("replace", key, data)
        return digest(data)

    def get_bytes(self, key: str) -> bytes:
        data: bytes | None = _ask("get", key)
        if data is None:
            raise NotInStore(f"{key} does not exist")
        return data

    def download(self, key: str, path: Path, sha256: str | None = None) -> StoredFile:
        raise AssertionError("no program of the model calls download")

    def exists(self, key: str) -> bool:
        return _ask("get", key) is not None

    def listed(self, key: str) -> Listed | None:
        data = _ask("get", key)
        return None if data is None else Listed(len(data))

    def list(self, prefix: str = "") -> Iterator[str]:
        return iter(_ask("list", prefix))

    def names(self, folder: str) -> Sequence[str]:
        found = (key.removeprefix(f"{folder}/") for key in self.list(f"{folder}/"))
        return sorted({name.partition("/")[0] + "/" * ("/" in name) for name in found})

    def move(self, key: str, to: str) -> None:
        raise AssertionError("no program of the model calls move")

    def delete(self, key: str) -> None:
        _ask("delete", key)

    def leftovers(self, older: timedelta, *, remove: bool) -> Sequence[str]:
        return ()


def _ask(what: str, key: str, data: Any = None) -> Any:
    return execution().ask((what, key, data))


def summarise(patch: pytest.MonkeyPatch, *functions: Callable[..., Any]) -> None:
    """Has calls of these functions of tasks and flows remembered by their result alone.

    They must change nothing but the store.
    """
    for function in functions:
        substitute(patch, function, summarised(function))


def substitute(patch: pytest.MonkeyPatch, function: object, other: object) -> None:
    """Puts `other` in the place of a function wherever the product has imported it."""
    modules = [
        m
        for name, m in sys.modules.items()
        if name.startswith(("tasks.", "flows.", "commit_model"))
    ]
    places = [(m, name) for m in modules for name, value in vars(m).items() if value is function]
    assert places, function
    for module, name in places:
        patch.setattr(module, name, other)


def summarised(function: Callable[..., T]) -> Callable[..., T]:
    name = function.__qualname__

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> T:
        run, start = execution(), execution().position
        if start < len(run.history) and run.history[start].function == name:
            run.position += 1
            run.counter = run.history[start].counter
            return _returned(pickle.loads(run.history[start].value))
        value: Any = _remembered(run, name, args[1:]) if name in PURE else None
        try:
            value = function(*args, **options) if value is None else value
        except Exception as error:
            value = error
        if name in PURE:
            learned = tuple(step.text for step in run.history[start : run.position])
            _memory[name, args[1:]][learned] = value
        if run.position > start:
            text = repr(value.to_pylist() if isinstance(value, pa.Table) else value)
            step = Step(name, pickle.dumps(value), run.counter, f"{name} {run.counter} {text}")
            run.history[start : run.position] = [step]
            run.position = start + 1
        return _returned(value)

    return call


def _remembered(run: Execution, name: str, args: Any) -> Any:
    known = _memory.setdefault((name, args), {})
    texts = [step.text for step in run.history[run.position :]]
    for count in range(len(texts) + 1):
        if (learned := tuple(texts[:count])) in known:
            run.position += count
            return known[learned]
    return None


def _returned(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


@dataclass
class Node:
    """A program between two calls: its history, and its next call."""

    program: str
    history: list[Step]
    call: Call
    passed: frozenset[str]
    value: Any = None  # what it has returned or raised
    following: dict[Any, int] = field(default_factory=dict)  # by what the call returns


@dataclass
class Programs:
    """What programs do, as far as it has been asked for."""

    functions: dict[str, Program]
    conditional: bool = True
    nodes: list[Node] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)

    def start(self, program: str) -> int:
        return self._run(program, [])

    def following(self, number: int, result: Any) -> int:
        """The node that a program is at after its call has returned this."""
        node = self.nodes[number]
        if result not in node.following:
            step = Step("", result, 0, repr(result))
            node.following[result] = self._run(node.program, [*node.history, step])
        return node.following[result]

    def _run(self, program: str, history: list[Step]) -> int:
        global _execution
        _execution = run = Execution(program, list(history))
        value: Any = None
        try:
            value = self.functions[program](ModelStore(self.conditional))
        except _Paused:
            assert run.call is not ENDED
        except StoreError as error:
            value = error
        finally:
            _execution = None
        assert run.position == len(run.history), "a program is not a function of its history"
        own = run.call is ENDED or program in run.call[1]
        assert own or resource(run.call[1]) not in run.passed, run.call
        key = (program, *(step.text for step in run.history))
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(program, run.history, run.call, run.passed, value))
        return self._known[key]


def resource(key: str) -> str:
    """What a program passes as a whole: an asset, by its folder, or all else."""
    return "/".join(key.split("/")[:2]) if key.startswith("assets/") else "shared"


OnChange = Callable[[Content, Content, str], None]


@dataclass
class Stores:
    """The contents that the store has had, and what calls do to them.

    lags: whether a listing may show what was there before the last change.
    """

    on_change: OnChange
    lags: bool = False
    contents: list[Content] = field(default_factory=lambda: [{}])
    stale: list[Content] = field(default_factory=lambda: [{}])
    changes: dict[int, set[int]] = field(default_factory=dict)
    _known: dict[Any, int] = field(default_factory=dict)
    _results: dict[Any, list[tuple[int, Any]]] = field(default_factory=dict)

    def apply(self, number: int, call: Call) -> list[tuple[int, Any]]:
        """What may follow: the store's content, and what the call returns."""
        if (number, call) not in self._results:
            self._results[number, call] = list(self._apply(number, *call))
        return self._results[number, call]

    def settled(self, number: int) -> int:
        """The same content once listings have caught up."""
        return self._number(self.contents[number], self.contents[number])

    def _apply(self, number: int, what: str, key: str, data: Any) -> Iterator[tuple[int, Any]]:
        content = self.contents[number]
        found = content.get(key)
        if what == "list":
            shown = [content, self.stale[number]] if self.lags else [content]
            for keys in {tuple(sorted(k for k in keys if k.startswith(key))) for keys in shown}:
                yield number, keys
        elif what == "get" or (what == "put" and found is not None):
            yield number, found
        elif what == "delete":
            yield self._changed(number, {k: v for k, v in content.items() if k != key}), None
        else:
            yield self._changed(number, content | {key: data}), None

    def _changed(self, number: int, content: Content) -> int:
        before = self.contents[number]
        if content == before:
            return number
        [key] = {k for k, _ in content.items() ^ before.items()}
        self.on_change(before, content, key)
        after = self._number(content, before)
        self.changes.setdefault(number, set()).add(after)
        return after

    def _number(self, content: Content, stale: Content) -> int:
        key = frozenset(content.items()), frozenset(stale) if self.lags else None
        if key not in self._known:
            self._known[key] = len(self.contents)
            self.contents.append(content)
            self.stale.append(stale)
        return self._known[key]


State = tuple[int, tuple[int, ...], int]  # content of the store, nodes, crashes that may come


class Search:
    """All interleavings of some programs, to the end, with so many crashes in all."""

    def __init__(self, programs: Programs, stores: Stores, reduced: bool = False) -> None:
        self.programs, self.stores, self.reduced = programs, stores, reduced
        self.origin: dict[State, tuple[State, str] | None] = {}

    def run(
        self, names: Iterable[str], crashes: int = 0, since: State | None = None
    ) -> Iterator[State]:
        """The states in which all programs have ended, or died. Raises `Violation`.

        since: the state of other programs after which these begin; listings have settled by then.
        """
        content = 0 if since is None else self.stores.settled(since[0])
        start: State = content, tuple(map(self.programs.start, names)), crashes
        if start in self.origin:
            return
        self.origin[start] = since and (since, "all have ended or died")
        stack = [start]
        while stack:
            state = stack.pop()
            positions = self._to_move(state[1])
            for position in positions:
                try:
                    found = list(self._steps(state, position))
                except Violation as violation:
                    raise self.violation(str(violation), state, position) from None
                for following, label in found:
                    if following not in self.origin:
                        self.origin[following] = state, label
                        stack.append(following)
            if not positions:
                yield state

    def _to_move(self, numbers: tuple[int, ...]) -> list[int]:
        """Whose steps to follow: one program's if no other can ever notice when they are made."""
        nodes = {k: self.programs.nodes[n] for k, n in enumerate(numbers) if n != DEAD}
        nodes = {k: node for k, node in nodes.items() if node.call is not ENDED}
        if self.reduced:
            for k, node in nodes.items():
                others = [other for other in nodes.values() if other is not node]
                if node.history and all(_is_independent(node, other) for other in others):
                    return [k]
        return list(nodes)

    def _steps(self, state: State, position: int) -> Iterator[tuple[State, str]]:
        content, nodes, crashes = state
        node = self.programs.nodes[nodes[position]]
        label = self._label(state, position)
        if crashes and not node.history:
            yield (content, _with(nodes, position, DEAD), crashes - 1), f"{node.program}: dies"
        for after, result in self.stores.apply(content, node.call):
            moved = self.programs.following(nodes[position], result)
            error = self.programs.nodes[moved].value
            if isinstance(error, StoreError) and not self.stores.lags:  # "try again later"
                raise Violation(f"{node.program} ends with: {error}")
            yield (after, _with(nodes, position, moved), crashes), label
            # A death after a read is one after the write before it.
            if crashes and after != content:
                yield (after, _with(nodes, position, DEAD), crashes - 1), f"{label}, and dies"

    def check(self, promise: Callable[..., None], state: State, *args: Any, **options: Any) -> None:
        """Checks the content of a state; raises `Violation`, with the steps that lead there."""
        try:
            promise(self.stores.contents[state[0]], *args, **options)
        except Violation as violation:
            raise self.violation(str(violation), state) from None

    def violation(self, problem: str, state: State, position: int | None = None) -> Violation:
        """A broken promise, with the steps that lead there."""
        steps = [] if position is None else [self._label(state, position)]
        while (origin := self.origin[state]) is not None:
            state, label = origin
            steps.append(label)
        return Violation("\n".join([problem, *steps[::-1]]))

    def _label(self, state: State, position: int) -> str:
        node = self.programs.nodes[state[1][position]]
        return f"{node.program}: {node.call[0]} {node.call[1]}"


def _is_independent(node: Node, other: Node) -> bool:
    """Whether a program's call and all that another can still call may change places."""
    touched = resource(node.call[1])
    own = touched != "shared" or node.program in node.call[1]
    return own and touched in other.passed


def _with(nodes: tuple[int, ...], position: int, node: int) -> tuple[int, ...]:
    return (*nodes[:position], node, *nodes[position + 1 :])


def observe(
    programs: Programs,
    stores: Stores,
    begin: Callable[[Content], str],
    program: Program,
    end: Callable[[str, Any], None],
) -> int:
    """All ways in which a program that writes nothing can run beside those that have been searched.

    It may begin at any moment. As nobody notices it, the contents of the store alone matter: here
    they may follow each other as they did anywhere in the search, so that at least all of its runs
    are seen. begin: names the program by the content at its start. end: gets this name and what
    the program has returned, or the error. Returns how many nodes and contents met.
    """
    seen: dict[int, int] = {}  # nodes that a content has met, as bits
    waiting = [(content, 0) for content in range(len(stores.contents))]
    while waiting:
        content, met = waiting.pop()
        if content not in seen:
            programs.functions[name := begin(stores.contents[content])] = program
            met |= 1 << programs.start(name)
        new = met & ~seen.get(content, 0)
        if not new:
            continue
        reached = seen.get(content, 0) | new
        queue = list(_bits(new))
        while queue:
            node = programs.nodes[number := queue.pop()]
            if node.call is ENDED:
                end(node.program, node.value)
                continue
            for _, result in stores.apply(content, node.call):
                moved = programs.following(number, result)
                if not reached >> moved & 1:
                    reached |= 1 << moved
                    queue.append(moved)
        seen[content] = reached
        waiting += [(after, reached) for after in stores.changes.get(content, ())]
    return sum(nodes.bit_count() for nodes in seen.values())


def _bits(number: int) -> Iterator[int]:
    while number:
        yield (low := number & -number).bit_length() - 1
        number ^= low
