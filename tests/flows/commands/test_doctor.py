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
from certificates import write_certificates
from fault_proxy import FaultProxy

from flows.commands import doctor
from flows.commands.doctor import Check, examine
from flows.prefect_server import server

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


def test_a_version_that_breaks_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.160.0" if name == "fastapi" else real(name)
    )
    (bad,) = (f for f in doctor.versions() if f.status == "problem")
    assert (bad.check, "keep Prefect's server from starting" in bad.detail) == ("fastapi", True)
    assert '"fastapi<0.151,>=0.139"' in bad.fix


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = doctor.local_store(tmp_path / "file" / "store")
    assert (found.status, "choose another --store" in found.fix) == ("problem", True)
    (found,) = doctor.local_store(tmp_path / "file")
    assert found.status == "problem"


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


def test_no_check_takes_longer_than_it_may() -> None:
    def hangs() -> doctor.Results:
        time.sleep(30)
        yield Check("never", "ok", "")

    started = time.monotonic()
    good = Check("good", "ok", "")
    checks = {"known": lambda: iter([good]), "slow": hangs, "good": lambda: iter([good])}
    results = examine(checks, deadline=1.0)
    assert next(results) == good
    assert time.monotonic() - started < 0.9, "a result is shown while others are waited for"
    found = list(results)
    assert time.monotonic() - started < 5
    assert [(f.check, f.status) for f in found] == [("slow", "problem"), ("good", "ok")]
