"""LPIPS against a straight reading of its formula, on checkpoints in the published layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sjc_engine.evaluation.lpips import load_lpips, save_lpips
from sjc_engine.priors.sources import lpips_error


def alexnet(channels: tuple[int, ...]) -> nn.Sequential:
    """torchvision's AlexNet().features, with other numbers of channels."""
    a, b, c, d, e = channels
    return nn.Sequential(
        nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16(channels: tuple[int, ...]) -> nn.Sequential:
    """torchvision's vgg16().features, likewise."""
    layers: list[nn.Module] = []
    before = 3
    for after, times in zip(channels, (2, 2, 3, 3, 3), strict=True):
        for _ in range(times):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


NETWORKS = {
    "alex": (alexnet, (4, 6, 5, 5, 3), (1, 4, 7, 9, 11)),
    "vgg": (vgg16, (3, 4, 4, 5, 6), (3, 8, 15, 22, 29)),
}


def make(folder: Path, network: str, seed: int = 0) -> tuple[nn.Sequential, list[Tensor]]:
    """Random weights, saved; returns them as the packages have them."""
    torch.manual_seed(seed)
    build, channels, _ = NETWORKS[network]
    features = build(channels)
    lins = [torch.rand(1, count, 1, 1) for count in channels]
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2, 2)  # what comes after the features is not used
    save_lpips(folder, network, state, {f"lin{n}.model.1.weight": w for n, w in enumerate(lins)})
    return features, lins


@torch.no_grad()
def reference(
    features: nn.Sequential, lins: list[Tensor], taps: tuple[int, ...], a: Tensor, b: Tensor
) -> float:
    """Equation 1 for one pair of pictures, pixel by pixel."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y = ((image - shift) / scale for image in (a, b))
    total = 0.0
    for number, layer in enumerate(features[: taps[-1] + 1]):
        x, y = layer(x[None])[0], layer(y[None])[0]
        if number in taps:
            weights = lins[taps.index(number)].flatten()
            height, width = x.shape[1:]
            for row in range(height):
                for column in range(width):
                    p, q = x[:, row, column], y[:, row, column]
                    difference = p / (p.norm() + 1e-10) - q / (q.norm() + 1e-10)
                    total += float((weights * difference**2).sum()) / (height * width)
    return total


@pytest.mark.parametrize("network", NETWORKS)
def test_the_distance_is_the_papers(network: str, tmp_path: Path) -> None:
    features, lins = make(tmp_path, network)
    lpips = load_lpips(str(tmp_path))
    a, b = torch.rand(2, 3, 40, 40) * 2 - 1, torch.rand(2, 3, 40, 40) * 2 - 1
    taps = NETWORKS[network][2]
    wanted = [reference(features, lins, taps, *pair) for pair in zip(a, b, strict=True)]
    assert lpips(a, b).tolist() == pytest.approx(wanted, rel=1e-4)
    assert min(wanted) > 0.01
    assert lpips(b, a).tolist() == pytest.approx(wanted, rel=1e-4)
    assert lpips(a, a).tolist() == [0.0, 0.0]


def test_weights_are_recorded_by_what_they_are(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        make(tmp_path / name, "alex", seed)
    one, same, other = (load_lpips(str(tmp_path / n)).revision for n in ("one", "same", "other"))
    assert one == same != other


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'nowhere' cannot be loaded \(there is no.*docs/tables"):
        load_lpips("nowhere")
    assert "is not a folder" in str(lpips_error("nowhere"))
    make(tmp_path, "alex")
    assert lpips_error(str(tmp_path)) is None
    (tmp_path / "config.json").write_text('{"network": "vgg"}')
    assert "its model: model.safetensors lacks" in str(lpips_error(str(tmp_path)))
    with pytest.raises(ValueError, match=r"features\.2\.weight is missing|another shape"):
        load_lpips(str(tmp_path))
    (tmp_path / "config.json").write_text('{"network": "squeeze"}')
    with pytest.raises(ValueError, match="network 'squeeze' is unknown"):
        load_lpips(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_lpips(str(tmp_path))


def test_half_of_the_weights_are_refused(tmp_path: Path) -> None:
    features = {f"features.{k}": v for k, v in alexnet((4, 6, 5, 5, 3)).state_dict().items()}
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight is missing"):
        save_lpips(tmp_path, "alex", features, {})
    lins = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate((4, 6, 5, 5, 3))}
    del features["features.6.bias"]
    with pytest.raises(ValueError, match=r"features\.6\.bias is missing"):
        save_lpips(tmp_path, "alex", features, lins)
    with pytest.raises(ValueError, match="use alex or vgg"):
        save_lpips(tmp_path, "squeeze", features, lins)
