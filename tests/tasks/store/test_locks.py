"""Which mounts have locks that other machines obey."""

from pathlib import Path

import pytest

from tasks.store import locks

# Lines as Linux writes them; what a store at /data/my store is on comes last.
AROUND = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:22 / /data/my rw - lustre mds@tcp:/work rw
24 22 0:23 / /data rw shared:2 master:1 - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("mount", "flaw"),
    [
        ("ext4 /dev/vda rw", ""),
        ("lustre mds@tcp:/work rw,flock,lazystatfs", ""),
        ("lustre mds@tcp:/work rw,lazystatfs", "lustre, mounted without flock"),
        ("lustre mds@tcp:/work rw,localflock", "lustre, mounted with localflock"),
        ("nfs4 nas:/home rw,vers=4.2,local_lock=none,addr=1.2.3.4", ""),
        ("nfs nas:/home rw,vers=3,local_lock=posix", ""),
        ("nfs nas:/home rw,vers=3,nolock,local_lock=all", "nfs, mounted with local_lock=all"),
        ("nfs nas:/home rw,vers=3,local_lock=flock", "nfs, mounted with local_lock=flock"),
        ("ocfs2 /dev/sda rw,localflocks", "ocfs2, mounted with localflocks"),
        ("ceph mon:/ rw", ""),
        ("fuse.glusterfs gfs:/v rw,user_id=0", ""),
        ("fuse.s3fs s3fs rw", "locks of fuse.s3fs may hold on one machine alone"),
        ("9p host rw,trans=virtio", "locks of 9p may hold on one machine alone"),
    ],
)
def test_the_innermost_mount_decides(
    mount: str, flaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    line = f"25 24 0:24 / /data/my\\040store rw,noatime - {mount}\n"
    # What was mounted there before is hidden.
    locks.MOUNTS.write_text(AROUND + line.replace(mount, "lustre x rw,localflock") + line)
    assert locks.lock_flaw(Path("/data/my store/toys")) == flaw
    assert locks.lock_flaw(Path("/data/other")) == ""


@pytest.mark.parametrize("text", [None, ""])
def test_without_mounts_locks_are_tried(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    if text is not None:
        locks.MOUNTS.write_text(text)
    assert locks.lock_flaw(tmp_path) == ""
    assert list(tmp_path.glob(".*")) == [], "nothing stays there"
