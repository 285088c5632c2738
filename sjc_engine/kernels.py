"""Volume rendering of voxel grids and its adjoint, as kernels for CPU and CUDA alike (Warp).

A ray's weights are w_i = T_i alpha_i with alpha_i = 1 - exp(-sigma_i delta_i) and transmittance
T_i = prod_{j<i} (1 - alpha_j). With q_i = dL/dw_i the adjoint has a closed form,

    dL/dsigma_i = delta_i (T_{i+1} q_i - sum_{l>i} w_l q_l),

and picture, opacity, depth and every loss of the weights enter through q alone, so that one pass
serves them all. The sum runs from the back: "total minus prefix" would leave rounding noise in
hidden voxels, which Adamax takes for a gradient.

Buffers of samples are (samples, rays), so that neighbours in memory are neighbouring rays at one
depth: they read the same voxels. Grids are flat, (Z * Y * X), of floats or of colour vectors.
"""

# mypy: ignore-errors
# ruff: noqa: F811  (overloads)

from typing import Any

import warp as wp

wp.set_module_options({"enable_backward": False})

LEAST_WEIGHT = wp.constant(1e-6)  # below it a sample's colour changes nothing in float32


@wp.struct
class Rays:
    """n rays, their chords through the box, and how these are cut into intervals."""

    origins: wp.array(dtype=wp.vec3)
    directions: wp.array(dtype=wp.vec3)
    near: wp.array(dtype=float)  # distance to the box
    chord: wp.array(dtype=float)  # length inside it
    first: float  # share of a step that the first interval has
    step: float
    background_depth: float  # where light ends that leaves the box


@wp.struct
class Grid:
    """Voxel centres on [-half_length, half_length]^3; the border's values go on outside."""

    side: int
    half_length: float
    density_scale: wp.array(dtype=float)  # exp(d_scale), of length 1
    density_shift: float
    bounded: bool  # whether colours are 2 sigmoid(value) - 1


@wp.struct
class Cell:
    """Eight voxels around a point: the lowest's index and the point's place in between."""

    index: int
    u: float
    v: float
    w: float


@wp.struct
class Ray:
    origin: wp.vec3
    direction: wp.vec3
    near: float
    chord: float


@wp.struct
class Interval:
    middle: float  # distance from the ray's origin
    delta: float  # 0 beyond the chord


@wp.func
def ray(rays: Rays, r: int):
    found = Ray()
    found.origin = rays.origins[r]
    found.direction = rays.directions[r]
    found.near = rays.near[r]
    found.chord = rays.chord[r]
    return found


@wp.func
def interval(rays: Rays, line: Ray, i: int):
    start = wp.max(float(i - 1) + rays.first, 0.0) * rays.step
    end = (float(i) + rays.first) * rays.step
    start = wp.min(start, line.chord)
    found = Interval()
    found.delta = wp.min(end, line.chord) - start
    found.middle = line.near + start + 0.5 * found.delta
    return found


@wp.func
def cell(grid: Grid, point: wp.vec3):
    n = float(grid.side)
    scale = 0.5 * n / grid.half_length
    center = 0.5 * n - 0.5
    x = wp.clamp(point[0] * scale + center, 0.0, n - 1.0)
    y = wp.clamp(point[1] * scale + center, 0.0, n - 1.0)
    z = wp.clamp(point[2] * scale + center, 0.0, n - 1.0)
    i = wp.min(int(x), grid.side - 2)
    j = wp.min(int(y), grid.side - 2)
    k = wp.min(int(z), grid.side - 2)
    found = Cell()
    found.index = (k * grid.side + j) * grid.side + i
    found.u = x - float(i)
    found.v = y - float(j)
    found.w = z - float(k)
    return found


@wp.func
def trilinear(values: wp.array(dtype=Any), side: int, at: Cell):
    low = at.index
    high = low + side * side
    a = wp.lerp(values[low], values[low + 1], at.u)
    b = wp.lerp(values[low + side], values[low + side + 1], at.u)
    c = wp.lerp(values[high], values[high + 1], at.u)
    d = wp.lerp(values[high + side], values[high + side + 1], at.u)
    return wp.lerp(wp.lerp(a, b, at.v), wp.lerp(c, d, at.v), at.w)


@wp.func
def scatter(gradient: wp.array(dtype=Any), side: int, at: Cell, value: Any):
    """The adjoint of `trilinear`."""
    low = at.index
    high = low + side * side
    back = value * at.w
    front = value - back
    front_top = front * at.v
    back_top = back * at.v
    front -= front_top
    back -= back_top
    part = front * at.u
    wp.atomic_add(gradient, low, front - part)
    wp.atomic_add(gradient, low + 1, part)
    part = front_top * at.u
    wp.atomic_add(gradient, low + side, front_top - part)
    wp.atomic_add(gradient, low + side + 1, part)
    part = back * at.u
    wp.atomic_add(gradient, high, back - part)
    wp.atomic_add(gradient, high + 1, part)
    part = back_top * at.u
    wp.atomic_add(gradient, high + side, back_top - part)
    wp.atomic_add(gradient, high + side + 1, part)


@wp.func
def softplus(y: float):
    """log(1 + exp(y)), to float32's precision at both ends."""
    if y > 15.0:
        return y
    e = wp.exp(y)
    if e < 1.0e-3:
        return e - 0.5 * e * e
    return wp.log(1.0 + e)


@wp.func
def one_minus_exp(x: float):
    """1 - exp(-x) for x >= 0, to float32's precision near 0: alpha, and softplus' derivative."""
    if x < 2.0e-3:
        return x - 0.5 * x * x
    return 1.0 - wp.exp(-x)


@wp.func
def bounded(v: float):
    return 2.0 / (1.0 + wp.exp(-v)) - 1.0


@wp.func
def bounded(v: wp.vec3):
    return wp.vec3(bounded(v[0]), bounded(v[1]), bounded(v[2]))


@wp.func
def bounded(v: wp.vec4):
    return wp.vec4(bounded(v[0]), bounded(v[1]), bounded(v[2]), bounded(v[3]))


@wp.kernel
def densities(
    rays: Rays,
    grid: Grid,
    begin: int,
    block: int,
    density: wp.array(dtype=float),
    sigma: wp.array2d(dtype=float),
):
    """sigma_i = softplus(value exp(d_scale) + shift) at the middle of each interval."""
    b, r = wp.tid()
    r += begin
    line = ray(rays, r)
    scale = grid.density_scale[0]
    for i in range(b * block, wp.min((b + 1) * block, sigma.shape[0])):
        part = interval(rays, line, i)
        if part.delta > 0.0:
            at = cell(grid, line.origin + line.direction * part.middle)
            value = trilinear(density, grid.side, at)
            sigma[i, r] = softplus(value * scale + grid.density_shift)


@wp.kernel
def composites(
    rays: Rays,
    grid: Grid,
    begin: int,
    sigma: wp.array2d(dtype=float),
    weights: wp.array2d(dtype=float),
    through: wp.array2d(dtype=float),
    opacity: wp.array(dtype=float),
    depth: wp.array(dtype=float),
):
    """Weights w_i and transmittances T_{i+1}, ray by ray."""
    r = wp.tid() + begin
    line = ray(rays, r)
    transmittance = float(1.0)
    total = float(0.0)
    distance = float(0.0)
    for i in range(weights.shape[0]):
        part = interval(rays, line, i)
        w = float(0.0)
        if part.delta > 0.0:
            optical = sigma[i, r] * part.delta
            w = transmittance * one_minus_exp(optical)
            transmittance *= wp.exp(-optical)
            total += w
            distance += w * part.middle
            through[i, r] = transmittance
        weights[i, r] = w
    opacity[r] = total
    depth[r] = distance + transmittance * rays.background_depth


@wp.kernel
def colors(
    rays: Rays,
    grid: Grid,
    begin: int,
    block: int,
    color: wp.array(dtype=Any),
    weights: wp.array2d(dtype=float),
    rgb: wp.array(dtype=Any),
):
    """rgb += sum_i w_i c_i."""
    b, r = wp.tid()
    r += begin
    line = ray(rays, r)
    total = type(rgb[r])()
    seen = bool(False)
    for i in range(b * block, wp.min((b + 1) * block, weights.shape[0])):
        w = weights[i, r]
        if w > LEAST_WEIGHT:
            part = interval(rays, line, i)
            at = cell(grid, line.origin + line.direction * part.middle)
            c = trilinear(color, grid.side, at)
            if grid.bounded:
                c = bounded(c)
            total += w * c
            seen = True
    if seen:
        wp.atomic_add(rgb, r, total)


@wp.kernel
def color_adjoint(
    rays: Rays,
    grid: Grid,
    begin: int,
    block: int,
    weights: wp.array2d(dtype=float),
    rgb_gradient: wp.array(dtype=Any),
    opacity_gradient: wp.array(dtype=float),
    depth_gradient: wp.array(dtype=float),
    weights_gradient: wp.array2d(dtype=float),
    q: wp.array2d(dtype=float),
    color: wp.array(dtype=Any),
    gradient: wp.array(dtype=Any),
):
    """q_i = dL/dw_i, and the colours' gradient."""
    b, r = wp.tid()
    r += begin
    line = ray(rays, r)
    g = rgb_gradient[r]
    deeper = depth_gradient[r]
    common = opacity_gradient[r] - deeper * rays.background_depth
    for i in range(b * block, wp.min((b + 1) * block, weights.shape[0])):
        part = interval(rays, line, i)
        if part.delta > 0.0:
            w = weights[i, r]
            total = weights_gradient[i, r] + common + deeper * part.middle
            if w > LEAST_WEIGHT:
                at = cell(grid, line.origin + line.direction * part.middle)
                c = trilinear(color, grid.side, at)
                dc = w * g
                if grid.bounded:
                    c = bounded(c)
                    # d/dv (2 s - 1) = 2 s (1 - s) = (1 - c^2) / 2
                    dc = 0.5 * (dc - wp.cw_mul(dc, wp.cw_mul(c, c)))
                total += wp.dot(g, c)
                scatter(gradient, grid.side, at, dc)
            q[i, r] = total


@wp.kernel
def density_adjoint(
    rays: Rays,
    grid: Grid,
    begin: int,
    sigma: wp.array2d(dtype=float),
    weights: wp.array2d(dtype=float),
    through: wp.array2d(dtype=float),
    q: wp.array2d(dtype=float),
):
    """From q_i to the gradient of the density grid's interpolated value, in place."""
    r = wp.tid() + begin
    line = ray(rays, r)
    scale = grid.density_scale[0]
    behind = float(0.0)
    count = weights.shape[0]
    for j in range(count):
        i = count - 1 - j
        part = interval(rays, line, i)
        if part.delta > 0.0:
            here = q[i, r]
            slope = part.delta * (through[i, r] * here - behind)
            behind += weights[i, r] * here
            # softplus' derivative is 1 - exp(-softplus)
            q[i, r] = slope * one_minus_exp(sigma[i, r]) * scale


@wp.kernel
def density_scatter(
    rays: Rays,
    grid: Grid,
    begin: int,
    block: int,
    slope: wp.array2d(dtype=float),
    gradient: wp.array(dtype=float),
):
    b, r = wp.tid()
    r += begin
    line = ray(rays, r)
    for i in range(b * block, wp.min((b + 1) * block, slope.shape[0])):
        part = interval(rays, line, i)
        if part.delta > 0.0:
            at = cell(grid, line.origin + line.direction * part.middle)
            scatter(gradient, grid.side, at, slope[i, r])
