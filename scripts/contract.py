"""What users rely on, as facts of a line each: `python scripts/contract.py` writes them down.

tests/contract/ holds them and tests/test_contract.py compares. Run this only where a change of the
contract is wanted, and read the diff. Help texts and descriptions are free to change.
"""

from __future__ import annotations

import json
import pkgutil
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import typer

import sjc_engine
from flows.commands.main import app
from sjc_engine import AssetSpec, Recipe
from tasks.tables.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "contract"
# Paths that deployments name, in prefect.yaml files and on servers; the part is `generate`'s own
FLOWS = (
    "flows.dispatch.dispatch",
    "flows.evaluate.evaluate",
    "flows.generate.generate",
    "flows.maintenance.maintain",
    "flows.shard.generate_shard",
)
_TYPES = {str: "text", Path: "text", int: "integer", float: "number", bool: "flag"}
_DOTTED = r"\b(?:flows|tasks|sjc_engine)(?:\.\w+)*"
_COMMIT, _DIGEST = "0123456789abcdef0123456789abcdef01234567", "fedcba98" * 8


def commands() -> list[str]:
    """Every argument and option: all its names, type, range, default and variable."""
    facts = [_parameter("sjc", 0, parameter) for parameter in program().params]
    for name, command in program().commands.items():
        options = (p for p in command.params if p.param_type_name == "option")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        facts.append(f"sjc {name}: {'hidden ' * command.hidden}command")
        facts += [_parameter(f"sjc {name}", 0, option) for option in options]
        facts += [_parameter(f"sjc {name}", k, p) for k, p in enumerate(arguments, 1)]
    return sorted(facts)


def program() -> Any:
    """`sjc` as its parser sees it."""
    return typer.main.get_command(app)


def _parameter(command: str, position: int, parameter: Any) -> str:
    said = parameter.type_descriptor
    kind = get_args(said.annotation)[0] if parameter.multiple else said.annotation
    traits = ["|".join(said.choices) if said.choices else _TYPES[kind]]
    traits += [f"at least {parameter.min}"] * (parameter.min is not None)
    traits += [f"at most {parameter.max}"] * (parameter.max is not None)
    default = json.dumps(parameter.default, default=str)
    traits.append("required" if parameter.required else f"default {default}")
    traits += ["repeatable"] * parameter.multiple + ["hidden"] * parameter.hidden
    traits += [f"env {parameter.envvar}"] * (parameter.envvar is not None)
    names = [f"argument {position}"] * bool(position) + sorted(parameter.opts)[::-1]
    return f"{command} {' '.join([*names, *parameter.secondary_opts])}: {', '.join(traits)}"


def flows() -> list[str]:
    """The flows' names and parameters, as a server sees them."""
    facts = []
    for path in FLOWS:
        flow = pkgutil.resolve_name(path)
        schema = flow.parameters.model_dump()
        facts.append(f"{path}: flow {flow.name}")
        for name, about in schema["properties"].items():
            required = name in schema["required"]
            rest = "required" if required else f"default {json.dumps(about['default'])}"
            facts.append(f"{path} {name}: {_json_type(about)}, {rest}")
    return sorted(facts)


def _json_type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_json_type(choice) for choice in schema["anyOf"])
    inner = schema.get("items") or schema.get("additionalProperties")
    of = f" of {_json_type(inner)}" if isinstance(inner, dict) else ""
    return schema.get("type", "anything") + of


def tables() -> list[str]:
    """The tables' columns, in their order."""
    facts = []
    for table, schema in SCHEMAS.items():
        facts.append(f"{table}: version {schema.metadata[b'sjc.version'].decode()}")
        nulls = {True: "", False: ", never null"}
        facts += [f"{table} {field.name}: {field.type}{nulls[field.nullable]}" for field in schema]
    return facts


def names() -> list[str]:
    """What can be imported or started: by the engine's list, by the docs, and as a program."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    pages = [ROOT / "README.md", ROOT / "prefect.yaml"]
    pages += [path for path in ROOT.glob("docs/**/*") if path.suffix in (".md", ".yaml")]
    found = {name for page in pages for name in names_in(page.read_text("utf-8"))}
    facts = [f"docs: {name}" for name in found]
    facts += [f"engine: sjc_engine.{name}" for name in sjc_engine.__all__]
    return sorted([*facts, *(f"script: {name}" for name in scripts)])


def names_in(text: str) -> set[str]:
    """Every dotted name of the three packages that a page mentions or imports."""
    found = {name for name in re.findall(_DOTTED, text) if "." in name}
    for home, imported in re.findall(rf"\bfrom ({_DOTTED}) import ([\w, ]+)", text):
        found -= {home}
        found |= {f"{home}.{name.strip()}" for name in imported.split(",")}
    return found


def specs() -> dict[str, AssetSpec]:
    """Some that cover every family of presets, and all that a spec has. No weights are read."""
    hub, clip = "stable-diffusion-v1-5/stable-diffusion-v1-5", "openai/clip-vit-large-patch14"
    return {
        "toybox": _spec("toybox"),
        "toybox draft, seed": _spec("toybox", "draft", seed=3),
        "toybox sds, negative prompt": _spec("toybox", "sds", negative_prompt="blurry, grün"),
        "toybox, lpips, judge, mesh": _spec("toybox", lpips="alex", judge=clip, max_faces=500),
        "toybox-duck annealed": _spec("toybox-duck", "annealed"),
        "hub paper": _spec(hub, "paper"),
        "hub paper-chair, another revision": _spec(hub, "paper-chair", revision=_COMMIT[::-1]),
        "hub sds, overrides": _spec(hub, "sds", steps="500", field="tensorf", ray_jitter=True),
        "folder fast": _spec("models/own", "fast", revision=_DIGEST),
        "DeepFloyd if": _spec("DeepFloyd/IF-I-XL-v1.0", "if"),
        "unconditional annealed": _spec("google/ddpm-cat-256", "annealed"),
        "MVDream": _spec("ashawkey/mvdream-sd2.1-diffusers"),
        "zero123, image": _spec("kxic/zero123-xl", image="89abcdef" * 8),
        "stable-zero123, image": _spec("kxic/stable-zero123", image="89abcdef" * 8),
    }


def _spec(
    prior: str,
    preset: str | None = None,
    *,
    revision: str = _COMMIT,
    negative_prompt: str = "",
    image: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> AssetSpec:
    recipe = Recipe.for_prior(prior, preset).override(overrides)
    prompt = "a DSLR photo of a yellow duck"
    return AssetSpec(prompt, negative_prompt, image, seed, prior, revision, recipe)


def ids() -> list[str]:
    """The ids of these specs: whoever has a store counts on them."""
    return [f"{k}: asset {s.asset_id}, field {s.field_id}" for k, s in sorted(specs().items())]


FACTS: dict[str, Callable[[], list[str]]] = {
    "commands": commands,
    "flows": flows,
    "tables": tables,
    "names": names,
    "ids": ids,
}


def held(kind: str) -> list[str]:
    """The facts that were written down."""
    return (FOLDER / f"{kind}.txt").read_text("utf-8").splitlines()


def main() -> None:
    for kind, facts in FACTS.items():
        text = "\n".join(facts()) + "\n"
        (FOLDER / f"{kind}.txt").write_text(text, "utf-8")
        print(f"{kind}: {text.count(chr(10))} facts")


if __name__ == "__main__":
    main()
