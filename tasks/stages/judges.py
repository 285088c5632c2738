"""What an evaluation loads: judges and LPIPS weights, each once."""

import threading

from sjc_engine.evaluation.clip import Judge, load_judge
from sjc_engine.evaluation.lpips import Lpips, load_lpips
from sjc_engine.recipes import EvaluateRecipe


class Judges:
    """The judges and LPIPS weights of a run, each loaded once."""

    def __init__(self, device: str = "cpu", *, allow_pickle: bool = False) -> None:
        self.device, self.allow_pickle = device, allow_pickle
        self._judges: dict[str, Judge] = {}
        self._lpips: dict[str, Lpips] = {}
        self._lock = threading.Lock()

    def get(self, recipe: EvaluateRecipe) -> tuple[Judge, Lpips | None]:
        """What the recipe names; ValueError, saying what is missing, when it is not there."""
        with self._lock:
            if recipe.judge not in self._judges:
                judge = load_judge(recipe.judge, self.device, self.allow_pickle)
                self._judges[recipe.judge] = judge
            if recipe.lpips != "none" and recipe.lpips not in self._lpips:
                self._lpips[recipe.lpips] = load_lpips(recipe.lpips)
            return self._judges[recipe.judge], self._lpips.get(recipe.lpips)
