import math

import pytest
import torch

from sjc_engine.guidance.view_prompts import view_prompt, view_prompts
from sjc_engine.rendering.camera import evaluation_cameras, nearby, orbit, rays, ring, sample_camera


@pytest.mark.parametrize(
    ("azimuth", "elevation", "eye"),
    [
        (0, 0, (-1.5, 0, 0)),
        (90, 0, (0, 0, 1.5)),
        (180, 0, (1.5, 0, 0)),
        (270, 0, (0, 0, -1.5)),
        (0, 90, (0, 1.5, 0)),
        (0, -90, (0, -1.5, 0)),
    ],
)
def test_eye_is_where_the_convention_puts_it(azimuth, elevation, eye):
    pose = orbit(azimuth, elevation).camera_to_world
    torch.testing.assert_close(pose[:3, 3], torch.tensor(eye, dtype=torch.float64))


@pytest.mark.parametrize("azimuth", [0, 37, 200])
@pytest.mark.parametrize("elevation", [-90, -20, 0, 60, 90])
def test_pose_is_a_rotation_that_looks_at_the_origin_with_up_upwards(azimuth, elevation):
    pose = orbit(azimuth, elevation, radius=2.0).camera_to_world
    turn = pose[:3, :3]
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(turn) == pytest.approx(1.0)
    torch.testing.assert_close(pose[:3, 3], 2.0 * turn[:, 2])  # backwards is away from the origin
    assert turn[1, 1] >= -1e-12  # the picture's up never points down
    assert turn[1, 0] == 0  # the horizon is level


def test_rays_go_through_the_pixels_of_a_pinhole_camera():
    """Oracle: project points on the rays with the pinhole equation, written from scratch."""
    camera = orbit(30, 20, radius=1.7, fov_deg=55)
    height, width = 6, 10
    origins, directions = rays(camera, height, width, dtype=torch.float64)
    points = origins + 1.3 * directions
    world_to_camera = torch.linalg.inv(camera.camera_to_world)
    local = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    focal = width / 2 / math.tan(math.radians(55) / 2)
    x = focal * local[:, 0] / -local[:, 2] + width / 2
    y = height / 2 - focal * local[:, 1] / -local[:, 2]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    torch.testing.assert_close(x, columns.reshape(-1) + 0.5, check_dtype=False)
    torch.testing.assert_close(y, rows.reshape(-1) + 0.5, check_dtype=False)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(60, dtype=torch.float64))


def test_jitter_shifts_a_ray_by_pixels():
    camera = orbit(0, 0)
    jitter = torch.zeros(4, 4, 2)
    jitter[1, 1] = torch.tensor([1.0, 2.0])  # one to the right, two down
    _, plain = rays(camera, 4, 4)
    _, moved = rays(camera, 4, 4, jitter)
    torch.testing.assert_close(moved[5], plain[3 * 4 + 2])
    torch.testing.assert_close(moved[6], plain[6])


def test_training_cameras_are_uniform_over_the_area_of_the_sphere():
    generator = torch.Generator().manual_seed(0)
    cameras = [sample_camera(generator) for _ in range(4000)]
    heights = torch.tensor([math.sin(math.radians(c.elevation_deg)) for c in cameras])
    lowest = 1 - 2 * 100 / 180
    assert heights.min() >= lowest - 1e-9
    expected = torch.linspace(lowest, 1, 4000)
    assert (heights.sort().values - expected).abs().max() < 0.05  # Kolmogorov-Smirnov, p ~ 1e-3
    azimuths = torch.tensor([c.azimuth_deg for c in cameras]).sort().values
    assert (azimuths / 360 - torch.linspace(0, 1, 4000)).abs().max() < 0.03
    fovs = [math.degrees(c.fov) for c in cameras]
    assert 40 <= min(fovs) < 41
    assert 69 < max(fovs) <= 70
    assert max(c.elevation_deg for c in cameras) < 90


def test_training_cameras_are_the_generators():
    one, same, other = (
        sample_camera(torch.Generator().manual_seed(seed)).camera_to_world for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_evaluation_views_are_eight_around_and_one_above():
    cameras = evaluation_cameras()
    assert [round(c.azimuth_deg, 4) for c in cameras] == [
        0,
        45,
        90,
        135,
        180,
        225,
        270,
        315,
        22.9183,
    ]
    assert [round(c.elevation_deg, 2) for c in cameras] == [12.84] * 8 + [56.44]
    assert all(math.degrees(c.fov) == pytest.approx(50) for c in cameras)


@pytest.mark.parametrize(
    ("azimuth", "paper", "sided", "detailed"),
    [
        (0, "front", "front", "front"),
        (44, "front", "front", "front left"),
        (46, "side", "left side", "front left"),
        (68, "side", "left side", "left side"),
        (134, "side", "left side", "back left"),
        (136, "backside", "backside", "back left"),
        (180, "backside", "backside", "backside"),
        (226, "side", "right side", "back right"),
        (314, "side", "right side", "front right"),
        (316, "front", "front", "front right"),
        (338, "front", "front", "front"),
    ],
)
def test_view_prompts_follow_the_azimuth(azimuth, paper, sided, detailed):
    assert view_prompt(azimuth, 10, "paper") == f"{paper} view of"
    assert view_prompt(azimuth, 10, "sided") == f"{sided} view of"
    assert view_prompt(azimuth, 10, "detailed") == f"low angle {detailed} view of"
    assert view_prompt(azimuth, 10, "none") == ""


def test_detailed_view_prompts_follow_the_elevation():
    def height(elevation):
        return view_prompt(90, elevation, "detailed").removesuffix(" left side view of")

    assert height(-6) == height(14) == "low angle"
    assert height(16) == height(34) == "mid angle"
    assert height(36) == height(59) == "high angle"
    assert height(61) == "overhead view of"


def test_overhead_rules():
    def overhead(elevation, rule):
        return view_prompt(0, elevation, overhead=rule) == "overhead view of"

    assert not overhead(59, "elevation")
    assert overhead(61, "elevation")
    # The official code compares the draw with 30 degrees before warping it: v < pi / 6 means
    # polar < acos(1 - 2 / 6).
    border = 90 - math.degrees(math.acos(2 / 3))
    assert not overhead(border - 0.01, "official")
    assert overhead(border + 0.01, "official")


def test_view_prompts_lists_all_that_can_come():
    for style in ("none", "paper", "sided", "detailed"):
        seen = {
            view_prompt(azimuth, elevation, style)
            for azimuth in range(0, 360, 30)
            for elevation in (0, 20, 50, 80)
        }
        assert seen == set(view_prompts(style))


def test_training_cameras_can_be_kept_between_two_elevations():
    generator = torch.Generator().manual_seed(0)
    cameras = [sample_camera(generator, elevation_deg=(5.0, 42.0)) for _ in range(2000)]
    elevation = torch.tensor([camera.elevation_deg for camera in cameras])
    assert 5.0 <= elevation.min() < 6.0
    assert 41.0 < elevation.max() <= 42.0
    # Uniform over the area means uniform in sin(elevation).
    rise = elevation.deg2rad().sin()
    low, high = math.sin(math.radians(5)), math.sin(math.radians(42))
    assert abs(float(rise.mean()) - (low + high) / 2) < 0.01


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (130, -14), (300, 60), (10, 89.9)])
def test_a_near_camera_is_a_step_away_in_any_direction_and_looks_at_the_origin(azimuth, elevation):
    camera = orbit(azimuth, elevation, 2.0, 49.1)
    eye, generator = camera.camera_to_world[:3, 3], torch.Generator().manual_seed(0)
    steps = []
    for _ in range(200):
        near = nearby(camera, generator)
        pose = near.camera_to_world
        assert near.fov == pytest.approx(camera.fov)
        steps.append(pose[:3, 3] - eye)
        torch.testing.assert_close(pose[:3, 2], pose[:3, 3] / pose[:3, 3].norm())
    steps = torch.stack(steps)
    torch.testing.assert_close(steps.norm(dim=1), torch.full((200,), 0.05, dtype=torch.float64))
    assert steps.mean(0).norm() < 0.01
    assert (steps.std(0) > 0.02).all()  # 0.05 / sqrt(3) in each direction


def test_a_ring_begins_at_its_camera_and_goes_on_in_equal_turns():
    first = orbit(300, 20, 2.2, 35.0)
    assert ring(first, 1) == [first]
    cameras = ring(first, 4)
    assert cameras[0] is first
    assert [camera.azimuth_deg for camera in cameras] == pytest.approx([300, 30, 120, 210])
    for camera in cameras:
        wanted = orbit(camera.azimuth_deg, 20, 2.2, 35.0)
        assert camera.fov == pytest.approx(first.fov)
        torch.testing.assert_close(camera.camera_to_world, wanted.camera_to_world)
