import math

import pytest
import torch
import torch.nn.functional as F

from sjc_engine.fields.kinds import load_field
from sjc_engine.fields.voxel import VoxelField


def centres(field):
    """Voxel centres (N, N, N, 3) in [z, y, x] order, each point x first."""
    n, h = field.resolution, field.half_length
    line = -h + (torch.arange(n) + 0.5) * 2 * h / n
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def random_field(channels=3, space="rgb", n=6):
    generator = torch.Generator().manual_seed(0)
    field = VoxelField(n, channels, 0.7, space=space, generator=generator)
    with torch.no_grad():
        field.density.normal_(generator=generator)
        field.d_scale.fill_(0.3)
    return field


@pytest.mark.parametrize("space", ["rgb", "latent"])
def test_values_at_voxel_centres_are_the_grids(space):
    field = random_field(4, space)
    points = centres(field)
    sigma, color = field.sample(points.view(-1, 3))
    torch.testing.assert_close(sigma.view(6, 6, 6), field.density_grid())
    grid = field.color[0] if space == "latent" else 2 * torch.sigmoid(field.color[0]) - 1
    torch.testing.assert_close(color.T.reshape(4, 6, 6, 6), grid)
    torch.testing.assert_close(field.sigma(points.view(-1, 3)), sigma)
    torch.testing.assert_close(field.rgb(points.view(-1, 3)), color)


def test_activations_are_those_of_the_paper():
    field = random_field()
    expected = F.softplus(field.density[0, 0] * math.exp(0.3) - 1)
    torch.testing.assert_close(field.density_grid(), expected)


def test_interpolation_is_trilinear():
    """A linear function of position is reproduced exactly between the outermost centres."""
    field = random_field(3, "latent")
    weights = torch.tensor([[1.0, 2.0, -0.5], [0.3, -1.0, 0.0], [0.0, 0.2, 0.9]])
    with torch.no_grad():
        field.color.copy_((centres(field) @ weights.T).movedim(-1, 0)[None])
    generator = torch.Generator().manual_seed(1)
    points = (torch.rand(50, 3, generator=generator) - 0.5) * 2 * 0.7 * 5 / 6
    torch.testing.assert_close(field.rgb(points), points @ weights.T, atol=1e-5, rtol=1e-5)


def test_nothing_is_outside_the_box():
    field = random_field()
    points = torch.tensor([[0.69, 0.0, 0.0], [0.71, 0.0, 0.0], [0.0, -0.71, 0.0], [0.0, 0.0, 5.0]])
    sigma = field.sigma(points)
    assert sigma[0] > 0
    assert (sigma[1:] == 0).all()
    torch.testing.assert_close(field.aabb.float(), torch.tensor([[-0.7] * 3, [0.7] * 3]))


def test_background_is_a_texture_on_the_sphere():
    field = random_field(space="latent")
    with torch.no_grad():
        # Rows follow the azimuth around z, columns the angle from z.
        field.background.zero_()
        field.background[0, 0, :, 0] = 1.0  # the cap around +z
        field.background[0, 1, 3] = 1.0  # the quarter just below azimuth pi
    directions = F.normalize(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, -1.0], [-1.0, 0.4, 0.2]]))
    colors = field.background_rgb(directions)
    assert colors[0, 0] > 0.4
    assert colors[1, 0] == 0
    assert colors[2, 1] > 0.4


def test_same_generator_same_field():
    def color(seed):
        return VoxelField(4, generator=torch.Generator().manual_seed(seed)).color

    assert torch.equal(color(1), color(1))
    assert not torch.equal(color(1), color(2))


def test_saving_is_bit_stable(tmp_path):
    field = random_field(4, "latent")
    field.save(tmp_path / "a")
    loaded = load_field(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (loaded.space, loaded.half_length, loaded.channels) == ("latent", 0.7, 4)
    torch.testing.assert_close(loaded.density_grid(), field.density_grid(), atol=2e-3, rtol=2e-3)
    assert loaded.d_scale == field.d_scale


def test_values_beyond_half_precision_are_refused(tmp_path):
    field = random_field()
    with torch.no_grad():
        field.density[0, 0, 0, 0, 0] = 1e6
    with pytest.raises(OverflowError, match="density"):
        field.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x08" + bytes(7) + b"{}"])
def test_a_file_that_is_no_field_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a field"):
        load_field(path)


def test_a_truncated_field_is_refused(tmp_path):
    random_field().save(tmp_path / "a")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a field"):
        load_field(tmp_path / "b")


def test_resampling_keeps_the_scene_in_place():
    field = random_field(3, "latent", n=4)
    with torch.no_grad():
        field.color.copy_(centres(field).movedim(-1, 0)[None])
    field.resample(8)
    assert field.resolution == 8
    assert field.color.requires_grad
    inner = (slice(None), *[slice(1, -1)] * 3)  # the border has nothing to interpolate with
    expected = centres(field).movedim(-1, 0)
    torch.testing.assert_close(field.color[0][inner], expected[inner])


@pytest.mark.parametrize("arguments", [(1,), (8, 0), (8, 3, 0.0)])
def test_impossible_fields_are_refused(arguments):
    with pytest.raises(ValueError, match="a field needs"):
        VoxelField(*arguments)
