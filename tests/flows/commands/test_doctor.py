"""`sjc doctor` finds what is broken, says what to do, makes nothing, and never breaks itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from certificates import write_certificates
from fault_proxy import FaultProxy

from flows.commands import doctor
from flows.commands.doctor import Check, examine
from flows.prefect_server import server
from tasks.devices.gpus import Gpus
from tasks.store import locks

NO_NETWORK = {"HF_HUB_OFFLINE": "1", "AWS_EC2_METADATA_DISABLED": "true", "COLUMNS": "300"}


def sjc(folder: Path, *arguments: str, before: str = "pass", **environment: str) -> Any:
    code = f"import sys; {before}; sys.argv = ['sjc', 'doctor', *{arguments!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", code + "from flows.commands.main import main; main()"],
        cwd=folder,
        env={**os.environ, **NO_NETWORK, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def named(found: list[dict[str, str]], check: str) -> dict[str, str]:
    (finding,) = (f for f in found if f["check"] == check)
    return finding


@pytest.mark.slow
def test_a_good_machine(tmp_path: Path) -> None:
    said = sjc(tmp_path, "--json")
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads(said.stdout)
    assert not [f for f in found if f["status"] == "problem"]
    checks = {f["check"] for f in found}
    assert {"python", "packages", "torch", "renderer", "cpu", "memory", "toybox", "judge toybox",
            "ffmpeg", "xatlas", "store", "scratch folder", "Prefect",
            "model hub"} <= checks  # fmt: skip
    assert metadata.version("torch") in named(found, "torch")["detail"]
    assert "fused kernels" in named(found, "renderer")["detail"]
    assert "not there yet" in named(found, "store")["detail"]
    assert all((f["fix"] == "") == (f["status"] == "ok") for f in found)
    assert list(tmp_path.iterdir()) == [], "nothing was made"


@pytest.mark.slow
def test_a_bad_machine_has_no_traceback(tmp_path: Path) -> None:
    """A missing library, a store below a file, a dead server: each is a line, and the code is 1."""
    (tmp_path / "file").touch()
    said = sjc(
        tmp_path, "--store", "file/store", "--scratch", "file/x", "--json",
        before="sys.modules['torch'] = sys.modules['pyarrow'] = None",
        PREFECT_API_URL="http://127.0.0.1:9/api",
    )  # fmt: skip
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    found = json.loads(said.stdout)
    bad = {f["check"]: f for f in found if f["status"] == "problem"}
    assert "torch" in bad["devices"]["detail"]
    assert "PREFECT_API_URL" in bad["Prefect"]["fix"]
    assert "cannot be made" in bad["scratch folder"]["detail"]
    assert all(finding["fix"] for finding in bad.values())
    assert named(found, "toybox")["status"] == "ok"


def test_a_dead_server_and_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (found,) = doctor.prefect_server()
    assert (found.status, "unset PREFECT_API_URL" in found.fix) == ("problem", True)
    monkeypatch.setattr(server, "answers", lambda url, timeout: True)
    (found,) = doctor.prefect_server()
    assert found.status == "ok"


def test_a_version_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "2.0.0" if name == "prefect" else real(name)
    )
    (bad,) = (f for f in doctor.versions() if f.status == "problem")
    assert (bad.check, bad.detail[:13]) == ("prefect", "2.0.0, and <4")
    assert bad.fix.startswith('pip install "prefect<4,>=')


def test_without_what_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    (found, _) = doctor.programs()
    assert (found.check, found.status, "ffmpeg version" in found.detail) == ("ffmpeg", "ok", True)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "imageio_ffmpeg", raising=False)
    (ffmpeg, xatlas) = doctor.programs()
    assert (ffmpeg.check, ffmpeg.status) == ("ffmpeg", "ok")
    assert "not installed: assets have thumbnail.webp; for turntable.mp4" in ffmpeg.detail
    assert (xatlas.check, xatlas.status) == ("xatlas", "warning")
    assert (xatlas.detail, xatlas.fix[:18]) == (
        "not installed: meshes get vertex colours", "pip install xatlas",
    )  # fmt: skip


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = doctor.local_store(tmp_path / "file" / "store")
    assert (found.status, "choose another --store" in found.fix) == ("problem", True)
    (found,) = doctor.local_store(tmp_path / "file")
    assert found.status == "problem"


def test_where_locks_hold_on_one_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = doctor.local_store(tmp_path)
    assert (found.status, "leases: file locks; " in found.detail) == ("ok", True)
    assert [found.status for found in doctor.scratch_folder(tmp_path)] == ["ok"]
    (tmp_path / "mounts").write_text("1 0 0:1 / / rw - lustre x rw,localflock")
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    (found,) = doctor.local_store(tmp_path)
    expire = "leases: files that expire (lustre, mounted with localflock); "
    assert (found.status, expire in found.detail) == ("ok", True)
    (_, shared) = doctor.scratch_folder(tmp_path)
    assert (shared.status, "no two machines" in shared.fix) == ("warning", True)
    monkeypatch.setenv("SJC_LEASES", "no")
    (found,) = doctor.local_store(tmp_path)
    assert (found.status, "set it to locks or to files" in found.fix) == ("problem", True)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage(tmp_path)
    for free, status in ((doctor.NO_DISK // 2, "problem"), (doctor.NO_DISK * 2, "warning")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, n=free: usage._replace(free=n))
        (found,) = doctor.local_store(tmp_path)
        assert (found.status, "free space" in found.fix) == (status, True)


def test_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sjc_engine.priors import sources

    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model.safetensors").write_text("version https://git-lfs.github.com/")
    monkeypatch.setattr(sources, "BUILTINS", {"toybox": tmp_path / "prior"})
    shutil.copytree(sources.JUDGES["toybox"], tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").write_text("version https://git-lfs.github.com/")
    monkeypatch.setattr(sources, "JUDGES", {"toybox": tmp_path / "judge"})
    found = list(doctor.embedded())
    assert [(f.check, f.status) for f in found] == [
        ("toybox", "problem"),
        ("judge toybox", "problem"),
    ]
    assert "model.safetensors is a git-lfs pointer" in found[1].detail


def test_a_bucket(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    found = list(doctor.s3_store("s3://toys/x"))
    assert [(f.check, f.status) for f in found] == [
        ("credentials", "ok"),
        ("endpoint", "ok"),
        ("store", "ok"),
    ]
    assert "testing-secret" not in str(found)
    (*_, missing) = doctor.s3_store("s3://no-such-bucket/x")
    assert (missing.status, "create it" in missing.fix) == ("problem", True)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (nobody,) = doctor.s3_store("s3://toys/x")
    assert (nobody.check, nobody.status) == ("credentials", "problem")
    assert "AWS_PROFILE" in nobody.fix


@pytest.mark.parametrize("bucket", ["toys", "no-such-bucket"])
def test_a_wrong_clock(bucket: str, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer of the server has a date, also a refusal."""
    (_, clock, *_) = doctor.s3_store(f"s3://{bucket}/x")
    assert re.search("clocks differ by [0-5] s", clock.detail)
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() + 4000))
    (_, clock, *_) = doctor.s3_store(f"s3://{bucket}/x")
    assert (clock.check, clock.status, "clock" in clock.fix) == ("endpoint", "problem", True)
    assert re.search("clocks differ by (3999|400[0-9]) s", clock.detail)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle", None])
def test_a_bucket_behind_its_own_certificate_authority(
    setting: str | None, bucket_url: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    authority = certificates / "ca.pem"
    if setting == "ca_bundle":
        Path(os.environ["AWS_CONFIG_FILE"]).write_text(f"[default]\nca_bundle = {authority}\n")
    elif setting:
        monkeypatch.setenv(setting, str(authority))
    server = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    pair = (certificates / "server.pem", certificates / "server.key")
    with FaultProxy((str(server.hostname), server.port or 0), pair) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        found = list(doctor.s3_store("s3://toys/x"))
    if setting:
        assert [(f.check, f.status) for f in found][1:] == [("endpoint", "ok"), ("store", "ok")]
    else:
        assert [(f.check, f.status) for f in found][1:] == [("endpoint", "problem")]
        assert "CERTIFICATE_VERIFY_FAILED" in found[1].detail
        assert "AWS_CA_BUNDLE" in found[1].fix


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("tasks.devices.gpus.find_gpus", lambda: Gpus(2))
    monkeypatch.setattr("torch.version.cuda", "12.8")
    return monkeypatch


def test_the_kernels_are_tried_on_every_gpu_for_colours_and_latents(
    two_gpus: pytest.MonkeyPatch,
) -> None:
    problem = "CudaAPIError: [222] Call to cuLinkAddData results in UNSUPPORTED_PTX_VERSION"

    def reason(device: torch.device, channels: int) -> str:
        return problem if (device.index, channels) == (1, 4) else ""

    two_gpus.setattr("sjc_engine.rendering.fused.device_unavailable_reason", reason)
    versions = {"cuda-bindings": "13.0.3"}
    two_gpus.setattr(metadata, "version", versions.__getitem__)
    good, bad = doctor.renderer()
    assert (good.status, "cuda:0" in good.detail) == ("ok", True)
    assert (bad.status, bad.detail) == (
        "warning", f"plain torch on cuda:1, which is slower: {problem}"
    )  # fmt: skip
    assert bad.fix == (
        'pip install --upgrade "sjc-foundry[cuda12]":'
        " torch is built for CUDA 12, and numba-cuda for CUDA 13"
    )
    versions["cuda-bindings"] = "12.9.4"
    *_, bad = doctor.renderer()
    assert bad.fix == 'pip install --upgrade "sjc-foundry[cuda12]"'


def test_a_full_gpu_says_nothing_about_its_kernels(two_gpus: pytest.MonkeyPatch) -> None:
    def reason(device: torch.device, channels: int) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nSee ...")

    two_gpus.setattr("sjc_engine.rendering.fused.device_unavailable_reason", reason)
    first, _ = doctor.renderer()
    assert first.detail == "no memory on cuda:0 for a try: " + (
        "CUDA out of memory. Tried to allocate 2.00 MiB."
    )


def test_a_gpu_that_does_not_answer_is_one_line(two_gpus: pytest.MonkeyPatch) -> None:
    def properties(name: str) -> SimpleNamespace:
        if name == "cuda:1":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA ...")
        return SimpleNamespace(name="NVIDIA H200")

    two_gpus.setattr(torch.cuda, "get_device_properties", properties)
    two_gpus.setattr(torch.cuda, "mem_get_info", lambda name: (130 << 30, 139 << 30))
    torch_line, good, bad = doctor.devices()
    assert torch_line.detail.endswith("2 GPUs")
    assert (good.check, good.status) == ("cuda:0", "ok")
    assert (bad.check, bad.status) == ("cuda:1", "problem")
    assert bad.detail == "does not work: CUDA error: uncorrectable ECC error encountered"


def test_no_check_takes_longer_than_it_may() -> None:
    def hangs() -> doctor.Results:
        time.sleep(30)
        yield Check("never", "ok", "")

    started = time.monotonic()
    good = Check("good", "ok", "")
    checks = {"known": lambda: iter([good]), "slow": hangs, "good": lambda: iter([good])}
    checks["later"] = lambda: iter([time.sleep(1.5) or good])  # type: ignore[func-returns-value]
    results = examine(checks, 1.0, {"later": 25.0})
    assert next(results) == good
    assert time.monotonic() - started < 0.9, "a result is shown while others are waited for"
    found = list(results)
    assert time.monotonic() - started < 5
    assert [(f.check, f.status) for f in found] == [
        ("slow", "problem"),
        ("good", "ok"),
        ("good", "ok"),
    ]
