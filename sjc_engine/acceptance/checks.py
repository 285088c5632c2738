"""The checks of an acceptance run: the kernels, a step, its speed and its memory on one device."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sjc_engine.acceptance.random_prior import SD15, SD15_VAE, TINY, TINY_VAE, RandomPrior
from sjc_engine.acceptance.results import Check, Line
from sjc_engine.fields.field import Field, Space
from sjc_engine.fields.voxel import VoxelField, grid_centers
from sjc_engine.memory import MemoryProbe, out_of_memory, peak_memory
from sjc_engine.optimization.loop import step_scenes
from sjc_engine.optimization.scene import Scene
from sjc_engine.optimization.step import draw
from sjc_engine.priors.compiled import AGREEMENT
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.recipes import Recipe
from sjc_engine.rendering.background import learned_background
from sjc_engine.rendering.camera import sample_camera
from sjc_engine.rendering.volume import render_views

SCENES = (1, 2, 4, 8)  # stepped together
FAST = ", fast launch"
KINDS: dict[Space, int] = {"rgb": 3, "latent": 4}  # channels
WARM_UP, WAIT_FREE_STEPS = 3, 3
MOST_ROUNDS = 30  # of what is timed
# Largest difference over the largest value: of float32, summed in any order, from float64
PICTURES, GRADIENTS = 5e-5, 1e-4
WHOLE_STEP = 1e-2  # guidance multiplies the roundings of a network that adds in another order


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    name: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    changes: dict[str, int | float]  # of the paper's recipe
    seconds: float  # that a figure of speed is measured for


FULL = Size("that of Stable Diffusion 1.5", SD15, SD15_VAE, {}, 8.0)
SMALL = {"grid_size": 12, "render_size": 8, "ray_step": 0.1}
TINY_SIZE = Size("tiny, which says nothing of a GPU", TINY, TINY_VAE, SMALL, 0.2)


class Bench:
    """What is measured on one device: at real size on a GPU, and tiny on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.size = FULL if self.on_gpu else TINY_SIZE
        self.recipe = Recipe.for_prior("random/sd15").override(self.size.changes)
        self.decode_seconds = 0.0  # of a view, once it is known
        if not self.on_gpu:
            torch.set_num_threads(1)  # as an engine's on a CPU

    def checks(self) -> dict[str, Check]:
        """Each by what it is about, in the order in which they are made."""
        checks: dict[str, Check] = {"a whole step": self.whole_step, "decoder": self.decoder}
        for way in ("", FAST):
            checks |= {f"kernels, {kind}{way}": partial(self.kernels, kind, way) for kind in KINDS}
            checks[f"renderer{way}"] = partial(self.renderer_speed, way)
            if way:
                checks[f"the network{way}"] = self.fast_launch
            checks[f"host waits{way}"] = partial(self.host_waits, way)
            checks |= {f"K = {k}{way}": partial(self.speed, k, way) for k in SCENES}
        return checks

    @cached_property
    def prior(self) -> RandomPrior:
        dtype = torch.float16 if self.on_gpu else torch.float32
        return RandomPrior(self.size.unet, self.device, dtype, self.size.vae)

    def scenes(self, count: int) -> list[Scene]:
        return [Scene(f"thing {k}", "", k, self.recipe, self.prior) for k in range(count)]

    def kernels(self, kind: Space, way: str) -> Iterator[Line]:
        """The fused renderer in float32 against plain torch in float64, as a field starts and as it
        ends: pictures, and all gradients."""
        pictures, gradients = [], []
        for opaque in (False, True):
            field = self._field(kind, opaque)
            oracle = copy.deepcopy(field).double()
            found = self._seen(field, fused=True, flat=bool(way))
            wanted = self._seen(oracle, fused=False)
            pictures.append(_worst(found[0], wanted[0]))
            gradients.append(_worst(found[1], wanted[1]))
        yield Line(f"kernels, {kind}{way}: pictures, off by", _max(pictures), most=PICTURES)
        yield Line(f"kernels, {kind}{way}: gradients, off by", _max(gradients), most=GRADIENTS)

    def renderer_speed(self, way: str) -> Iterator[Line]:
        """One view forward and backward, with the kernels and, first of all, without."""
        field = self._field("latent", opaque=False)
        if not way:
            seconds = self._timed(partial(self._seen, field, fused=False))
            yield Line("renderer, plain torch: a view", 1000 * seconds, "ms")
        seconds = self._timed(partial(self._seen, field, fused=True, flat=bool(way)))
        yield Line(f"renderer, kernels{way}: a view", 1000 * seconds, "ms")

    def whole_step(self) -> Iterator[Line]:
        """A step of the embedded prior against the CPU's: rays, network, guidance, gradients."""
        with torch.backends.cudnn.flags(allow_tf32=False):
            found, wanted = (_step_gradients(place) for place in (self.device, torch.device("cpu")))
        worst = _worst(found, wanted)
        yield Line("a whole step: gradients, off the CPU's by", worst, most=WHOLE_STEP)

    def fast_launch(self) -> Iterator[Line]:
        """From here on: what spares a GPU's steps the CPU's work, and says the same."""
        inputs = draw(self.scenes(1)[0])
        asked = inputs.z.flatten(0, 1), inputs.sigma, inputs.cond
        plain = self.prior.denoise(*asked)
        self.prior.enable_fast_launch()
        for _ in range(WARM_UP):
            fast = self.prior.denoise(*asked)
        most = AGREEMENT[self.prior.dtype]
        yield Line(f"the network{FAST}: off by", _worst([fast], [plain]), most=most)

    def host_waits(self, way: str) -> Iterator[Line]:
        """Steps in which the host never waits for the device: torch raises where it would."""
        scenes = self.scenes(2)
        for _ in range(WARM_UP):  # in its first step a scene waits
            step_scenes(scenes, self.prior)
        with _waits_forbidden() if self.on_gpu else contextlib.nullcontext():
            for _ in range(WAIT_FREE_STEPS):
                step_scenes(scenes, self.prior)
        note = "" if self.on_gpu else "not checked: a CPU has nothing to wait for"
        yield Line(f"host waits in a step{way}", 0, most=0, note=note)

    def decoder(self) -> Iterator[Line]:
        """A view's decoding, as at the end of each asset."""
        side = self.size.unet["sample_size"]
        latents = torch.zeros(1, 4, side, side, device=self.device)
        self._forget_peak()
        self.decode_seconds = self._timed(lambda: self.prior.decode(latents))
        yield Line("decoder: a view", 1000 * self.decode_seconds, "ms", more=self._memory())

    def speed(self, count: int, way: str) -> Iterator[Line]:
        """K scenes stepped together, and how many assets of the paper's recipe that makes."""
        name = f"K = {count}{way}: a scene's step"
        self._forget_peak()
        probe = MemoryProbe(self.device) if self.on_gpu else None
        try:
            scenes = self.scenes(count)
            seconds = self._timed(lambda: step_scenes(scenes, self.prior)) / count
        except Exception as error:
            if not out_of_memory(error) or count == SCENES[0]:
                raise
            yield Line(name, note="does not fit in memory")
            return
        r = Recipe().optimize
        hourly = 3600 / (r.steps * seconds + r.distill_views * self.decode_seconds)
        more = {"assets an hour": hourly, **self._memory()}
        yield Line(name, 1000 * seconds, "ms", more=more)
        if probe and count == SCENES[0]:
            capacity = probe.capacity(count)
            yield Line(f"scenes per device, auto{way}", capacity.scenes, note=str(capacity))

    def _field(self, kind: Space, opaque: bool) -> VoxelField:
        """As it starts, or with a ball of 11% of the box in empty space."""
        generator = torch.Generator().manual_seed(0)
        r = self.recipe.optimize
        field = VoxelField(r.grid_size, KINDS[kind], r.half_length, space=kind, generator=generator)
        if opaque:
            put_ball(field)
        return field.to(self.device)

    def _seen(
        self, field: VoxelField, *, fused: bool, flat: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All that a loss may depend on, in a view, and the gradients of a loss of all of it."""
        generator, r = torch.Generator().manual_seed(1), self.recipe.optimize
        field.zero_grad()
        view = render_views(
            field,
            [sample_camera(generator)],
            r.render_size,
            r.render_size,
            step=r.ray_step,
            generator=generator,
            emptiness_scale=r.emptiness_scale,
            fused=fused,
            flat=flat,
        )
        outputs = [view.rgb, view.opacity, view.depth, view.emptiness, view.weights]
        outputs.append(learned_background(field, view))
        slopes = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
        torch.autograd.backward(outputs, slopes)
        return [o.detach() for o in outputs], _gradients(field)

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds that the work takes, once it is warm; the mean of as many rounds as
        `Size.seconds` has room for."""
        for _ in range(WARM_UP):
            work()
        first = self._seconds(work, 1)
        rounds = min(MOST_ROUNDS, math.ceil(self.size.seconds / first))
        return self._seconds(work, rounds)

    def _seconds(self, work: Callable[[], object], rounds: int) -> float:
        """The mean, until the device has done all of them."""
        self._wait()
        began = time.perf_counter()
        for _ in range(rounds):
            work()
        self._wait()
        return (time.perf_counter() - began) / rounds

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def _memory(self) -> dict[str, float]:
        return {"GB": peak_memory(self.device) / 1e9}

    def _forget_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def _worst(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Of all tensors the largest difference over the tensor's largest; NaN if there is one."""
    pairs = [(a.to(b), b) for a, b in zip(found, wanted, strict=True)]
    # What is zero throughout has to be found so
    scales = [b.abs().max().clamp(min=torch.finfo(b.dtype).tiny) for _, b in pairs]
    return _max([float((a - b).abs().max() / s) for (a, b), s in zip(pairs, scales, strict=True)])


def _max(numbers: Sequence[float]) -> float:
    """The largest; NaN, which Python's overlooks, if there is one."""
    return float(torch.tensor(numbers).max())


def _gradients(field: Field) -> list[Tensor]:
    return [p.grad for p in field.parameters() if p.grad is not None]


def _step_gradients(device: torch.device) -> list[Tensor]:
    """What a first step of the embedded prior, in full precision, moves a field by."""
    prior = load_prior("toybox", device=device, dtype="float32")
    scene = Scene("a yellow duck", "", 0, Recipe.for_prior(prior), prior)
    step_scenes([scene], prior)
    return _gradients(scene.field)


@contextlib.contextmanager
def _waits_forbidden() -> Iterator[None]:
    """Torch raises where the host would wait for a GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@torch.no_grad()
def put_ball(field: VoxelField) -> None:
    """Makes a field opaque in a ball that fills 11% of the box, and clear around it."""
    side = field.resolution
    radius = (0.11 * 8 * 3 / 4 / math.pi) ** (1 / 3)
    inside = grid_centers(side, 1.0, field.density).norm(dim=-1) < radius
    noise = torch.randn(side, side, side, generator=torch.Generator().manual_seed(1))
    field.density.copy_((torch.where(inside, 30.0, -30.0) + noise)[None, None])
