"""The fused renderer against its oracle in plain torch."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from numba import njit

from sjc_engine.fields.plenoxels import PlenoxelField
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.optimization.losses import distortion, emptiness
from sjc_engine.rendering import fused, kernels
from sjc_engine.rendering.background import learned_background
from sjc_engine.rendering.camera import orbit, sample_camera
from sjc_engine.rendering.volume import render_views


def make_field(channels, space, *, opaque, side=12):
    generator = torch.Generator().manual_seed(3)
    field = VoxelField(side, channels, 0.7, space=space, generator=generator)
    with torch.no_grad():
        field.density.normal_(generator=generator)
        if opaque:  # a wall with empty space before and behind it
            field.density.mul_(3).sub_(20)
            field.density[..., 4:8].add_(50)
        field.d_scale.fill_(0.3)
    return field


def seen(field, *, kernels, views=2, size=9, step=0.05, seed=5, beta=10.0):
    """Everything that a loss may depend on, and all gradients of a loss of all of it."""
    generator = torch.Generator().manual_seed(seed)
    cameras = [sample_camera(generator) for _ in range(views)]
    field.zero_grad()
    view = render_views(
        field,
        cameras,
        size,
        size,
        step=step,
        generator=generator,
        emptiness_scale=beta,
        fused=kernels,
    )
    outputs = [view.rgb, view.opacity, view.depth, view.emptiness, view.weights]
    score = [torch.randn(t.shape, generator=generator) for t in outputs]
    loss = sum((s * t).sum() for s, t in zip(score, outputs, strict=True))
    loss = loss + 1e3 * emptiness(view) + 10 * distortion(view)
    loss = loss + learned_background(field, view).mean()
    loss.backward()
    slopes = [field.density.grad, field.color.grad, field.d_scale.grad, field.background.grad]
    return [t.detach() for t in outputs], [slope.clone() for slope in slopes]


def off(found, wanted):
    """The largest difference over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(("channels", "space"), [(3, "rgb"), (4, "latent"), (4, "rgb")])
def test_the_kernels_give_the_oracles_pictures_and_gradients(channels, space, opaque):
    field = make_field(channels, space, opaque=opaque)
    ours, theirs = seen(field, kernels=True), seen(field, kernels=False)
    for found, wanted in zip(ours[0], theirs[0], strict=True):
        assert found.shape == wanted.shape
        assert off(found, wanted) < 5e-5
    for found, wanted in zip(ours[1], theirs[1], strict=True):
        assert off(found, wanted) < 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.3, 1e6])
def test_haze_of_every_scale(beta):
    field = make_field(3, "rgb", opaque=True)
    ours = seen(field, kernels=True, beta=beta)
    theirs = seen(field, kernels=False, beta=beta)
    assert torch.allclose(ours[0][3], theirs[0][3], rtol=1e-4)
    for grid in (0, 1):
        assert off(ours[1][grid], theirs[1][grid]) < 1e-4


def test_gradients_at_the_papers_setting():
    field = make_field(4, "latent", opaque=True, side=100)
    ours = seen(field, kernels=True, views=1, size=32, step=0.01)
    theirs = seen(field, kernels=False, views=1, size=32, step=0.01)
    assert max(off(a, b) for a, b in zip(ours[1], theirs[1], strict=True)) < 1e-4


def test_gradients_are_those_of_finite_differences():
    field = make_field(3, "rgb", opaque=False, side=5)
    camera = orbit(20, 10)

    def loss():
        view = render_views(field, [camera], 6, 6, step=0.2, fused=True)
        return view.rgb.double().square().sum() + view.opacity.double().square().sum()

    loss().backward()
    for parameter, place in [(field.density, (0, 0, 2, 2, 2)), (field.color, (0, 1, 2, 2, 1))]:
        values = []
        for move in (1e-2, -1e-2):
            with torch.no_grad():
                parameter[place] += move
                values.append(float(loss()))
                parameter[place] -= move
        slope = (values[0] - values[1]) / 2e-2
        assert float(parameter.grad[place]) == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("threads", [1, 3, 14])
@pytest.mark.parametrize("state", ["haze", "wall", "slab", "nothing"])
def test_threads_share_the_rays_and_change_nothing(state, threads):
    """Memory that nobody has written holds NaN here: none of it may be read."""
    field = make_field(4, "latent", opaque=state == "wall")
    with torch.no_grad():
        if state in ("slab", "nothing"):
            field.density.fill_(-45)  # a weight of 1e-21, and gradients that are not subnormal
        if state == "slab":  # colours in some layers only
            field.density[..., 5:8, :, :] = 3
    alone = seen(field, kernels=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        together = seen(field, kernels=True)
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)
    for found, wanted in zip(together[0], alone[0], strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(together[1], alone[1], strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_frozen_parameters_get_no_gradient():
    field = make_field(3, "rgb", opaque=False)
    field.density.requires_grad_(False)
    field.d_scale.requires_grad_(False)
    render_views(field, [orbit(0, 0)], 4, 4, fused=True).rgb.sum().backward()
    assert field.density.grad is None
    assert float(field.color.grad.abs().sum()) > 0


def test_what_is_not_a_number_shows():
    """The scene's guard looks at the loss: no kernel may swallow a NaN on the way to it."""
    for name in ("density", "color"):
        field = make_field(3, "rgb", opaque=False)
        with torch.no_grad():
            getattr(field, name)[..., 6, 6, 6] = float("nan")
        view = render_views(field, [orbit(0, 0)], 16, 16, emptiness_scale=10.0, fused=True)
        assert not torch.isfinite(view.rgb.sum() + view.opacity.sum())
        if name == "density":
            assert not torch.isfinite(view.emptiness.sum())


def test_memory_is_laid_out_for_the_kernels_and_stays_so():
    field = make_field(3, "rgb", opaque=False)
    seen(field, kernels=True)
    torch.optim.Adamax(field.parameters()).step()
    field.resample(20)
    for grid in (field.color, make_field(3, "rgb", opaque=False).color):
        assert grid.is_contiguous(memory_format=torch.channels_last_3d)


def test_fields_that_the_kernels_do_not_know_are_left_to_torch():
    double = make_field(3, "rgb", opaque=False).double()
    plenoxels = PlenoxelField(6, 3, 0.7)
    for field, reason in [(double, "torch.float64"), (plenoxels, "kind 'plenoxels'")]:
        assert not fused.fits(field)
        render_views(field, [orbit(0, 0)], 4, 4)
        with pytest.raises(ValueError, match=reason):
            render_views(field, [orbit(0, 0)], 4, 4, fused=True)


def test_exp_and_log1p_are_exact_to_float32():
    x = np.linspace(-87, 87, 20_001, dtype=np.float32)
    ours = np.array([kernels.exp(v) for v in x], dtype=np.float64)
    np.testing.assert_allclose(ours, np.exp(x.astype(np.float64)), rtol=3e-7)
    assert np.isnan(kernels.exp(np.float32("nan")))
    z = np.concatenate([np.logspace(-30, 0, 5000), [0.0]]).astype(np.float32)
    ours = np.array([kernels.log1p(v) for v in z], dtype=np.float64)
    np.testing.assert_allclose(ours, np.log1p(z.astype(np.float64)), rtol=3e-7)
    powers = 2.0 ** np.arange(-20, 21)
    z = np.concatenate([z, np.geomspace(1e-8, 1e6, 999), powers, powers - 1, powers * (1 - 1e-7)])
    z = z[z >= 0].astype(np.float32)
    ours = np.array([kernels.log_above(v) for v in z], dtype=np.float64)
    np.testing.assert_allclose(ours, np.log1p(z.astype(np.float64)), rtol=5e-7)
    assert np.isnan(kernels.log_above(np.float32("nan")))


@pytest.mark.parametrize("channels", [3, 4])
def test_channels_as_a_vector_add_what_they_add_alone(channels):
    """Bit for bit, and nothing beside them: three channels are no vector of four."""
    generator = np.random.default_rng(1)
    before, colors = (generator.normal(size=(9, n)).astype(np.float32) for n in (channels, 4))

    @njit(**kernels.OPTIONS | {"cache": False})
    def add_all(add, array, colors, count):
        for row in range(len(array)):
            c = colors[row]
            add(array, row, c[0] * c[1], (c[0], c[1], c[2], c[3]), count)

    found, wanted = before.copy(), before.copy()
    add_all(njit(lambda *given: kernels.add_color(*given)), found, colors, (0,) * channels)
    add_all(kernels.add_scalars, wanted, colors, (0,) * channels)
    assert np.array_equal(found, wanted)
    assert (found != before).all()


@pytest.mark.parametrize("step", [0.01, 0.1, 1 / 3, 3e-6])
def test_samples_inside_a_chord_are_counted_as_python_counts_them(step):
    chords = np.concatenate([np.arange(0, 2, 0.05), np.linspace(0, 3.5, 200)]).astype(np.float32)
    one = np.ones((1, 3), np.float32)
    step, first = np.float32(step), np.float32(0.3)
    for chord in chords:
        rays = kernels.Rays(one, one, chord[None], chord[None], first, step, step, step)
        wanted = math.ceil(chord / step + (np.float32(1) - first))
        assert kernels.samples_inside(rays, 0, 1 << 30) == wanted
        assert kernels.samples_inside(rays, 0, wanted - 1) == wanted - 1


def python(code, **environment):
    """A new interpreter's output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_kernels_that_do_not_compile_leave_the_oracle(kernel, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    field = make_field(3, "rgb", opaque=False)
    monkeypatch.setattr(kernels, kernel, fail)
    fused.device_unavailable_reason.cache_clear()
    try:
        assert fused.unavailable_reason(field) == "OSError: No space left on device"
        assert render_views(field, [orbit(0, 0)], 8, 8).opacity.detach().mean() > 0
    finally:
        fused.device_unavailable_reason.cache_clear()


@pytest.mark.slow
def test_kernels_without_a_place_for_a_cache_are_compiled_each_time():
    """As in a container whose installation and home are read-only."""
    said = python("""
        import os
        os.environ["NUMBA_OPT"] = "0"  # compiled in half the time: nothing is computed here
        from numba.core import caching
        caching.CacheImpl._locator_classes = []
        from sjc_engine.fields.voxel import VoxelField
        from sjc_engine.rendering import fused, kernels
        import torch
        assert not kernels.OPTIONS["cache"]
        assert fused.unavailable_reason(VoxelField(4, 3, generator=torch.Generator())) == ""
        print("fused")
    """)
    assert said == "fused\n"


@pytest.mark.slow
def test_without_numba_the_oracle_renders_and_that_is_said_once():
    said = python("""
        import sys
        sys.modules["numba"] = None
        from sjc_engine.rendering.camera import orbit
        from sjc_engine.fields.voxel import VoxelField
        from sjc_engine.rendering.volume import render_views
        for _ in range(3):
            view = render_views(VoxelField(6, 3, 0.7), [orbit(0, 0)], 8, 8)
        print("opacity", float(view.opacity.mean()) > 0)
    """)
    assert said.count("rendering with plain torch, which is slower") == 1
    assert "numba" in said
    assert "opacity True" in said


@pytest.mark.slow
def test_the_cuda_kernels_in_numbas_simulator():
    """The threads of a GPU, as Python: the same functions, divided as they are there."""
    said = python(
        """
        import torch
        from sjc_engine.rendering import fused, kernels_cuda
        class Simulator(kernels_cuda.Launcher):
            def array(self, tensor):
                return tensor.numpy()
            def __call__(self, kernel, shape, *arguments):
                kernel[shape](*arguments)
        kernels_cuda.launcher = lambda device, flat: Simulator(device)
        fused._on_gpu = lambda tensor: True
        from test_fused import make_field, off, seen
        for channels, space in [(3, "rgb"), (4, "latent")]:
            field = make_field(channels, space, opaque=False, side=6)
            ours = seen(field, kernels=True, views=1, size=4, step=0.06)
            theirs = seen(field, kernels=False, views=1, size=4, step=0.06)
            for found, wanted in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
                print("off", off(found, wanted))
        """,
        NUMBA_ENABLE_CUDASIM="1",
        NUMBA_DISABLE_JIT="1",
        PYTHONPATH=os.path.dirname(__file__),
    )
    found = [float(line.split()[1]) for line in said.splitlines() if line.startswith("off")]
    assert len(found) == 18
    assert max(found) < 1e-4
