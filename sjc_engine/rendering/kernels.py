"""Volume rendering of voxel grids and its adjoint, ray by ray: one source for CPU and CUDA (Numba).

A ray's weights are w_i = T_i alpha_i with alpha_i = 1 - exp(-sigma_i delta_i) and transmittance
T_i = prod_{j<i} (1 - alpha_j). With q_i = dL/dw_i the adjoint has a closed form,

    dL/dsigma_i = delta_i (T_{i+1} q_i - sum_{l>i} w_l q_l),

and picture, opacity, depth and every loss of the weights enter through q alone, so that one pass
serves them all. The sum runs from the back: "total minus prefix" would leave rounding noise in
hidden voxels, which Adamax takes for a gradient.

All in one file: Numba's cache would not see that a function changed which another file holds.
Functions work on a ray r, or on its samples from `begin` to `end`; arrays of samples are
(rays, samples). Grids are flat: densities (V,), colours (V, C) with C = 3 or 4, x fastest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# All of fastmath but what takes NaN and infinity for impossible: a scene may diverge.
FAST = {"contract", "reassoc", "nsz", "arcp", "afn"}


def _has_cache() -> bool:
    """Whether Numba has a place for compiled code; without one, it is compiled each time."""
    try:
        njit(cache=True)(_has_cache)
    except RuntimeError:  # "no locator available": a read-only installation and home
        return False
    return True


OPTIONS = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": _has_cache()}
compiled = njit(**OPTIONS)
inlined = njit(forceinline=True, **OPTIONS)

real = np.float32
LEAST_WEIGHT = real(1e-6)  # below it a sample's colour changes nothing in float32
HALF, ONE, TWO, ZERO = real(0.5), real(1), real(2), real(0)
# Indices into grids are unsigned: signed ones are looked at for "counts from the end" each time.
index = np.uintp
NEXT = index(1)

Array = Any


class Rays(NamedTuple):
    """n rays, their chords through the box, and how these are cut into intervals."""

    origins: Array  # (n, 3)
    directions: Array  # (n, 3)
    near: Array  # (n,) distance to the box
    chord: Array  # (n,) length inside it
    first: np.float32  # share of a step that the first interval has
    step: np.float32
    background_depth: np.float32  # where light ends that leaves the box
    emptiness_scale: np.float32  # beta in log(1 + beta w)


class Grid(NamedTuple):
    """Voxel centres on [-half_length, half_length]^3; the border's values go on outside."""

    density: Array  # (side^3,)
    color: Array  # (side^3, C)
    side: np.int32
    half_length: np.float32
    density_scale: Array  # (1,) exp(d_scale)
    density_shift: np.float32
    bounded: bool  # whether colours are 2 sigmoid(value) - 1
    channels: tuple[int, ...]  # of length C: its type tells the compiler


class Samples(NamedTuple):
    """What the way back needs of every sample, (n, count) each; valid inside the chord only."""

    weight: Array  # w_i; zero beyond the chord
    transmittance: Array  # T_{i+1}
    slope: Array  # d sigma / d value
    color: Array  # (n, count * C), where the weight counts


class Places(NamedTuple):
    """Where samples lie, (rows, count) each; rows are those that somebody works at."""

    cell: Array  # lowest of the eight voxels around a sample
    u: Array  # its place between them
    v: Array
    w: Array


class Back(NamedTuple):
    """The way back along the samples, (rows, count) each, as in `Places`."""

    q: Array  # dL/dw_i, and in its place the gradient of the densities' values
    part: Array  # w_i q_i
    slope: Array  # delta_i d sigma / d value


class Pixels(NamedTuple):
    """What was rendered."""

    rgb: Array  # (n, C)
    opacity: Array  # (n,)
    depth: Array  # (n,)
    emptiness: Array  # (n,) sum_i log(1 + beta w_i)


class PixelGradients(NamedTuple):
    """The loss' gradients, for what was rendered."""

    rgb: Array  # (n, C)
    opacity: Array  # (n,)
    depth: Array  # (n,)
    emptiness: Array  # (n,)
    weight: Array  # (n, count); (0, count) where no loss looks at single weights


def add(array: Array, place: Any, value: np.float32) -> None:
    """array[place] += value, as the target does it: a CPU's threads have arrays of their own."""
    array[place] += value


@overload(add, target="cpu")
def _add_on_cpu(array: Array, place: Any, value: np.float32) -> Any:
    def plain(array: Array, place: Any, value: np.float32) -> None:
        array[place] += value

    return plain


@inlined
def samples_inside(rays: Rays, r: int, count: int) -> int:
    """How many of the count intervals begin inside the chord."""
    # On a GPU `ceil` is a float64
    inside = np.int32(math.ceil(rays.chord[r] / rays.step + (ONE - rays.first)))
    return inside if inside < count else count  # type: ignore[return-value]


@inlined
def interval(rays: Rays, r: int, i: int) -> tuple[np.float32, np.float32]:
    """Middle (distance from the origin) and length of interval i."""
    start = max(real(i - 1) + rays.first, ZERO) * rays.step
    end = min((real(i) + rays.first) * rays.step, rays.chord[r])
    return rays.near[r] + HALF * (start + end), max(end - start, ZERO)


@inlined
def locate(rays: Rays, grid: Grid, places: Places, p: int, r: int, begin: int, end: int) -> None:
    """Finds the voxels around each sample."""
    side, top = grid.side, real(grid.side - 1)
    last = np.int32(side - 2)
    scale, center = HALF * real(side) / grid.half_length, HALF * real(side) - HALF
    x0, dx = rays.origins[r, 0] * scale + center, rays.directions[r, 0] * scale
    y0, dy = rays.origins[r, 1] * scale + center, rays.directions[r, 1] * scale
    z0, dz = rays.origins[r, 2] * scale + center, rays.directions[r, 2] * scale
    cell, u, v, w = places.cell[p], places.u[p], places.v[p], places.w[p]
    for i in range(begin, end):
        distance, _ = interval(rays, r, i)
        x = min(max(x0 + dx * distance, ZERO), top)
        y = min(max(y0 + dy * distance, ZERO), top)
        z = min(max(z0 + dz * distance, ZERO), top)
        ix, iy, iz = min(np.int32(x), last), min(np.int32(y), last), min(np.int32(z), last)
        cell[i] = (iz * side + iy) * side + ix
        u[i], v[i], w[i] = x - real(ix), y - real(iy), z - real(iz)


@inlined
def exp(x: np.float32) -> np.float32:
    """exp to 2e-7 relative in [-87, 87]. Unlike a call of libm it leaves loops vectorisable."""
    x = real(-87) if x < real(-87) else (real(87) if x > real(87) else x)  # NaN stays NaN
    n = real(math.floor(x * real(1.44269504) + HALF))
    t = x - n * real(0.693359375) + n * real(2.12194440e-4)  # ln 2 in two parts
    p = real(1 / 720) * t + real(1 / 120)
    p = ((((p * t + real(1 / 24)) * t + real(1 / 6)) * t + HALF) * t + ONE) * t + ONE
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def log1p(z: np.float32) -> np.float32:
    """log(1 + z) = 2 artanh(z / (2 + z)) to float32's precision, for z in [0, 1]."""
    s = z / (TWO + z)
    q = s * s
    p = ((real(1 / 13) * q + real(1 / 11)) * q + real(1 / 9)) * q + real(1 / 7)
    return TWO * s * (((p * q + real(1 / 5)) * q + real(1 / 3)) * q + ONE)


@inlined
def log_above(z: np.float32) -> np.float32:
    """log(1 + z) for any z from 0, without a call: 1 + z is (1 + f) 2^e with f in [0, 1]."""
    bits = real(ONE + z).view(np.int32)
    e = np.int32((bits >> np.int32(23)) - np.int32(127))
    f = z if e == 0 else np.int32(bits - (e << np.int32(23))).view(np.float32) - ONE
    return real(e) * real(0.6931471806) + log1p(f) + ZERO * z  # NaN stays NaN


@inlined
def densities(
    grid: Grid, places: Places, p: int, samples: Samples, r: int, begin: int, end: int
) -> None:
    """sigma_i = softplus(value exp(d_scale) + shift), kept in `weight` for the time being."""
    d, row = grid.density, index(grid.side)
    layer = row * row
    value, slope, scale = samples.weight[r], samples.slope[r], grid.density_scale[0]
    for i in range(begin, end):
        low = index(places.cell[p, i])
        high = low + layer
        u, v, w = places.u[p, i], places.v[p, i], places.w[p, i]
        a = d[low] + u * (d[low + NEXT] - d[low])
        b = d[low + row] + u * (d[low + row + NEXT] - d[low + row])
        e = d[high] + u * (d[high + NEXT] - d[high])
        f = d[high + row] + u * (d[high + row + NEXT] - d[high + row])
        a += v * (b - a)
        e += v * (f - e)
        value[i] = a + w * (e - a)
    for i in range(begin, end):
        y = value[i] * scale + grid.density_shift
        small = exp(-abs(y))
        value[i] = max(y, ZERO) + log1p(small)
        slope[i] = scale * (ONE if y > ZERO else small) / (ONE + small)


@inlined
def composite(rays: Rays, samples: Samples, picture: Pixels, r: int) -> None:
    """Weights from densities, and what they say of the ray."""
    weight, transmittance = samples.weight[r], samples.transmittance[r]
    count = weight.shape[0]
    inside = samples_inside(rays, r, count)
    for i in range(inside):  # alpha, and what is let through
        _, delta = interval(rays, r, i)
        optical = weight[i] * delta
        passed = exp(-optical)
        thin = optical - HALF * optical * optical
        weight[i] = thin if optical < real(2e-3) else ONE - passed
        transmittance[i] = passed
    light, opacity, depth = ONE, ZERO, ZERO
    for i in range(inside):
        distance, _ = interval(rays, r, i)
        w = light * weight[i]
        light *= transmittance[i]
        weight[i], transmittance[i] = w, light
        opacity += w
        depth += w * distance
    for i in range(inside, count):
        weight[i] = ZERO
    emptiness = ZERO
    if rays.emptiness_scale > ZERO:
        for i in range(inside):
            emptiness += log_above(rays.emptiness_scale * weight[i])
    picture.emptiness[r] = emptiness
    picture.opacity[r] = opacity
    picture.depth[r] = depth + light * rays.background_depth


@inlined
def corners(
    u: np.float32, v: np.float32, w: np.float32, share: np.float32
) -> tuple[np.float32, ...]:
    """`share` of a value for each of the eight voxels around it, x fastest."""
    back = share * w
    front = share - back
    front_top, back_top = front * v, back * v
    front, back = front - front_top, back - back_top
    a, b, c, d = front * u, front_top * u, back * u, back_top * u
    return front - a, a, front_top - b, b, back - c, c, back_top - d, d


@inlined
def mix(color: Array, low: int, row: int, shares: tuple[np.float32, ...], c: int) -> np.float32:
    """Channel c of the eight voxels around a sample, weighted."""
    a, b, e, f, g, h, k, m = shares
    high = low + row * row
    near = a * color[low, c] + b * color[low + NEXT, c]
    near += e * color[low + row, c] + f * color[low + row + NEXT, c]
    far = g * color[high, c] + h * color[high + NEXT, c]
    return near + far + k * color[high + row, c] + m * color[high + row + NEXT, c]


@inlined
def add_scalars(
    array: Array,
    row: int,
    share: np.float32,
    color: tuple[np.float32, ...],
    channels: tuple[int, ...],
) -> None:
    """array[row] += share * color, channel by channel: additions on a GPU are atomic."""
    c0, c1, c2, c3 = color
    add(array, (row, 0), share * c0)
    add(array, (row, 1), share * c1)
    add(array, (row, 2), share * c2)
    if len(channels) == 4:
        add(array, (row, 3), share * c3)


@intrinsic
def _add_vector(
    typing: Any, array: Any, row: Any, share: Any, color: Any, channels: Any
) -> tuple[Any, Any]:
    """The same as one load, multiply-add and store, which Numba does not make of scalars."""
    vector, lane = ir.VectorType(ir.FloatType(), len(channels)), ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, share, color, _ = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        first = builder.gep(data, [builder.mul(row, row.type(vector.count))])
        place = builder.bitcast(first, vector.as_pointer())
        colors = shares = ir.Constant(vector, ir.Undefined)
        for c in range(vector.count):
            colors = builder.insert_element(colors, builder.extract_value(color, c), lane(c))
            shares = builder.insert_element(shares, share, lane(c))
        total = builder.fadd(builder.load(place, align=4), builder.fmul(shares, colors))
        builder.store(total, place, align=4)
        return context.get_dummy_value()

    return types.void(array, row, share, color, channels), generate


def add_color(array: Array, row: Any, share: Any, color: Any, channels: Any) -> None:
    """array[row] += share * color, as the target does it fastest."""
    add_scalars(array, row, share, color, channels)


overload(add_color, target="cpu")(
    lambda array, row, share, color, channels: (
        lambda array, row, share, color, channels: _add_vector(array, row, share, color, channels)
    )
)


@inlined
def colors(
    grid: Grid,
    places: Places,
    p: int,
    samples: Samples,
    picture: Pixels,
    r: int,
    begin: int,
    end: int,
) -> None:
    """rgb += sum_i w_i c_i."""
    channels = len(grid.channels)
    weight, color = samples.weight[r], samples.color[r]
    for i in range(begin, end):
        if weight[i] > LEAST_WEIGHT:
            low, at = index(places.cell[p, i]), i * channels
            shares = corners(places.u[p, i], places.v[p, i], places.w[p, i], ONE)
            c0 = mix(grid.color, low, index(grid.side), shares, 0)
            c1 = mix(grid.color, low, index(grid.side), shares, 1)
            c2 = mix(grid.color, low, index(grid.side), shares, 2)
            c3 = mix(grid.color, low, index(grid.side), shares, 3) if channels == 4 else ZERO
            color[at], color[at + 1], color[at + 2] = c0, c1, c2
            if channels == 4:
                color[at + 3] = c3
    if grid.bounded:
        for j in range(begin * channels, end * channels):
            color[j] = TWO / (ONE + exp(-color[j])) - ONE
    t0, t1, t2, t3 = ZERO, ZERO, ZERO, ZERO
    for i in range(begin, end):
        if weight[i] > LEAST_WEIGHT:
            at = i * channels
            t0 += weight[i] * color[at]
            t1 += weight[i] * color[at + 1]
            t2 += weight[i] * color[at + 2]
            if channels == 4:
                t3 += weight[i] * color[at + 3]
    add_color(picture.rgb, r, ONE, (t0, t1, t2, t3), grid.channels)


@inlined
def color_adjoint(
    rays: Rays,
    grid: Grid,
    places: Places,
    p: int,
    samples: Samples,
    given: PixelGradients,
    q: Array,
    gradient: Array,
    r: int,
    begin: int,
    end: int,
) -> None:
    """q_i = dL/dw_i, and the gradient of the colours, which is added."""
    row = index(grid.side)
    layer = row * row
    channels, color = len(grid.channels), samples.color[r]
    g0, g1, g2, g3 = given.rgb[r, 0], given.rgb[r, 1], given.rgb[r, 2], ZERO
    if channels == 4:
        g3 = given.rgb[r, 3]
    weights, out = samples.weight[r], q[p]
    deeper, emptiness = given.depth[r], given.emptiness[r] * rays.emptiness_scale
    common = given.opacity[r] - deeper * rays.background_depth
    for i in range(begin, end):
        distance, _ = interval(rays, r, i)
        out[i] = common + deeper * distance + emptiness / (ONE + rays.emptiness_scale * weights[i])
    if given.weight.shape[0] > 0:
        for i in range(begin, end):
            out[i] += given.weight[r, i]
    for i in range(begin, end):
        weight = weights[i]
        if weight > LEAST_WEIGHT:
            at = i * channels
            c0, c1, c2 = color[at], color[at + 1], color[at + 2]
            c3 = color[at + 3] if channels == 4 else ZERO
            out[i] += g0 * c0 + g1 * c1 + g2 * c2 + g3 * c3
            s0, s1, s2, s3 = weight, weight, weight, weight
            if grid.bounded:
                # d/dv (2 s - 1) = 2 s (1 - s) = (1 - c^2) / 2
                s0 *= HALF - HALF * c0 * c0
                s1 *= HALF - HALF * c1 * c1
                s2 *= HALF - HALF * c2 * c2
                s3 *= HALF - HALF * c3 * c3
            slope = s0 * g0, s1 * g1, s2 * g2, s3 * g3
            low = index(places.cell[p, i])
            high = low + layer
            a, b, c, d, e, f, g, h = corners(places.u[p, i], places.v[p, i], places.w[p, i], ONE)
            add_color(gradient, low, a, slope, grid.channels)
            add_color(gradient, low + NEXT, b, slope, grid.channels)
            add_color(gradient, low + row, c, slope, grid.channels)
            add_color(gradient, low + row + NEXT, d, slope, grid.channels)
            add_color(gradient, high, e, slope, grid.channels)
            add_color(gradient, high + NEXT, f, slope, grid.channels)
            add_color(gradient, high + row, g, slope, grid.channels)
            add_color(gradient, high + row + NEXT, h, slope, grid.channels)


@inlined
def density_factors(
    rays: Rays, samples: Samples, back: Back, p: int, r: int, begin: int, end: int
) -> None:
    """What `density_adjoint` needs, in a loop that vectorises: q_i becomes T_{i+1} q_i."""
    weight, transmittance, steep = samples.weight[r], samples.transmittance[r], samples.slope[r]
    q, part, slope = back.q[p], back.part[p], back.slope[p]
    for i in range(begin, end):
        _, delta = interval(rays, r, i)
        part[i], slope[i] = weight[i] * q[i], delta * steep[i]
        q[i] *= transmittance[i]


@inlined
def density_adjoint(back: Back, p: int, inside: int) -> None:
    """In the place of q_i the gradient of the density grid's interpolated values."""
    q, part, slope = back.q[p], back.part[p], back.slope[p]
    behind = ZERO
    for i in range(inside - 1, -1, -1):
        q[i] = slope[i] * (q[i] - behind)
        behind += part[i]


@inlined
def density_scatter(
    grid: Grid, places: Places, p: int, q: Array, gradient: Array, begin: int, end: int
) -> None:
    row = index(grid.side)
    layer = row * row
    for i in range(begin, end):
        low = index(places.cell[p, i])
        high = low + layer
        a, b, c, d, e, f, g, h = corners(places.u[p, i], places.v[p, i], places.w[p, i], q[p, i])
        add(gradient, low, a)
        add(gradient, low + NEXT, b)
        add(gradient, low + row, c)
        add(gradient, low + row + NEXT, d)
        add(gradient, high, e)
        add(gradient, high + NEXT, f)
        add(gradient, high + row, g)
        add(gradient, high + row + NEXT, h)


@inlined
def one_ray(count: int) -> Places:
    """Memory for the places of one ray's samples."""
    scratch = np.empty((3, 1, count), np.float32)
    return Places(np.empty((1, count), np.int32), scratch[0], scratch[1], scratch[2])


@compiled
def forward(
    begin: int, end: int, rays: Rays, grid: Grid, samples: Samples, picture: Pixels
) -> None:
    """Renders rays begin...end on the CPU."""
    count = samples.weight.shape[1]
    places = one_ray(count)
    for r in range(begin, end):
        inside = samples_inside(rays, r, count)
        locate(rays, grid, places, 0, r, 0, inside)
        densities(grid, places, 0, samples, r, 0, inside)
        composite(rays, samples, picture, r)
        colors(grid, places, 0, samples, picture, r, 0, inside)


@inlined
def colored_layers(
    places: Places, samples: Samples, r: int, inside: int, layer: int
) -> tuple[int, int]:
    """From which layer of voxels along z to which a ray's colours reach; (0, 0) without any.

    z only rises or only falls along a ray: its first and its last colour tell.
    """
    weight, first, last = samples.weight[r], 0, inside - 1
    while first < inside and not weight[first] > LEAST_WEIGHT:
        first += 1
    while last > first and not weight[last] > LEAST_WEIGHT:
        last -= 1
    if first == inside:
        return 0, 0
    enter, leave = places.cell[0, first] // layer, places.cell[0, last] // layer
    return min(enter, leave), max(enter, leave) + 2


@compiled
def backward(
    begin: int,
    end: int,
    rays: Rays,
    grid: Grid,
    samples: Samples,
    given: PixelGradients,
    density_gradient: Array,
    color_gradient: Array,
) -> tuple[int, int]:
    """The gradients of rays begin...end on the CPU, from cleared memory to what they are.

    That of colours only within the layers from...to that are returned, those that colours reach:
    a converged scene has clear space around, and memory is what threads wait for.
    """
    layer = grid.side * grid.side
    density_gradient[:] = ZERO  # here, so that threads do it side by side
    low, high = 0, 0
    count = samples.weight.shape[1]
    places, scratch = one_ray(count), np.empty((3, 1, count), np.float32)
    back = Back(scratch[0], scratch[1], scratch[2])
    for r in range(begin, end):
        inside = samples_inside(rays, r, count)
        locate(rays, grid, places, 0, r, 0, inside)
        bottom, top = colored_layers(places, samples, r, inside, layer)
        if top > bottom:
            if low == high:
                low, high = bottom, bottom
            color_gradient[min(bottom, low) * layer : low * layer] = ZERO
            color_gradient[high * layer : max(top, high) * layer] = ZERO
            low, high = min(bottom, low), max(top, high)
        color_adjoint(rays, grid, places, 0, samples, given, back.q, color_gradient, r, 0, inside)
        density_factors(rays, samples, back, 0, r, 0, inside)
        density_adjoint(back, 0, inside)
        density_scatter(grid, places, 0, back.q, density_gradient, 0, inside)
    return low, high
