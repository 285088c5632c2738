"""Adamax in one pass over memory: torch's own is the oracle, bit for bit."""

import copy

import pytest
import torch

from sjc_engine.cpu_tuning import flush_subnormals
from sjc_engine.fields.plenoxels import PlenoxelField
from sjc_engine.fields.voxel import VoxelField
from sjc_engine.optimization.adamax import OnePassAdamax
from sjc_engine.optimization.optimizer import make_optimizer
from sjc_engine.optimization.resume import put_state, state_tensors
from sjc_engine.recipes import Recipe

RECIPE = Recipe.for_prior("owner/name").optimize


def make_field(channels=4, side=9):
    generator = torch.Generator().manual_seed(2)
    return VoxelField(side, channels, space="latent", generator=generator)


def with_torch(field):
    """A copy of a field, and torch's optimiser over it with the same groups."""
    twin = copy.deepcopy(field)
    groups = make_optimizer(twin, RECIPE).param_groups
    return twin, torch.optim.Adamax([{"params": g["params"], "lr": g["lr"]} for g in groups])


def step(field, optimizer, scale, seed):
    """A step down gradients of this size, a third of them zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        slope = scale * torch.randn(parameter.shape, generator=generator)
        mask = torch.rand(parameter.shape, generator=generator) > 1 / 3
        parameter.grad = torch.zeros_like(parameter).copy_(slope * mask)
    optimizer.step()


def assert_same(field, optimizer, twin, torchs):
    found, wanted = state_tensors(field, optimizer), state_tensors(twin, torchs)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
        assert tensor.stride() == wanted[name].stride(), name


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("scales", [[1.0] * 5, [1e30, 0, 0, 1e-8, 1], [1e-30, 1e-37, 1e-42, 0, 1]])
def test_numbers_and_state_are_those_of_torch(channels, scales):
    flush_subnormals()  # as in every step
    field = make_field(channels)
    twin, torchs = with_torch(field)
    optimizer = make_optimizer(field, RECIPE)
    assert isinstance(optimizer, OnePassAdamax)
    for seed, scale in enumerate(scales):
        step(field, optimizer, scale, seed)
        step(twin, torchs, scale, seed)
        assert_same(field, optimizer, twin, torchs)


def test_a_checkpoint_of_either_resumes_with_the_other():
    field = make_field()
    twin, torchs = with_torch(field)
    step(twin, torchs, 1.0, seed=0)
    optimizer = make_optimizer(field, RECIPE)
    put_state(field, optimizer, state_tensors(twin, torchs))
    step(field, optimizer, 1.0, seed=1)
    step(twin, torchs, 1.0, seed=1)
    assert_same(field, optimizer, twin, torchs)
    put_state(twin, torchs, state_tensors(field, optimizer))
    step(field, optimizer, 1.0, seed=2)
    step(twin, torchs, 1.0, seed=2)
    assert_same(field, optimizer, twin, torchs)


def test_a_gradient_laid_out_otherwise_is_that_gradient():
    field = make_field()
    twin, torchs = with_torch(field)
    optimizer = make_optimizer(field, RECIPE)
    for other, its in ((field, optimizer), (twin, torchs)):
        other.color.grad = torch.arange(other.color.numel()).view_as(other.color).float()
        its.step()
    assert field.color.grad.stride() != field.color.stride()
    assert_same(field, optimizer, twin, torchs)


def test_what_the_kernels_do_not_render_is_left_to_torch():
    for field in (PlenoxelField(6, 3, 0.7), make_field(3).double()):
        assert not isinstance(make_optimizer(field, RECIPE), OnePassAdamax)
