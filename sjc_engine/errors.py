"""Errors as data: whoever shows one makes the sentence, and nobody takes it apart again."""

from __future__ import annotations


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says how to ask."""


class SettingError(ValueError):
    """A setting that cannot be used, and what to write instead.

    key: of a recipe, or the name of a parameter such as `prior` or `image`. problem, fix: phrases
    without the key. conflicts: the keys of other settings that `problem` is about as well.
    """

    def __init__(self, key: str, problem: str, fix: str, conflicts: tuple[str, ...] = ()) -> None:
        super().__init__(key, problem, fix, conflicts)
        self.key, self.problem, self.fix, self.conflicts = key, problem, fix, conflicts

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.fix}"


class PriorError(SettingError):
    """A prior or a judge that cannot be used.

    component: the part of it, such as `unet`, or "". file: the one to look at, or "". reason: what
    is wrong with that.
    """

    def __init__(
        self,
        key: str,
        problem: str,
        fix: str,
        conflicts: tuple[str, ...] = (),
        *,
        component: str = "",
        file: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(key, problem, fix, conflicts)
        self.component, self.file, self.reason = component, file, reason or problem
