"""One optimisation step of the paper, written down equation by equation and nothing else.

It shares no code with the engine. Everything is in float64 and one ray at a time; random numbers
are arguments. Gradients are autograd's of these lines.
"""

from __future__ import annotations

import math

import torch

WORDS = {"front": "front view of", "side": "side view of", "back": "backside view of"}


def stable_diffusion_sigmas():
    """sqrt((1 - abar) / abar) of the scaled-linear schedule, 1000 ticks."""
    abar, sigmas = 1.0, []
    for k in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * k / 999
        abar *= 1 - root**2
        sigmas.append(math.sqrt((1 - abar) / abar))
    return sigmas


# Camera


def camera(uniforms, overhead):
    """Eye, axes, field of view (radians) and the words for what is seen, from three uniforms.

    The polar angle is drawn up to 100 degrees and bent so that the sphere's area is covered
    evenly. "official" asks the drawn angle whether the view is from overhead.
    """
    turn, height, zoom = uniforms
    azimuth, drawn = 360 * turn, 100 * height
    polar = math.degrees(math.acos(1 - 2 * drawn / 180))
    p, a = math.radians(polar), math.radians(azimuth)
    outward = [-math.sin(p) * math.cos(a), math.cos(p), math.sin(p) * math.sin(a)]  # front: -X
    outward = torch.tensor(outward, dtype=torch.float64)
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), outward)
    right = right / right.norm()
    up = torch.linalg.cross(outward, right)
    if (polar if overhead == "elevation" else drawn) < 30:
        words = "overhead view of"
    elif azimuth < 45 or azimuth >= 315:
        words = WORDS["front"]
    else:
        words = WORDS["back"] if 135 <= azimuth < 225 else WORDS["side"]
    return 1.5 * outward, (right, up, outward), math.radians(40 + 30 * zoom), words


def directions(axes, fov, size):
    """Unit directions through the centres of size x size pixels, row by row."""
    right, up, outward = axes
    found = []
    for row in range(size):
        for column in range(size):
            x = (column + 0.5 - size / 2) / (size / 2) * math.tan(fov / 2)
            y = -(row + 0.5 - size / 2) / (size / 2) * math.tan(fov / 2)
            ray = x * right + y * up - outward
            found.append(ray / ray.norm())
    return found


def chord(eye, ray, half):
    """Where the ray enters the box [-half, half]^3, and how long it stays inside."""
    enter, leave = 0.0, math.inf
    for o, d in zip(eye.tolist(), ray.tolist(), strict=True):
        first, second = sorted([(-half - o) / d, (half - o) / d])
        enter, leave = max(enter, first), min(leave, second)
    return enter, max(0.0, leave - enter)


# Field


def trilinear(grid, points, half):
    """Values (samples, C) of a grid (C, Z, Y, X) of voxel centres; the border's go on outside."""
    count = grid.shape[-1]
    where = ((points / half + 1) * count / 2 - 0.5).clamp(0, count - 1)  # (samples, 3), in voxels
    low = where.floor().long().clamp(max=count - 2)
    part = where - low
    values = 0
    for dx in (0, 1):
        for dy in (0, 1):
            for dz in (0, 1):
                x, y, z = low[:, 0] + dx, low[:, 1] + dy, low[:, 2] + dz
                corner = [part[:, k] if d else 1 - part[:, k] for k, d in enumerate((dx, dy, dz))]
                values = values + corner[0] * corner[1] * corner[2] * grid[:, z, y, x]
    return values.T


def background_color(texture, ray):
    """The 4 x 4 texture (C, V, U) on the sphere in this direction, 0 beyond its border."""
    x, y, z = ray.tolist()
    u = math.acos(max(-1.0, min(1.0, z))) / math.pi * 4 - 0.5
    v = (math.atan2(y, x) / math.pi + 1) / 2 * 4 - 0.5
    color = 0
    for column in (math.floor(u), math.floor(u) + 1):
        for row in (math.floor(v), math.floor(v) + 1):
            if 0 <= column < 4 and 0 <= row < 4:
                share = (1 - abs(u - column)) * (1 - abs(v - row))
                color = color + share * texture[:, row, column]
    return color


# Volume rendering


def render(theta, eye, axes, fov, size, step, half):
    """Picture (C, size, size), depths (size, size) and the weights of all samples of all rays.

    A chord is cut into intervals of length `step`, the last one shorter; each has the density and
    colour of its middle. All rays have as many samples as the longest, those outside of weight 0.
    """
    rays = directions(axes, fov, size)
    chords = [chord(eye, ray, half) for ray in rays]
    samples = math.ceil(max(length for _, length in chords) / step)
    colors, depths, weights = [], [], []
    for ray, (enter, length) in zip(rays, chords, strict=True):
        starts = [min(k * step, length) for k in range(samples + 1)]
        starts = torch.tensor(starts, dtype=torch.float64)
        delta = starts[1:] - starts[:-1]
        distance = enter + (starts[1:] + starts[:-1]) / 2
        points = eye + distance[:, None] * ray
        value = trilinear(theta["density"], points, half)[:, 0]
        sigma = torch.log1p(torch.exp(value * theta["d_scale"].exp() - 1))  # softplus
        alpha = 1 - torch.exp(-sigma * delta)
        through = torch.cumprod(torch.cat([torch.ones(1, dtype=alpha.dtype), 1 - alpha]), 0)
        w = through[:-1] * alpha
        color = (w[:, None] * trilinear(theta["color"], points, half)).sum(0)
        colors.append(color + through[-1] * background_color(theta["background"], ray))
        depths.append((w * distance).sum() + through[-1] * 10.0)  # what leaves the box ends at 10
        weights.append(w)
    picture = torch.stack(colors).T.view(-1, size, size)
    return picture, torch.stack(depths).view(size, size), torch.stack(weights)


# Score, losses, gradient


def score(denoise, x, sigma, noise, words, guidance, eq):
    """PAAS with one noise sample: eq. 15 is (D(z) - z) / sigma^2, eq. 16 (D(z) - x) / sigma^2."""
    z = x + sigma * noise
    without, with_words = denoise(z, sigma, ""), denoise(z, sigma, words)
    d = without + guidance * (with_words - without)
    return (d - (x if eq == 16 else z)) / sigma**2


def center_depth(depth, form):
    """The border is 7 of 64 pixels wide. "official" is as published, NaN in value and all."""
    size = len(depth)
    edge = max(1, round(size * 7 / 64))
    middle = depth[edge:-edge, edge:-edge]
    border = (depth.sum() - middle.sum()) / (size**2 - (size - 2 * edge) ** 2)
    if form == "official":
        return -torch.log(middle.mean() - border + 1e-12)
    difference = border - middle.mean()
    if difference > 0.1:
        return -torch.log(difference)
    return -math.log(0.1) + (0.1 - difference) / 0.1


def gradients(theta, uniforms, tick, noise, step_number, denoise, prompt, r):
    """Every quantity of one step, and d(loss) / d(theta)."""
    for value in theta.values():
        value.requires_grad_().grad = None
    eye, axes, fov, words = camera(uniforms, r.overhead_prompt)
    x, depth, weights = render(theta, eye, axes, fov, r.render_size, r.ray_step, r.half_length)
    sigma = stable_diffusion_sigmas()[tick]
    with torch.no_grad():
        paas = score(
            denoise,
            x,
            sigma,
            noise,
            f"{words} {prompt}",
            r.guidance_scale,
            16 if r.variance_reduction else 15,
        )
    x.backward(-sigma * paas, retain_graph=True)  # the Jacobian's turn: uphill along sigma PAAS
    emptiness = torch.log(1 + r.emptiness_scale * weights).mean()
    late = step_number >= r.emptiness_step * r.steps
    weight = r.emptiness_weight * (r.emptiness_multiplier if late else 1)
    (weight * emptiness).backward(retain_graph=True)
    (r.depth_weight * center_depth(depth, r.depth_loss)).backward()
    found = {name: value.grad for name, value in theta.items()}
    return found, {
        "picture": x.detach(),
        "depth": depth.detach(),
        "emptiness": emptiness.item(),
        "score": (sigma * paas).square().mean().sqrt().item(),
    }


class Adamax:
    """Kingma and Ba 2015, algorithm 2, with PyTorch's epsilon."""

    def __init__(self, theta, rates):
        self.rates, self.t = rates, 0
        self.m = {name: torch.zeros_like(value) for name, value in theta.items()}
        self.u = {name: torch.zeros_like(value) for name, value in theta.items()}

    def step(self, theta, gradient):
        self.t += 1
        for name, g in gradient.items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.u[name] = torch.maximum(0.999 * self.u[name], g.abs() + 1e-8)
            rate = self.rates[name] / (1 - 0.9**self.t)
            theta[name] = (theta[name] - rate * self.m[name] / self.u[name]).detach()
