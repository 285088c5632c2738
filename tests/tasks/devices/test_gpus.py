"""What torch says when it cannot use a GPU, and what we make of it."""

from pathlib import Path

import pytest
import torch

from flows.errors import UsageError
from flows.plan import check_devices, missing_gpus
from tasks.devices import gpus

# As c10/cuda/CUDAFunctions.cpp raises them
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU"
    " driver by downloading and installing a new version from the URL:"
    " http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to"
    " install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed"
    " a driver from http://www.nvidia.com/Download/index.aspx"
)
NO_GPU = "No CUDA GPUs are available"
MISMATCH = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling"
    " NumCudaDevices() that might have already set an error? Error 803: system has unsupported"
    " display driver / cuda driver combination"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose torch is built for CUDA 13, and which is no container."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(gpus, "in_container", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def found(machine: pytest.MonkeyPatch, text: str) -> gpus.Gpus:
    def init() -> None:
        raise RuntimeError(text)

    machine.setattr(torch.cuda, "init", init)
    gpus.find_gpus.cache_clear()
    machine.setattr("flows.plan.find_gpus", gpus.find_gpus.__wrapped__)
    result = gpus.find_gpus.__wrapped__()
    assert result.count == 0
    return result


@pytest.mark.parametrize(
    ("text", "visible", "container", "problem", "fix"),
    [
        (TOO_OLD, None, False, "the NVIDIA driver knows CUDA 12.8, too old for torch 2.13.0+cu130",
         "update the driver, or install a torch that is built for CUDA 12"),
        (NO_GPU, "", False, "CUDA_VISIBLE_DEVICES is '', which hides all GPUs",
         "unset it, or give it numbers that `nvidia-smi -L` lists"),
        (NO_DRIVER, None, True, "this container has no GPU, though torch 2.13.0+cu130 could use",
         "start it with `--gpus all` (Kubernetes: the limit nvidia.com/gpu)"),
        (NO_GPU, None, True, "this container has no GPU", "start it with `--gpus all`"),
        (NO_DRIVER, None, False, "torch 2.13.0+cu130 finds no NVIDIA driver",
         "install the driver, if this machine has a GPU"),
        (MISMATCH, None, False, "cannot start CUDA: Unexpected error from cudaGetDeviceCount()",
         "see whether `nvidia-smi` lists it; after an update of the driver, restart the machine"),
    ],
)  # fmt: skip
def test_why_there_is_no_gpu_and_what_to_do(
    machine: pytest.MonkeyPatch, text: str, visible: str | None, container: bool, problem: str,
    fix: str,
) -> None:  # fmt: skip
    if visible is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine.setattr(gpus, "in_container", lambda: container)
    result = found(machine, text)
    assert problem in result.problem
    assert result.fix.startswith(fix)
    with pytest.raises(UsageError) as refused:
        check_devices(["cuda:0"])
    assert str(refused.value) == f"--devices: there is no cuda:0; {result.problem}; {result.fix}"
    assert check_devices(None) == ["cpu"]
    [warning] = missing_gpus(None)
    assert warning.startswith(f"no GPU is used: {result.problem}; {result.fix}")
    assert missing_gpus(["cpu"]) == []


def test_a_machine_without_a_gpu_is_no_reason_to_warn(machine: pytest.MonkeyPatch) -> None:
    """A torch for the CPU, as this one; beside a driver it is the wrong one."""
    machine.setattr(torch.version, "cuda", None)
    driver = False
    machine.setattr(gpus.shutil, "which", lambda name: driver and "/usr/bin/nvidia-smi")
    assert found(machine, "Torch not compiled with CUDA enabled") == gpus.Gpus(0)
    with pytest.raises(UsageError, match="there is no cuda:1; torch sees 0 GPUs"):
        check_devices(["cpu", "cuda:1"])
    assert missing_gpus(None) == []
    driver = True
    result = found(machine, "Torch not compiled with CUDA enabled")
    assert "is built for the CPU" in result.problem
    assert "https://pytorch.org" in result.fix


def test_every_gpu_is_a_device(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "init", lambda: None)
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    machine.setattr("flows.plan.find_gpus", gpus.find_gpus.__wrapped__)
    assert check_devices(None) == ["cuda:0", "cuda:1"]
    assert check_devices(["cuda", "cpu"]) == ["cuda:0", "cpu"]
    with pytest.raises(UsageError, match="there is no cuda:2; torch sees 2 GPUs"):
        check_devices(["cuda:2"])
    assert missing_gpus(None) == []


def test_a_container_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.Path, "exists", lambda path: path == Path("/.dockerenv"))
    assert gpus.in_container()
    monkeypatch.setattr(gpus.Path, "exists", lambda path: False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert not gpus.in_container()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert gpus.in_container()
