"""What loading a prior leaves behind in memory."""

import sys
from pathlib import Path

import pytest
import tiny_priors
from safetensors.torch import load_file, save_file

from sjc_engine.priors.denoiser import load_prior


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_in_another_precision_do_not_stay_in_memory(tmp_path):
    """Libraries leave the mapped files in cycles of references."""
    folder = tiny_priors.build_latent_prior(tmp_path / "prior")
    for path in folder.rglob("*.safetensors"):
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path, {"format": "pt"})
    prior = load_prior(str(folder))
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert prior.precision == "float32"
