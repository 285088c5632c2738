"""What the store has acknowledged, and whether it still holds every bit of it.

It reads stores by itself, past the product and past the faults: files of a folder, or boto3 at
the server itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.exceptions import ClientError


class Shelf(Protocol):
    """A store, seen from outside."""

    def asset_ids(self) -> set[str]: ...

    def read(self, key: str) -> bytes | None:
        """The content; None when there is no such key."""

    def stamp(self, key: str) -> str:
        """What changes whenever the key is written again, even with the same content."""

    def keys(self, prefix: str) -> Iterator[str]: ...

    def write(self, key: str, data: bytes) -> None: ...

    def delete(self, key: str) -> None: ...

    def litter(self) -> list[str]:
        """Temporary files and half uploads."""

    def leave_litter(self, folder: str) -> None:
        """What a writer leaves that dies within a write below `folder`."""


class Folder:
    """A local store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def asset_ids(self) -> set[str]:
        return {path.name for path in self.root.glob("assets/*")}

    def read(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def stamp(self, key: str) -> str:
        status = (self.root / key).stat()
        return f"{status.st_mtime_ns} {status.st_ino}"

    def keys(self, prefix: str) -> Iterator[str]:
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def write(self, key: str, data: bytes) -> None:
        temporary = self.root.with_name("temporary")
        temporary.write_bytes(data)
        temporary.replace(self.root / key)

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def litter(self) -> list[str]:
        found = (path for path in self.root.rglob(".*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)

    def leave_litter(self, folder: str) -> None:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / folder / ".mesh.glb.0badf00d").write_bytes(b"glTF\x02\0\0\0 torn")


class Bucket:
    """A store on an S3 server, at the server's own address."""

    def __init__(self, bucket: str, prefix: str, endpoint: str) -> None:
        self.bucket, self.prefix = bucket, prefix + "/"
        self.client = boto3.client("s3", endpoint_url=endpoint)

    def asset_ids(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}assets/", Delimiter="/"
        )
        folders = (found["Prefix"] for page in pages for found in page.get("CommonPrefixes", []))
        return {folder.split("/")[-2] for folder in folders}

    def read(self, key: str) -> bytes | None:
        try:
            reply = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise
        return reply["Body"].read()

    def stamp(self, key: str) -> str:
        reply = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        return f"{reply['ETag']} {reply['LastModified']}"

    def keys(self, prefix: str) -> Iterator[str]:
        for key in self._all(prefix):
            if not any(part.startswith(".") for part in key.split("/")):
                yield key

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def litter(self) -> list[str]:
        found = [key for key in self._all("") if key.rpartition("/")[2].startswith(".")]
        reply = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
        return found + [f"{u['Key']} (multipart upload)" for u in reply.get("Uploads", [])]

    def leave_litter(self, folder: str) -> None:
        key = f"{self.prefix}{folder}/mesh.glb"
        upload = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)
        self.client.upload_part(
            Bucket=self.bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"torn"
        )

    def _all(self, prefix: str) -> Iterator[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix
        )
        for page in pages:
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self.prefix)


@dataclass(frozen=True)
class Acknowledged:
    """An asset as it was when its commit marker was first seen: SHA-256 and stamp by key."""

    files: dict[str, tuple[str, str]]


class Ledger:
    """Every asset that was ever seen committed; `log` keeps it for whoever looks into a failure."""

    def __init__(self, shelf: Shelf, log: Path) -> None:
        self.shelf, self.log = shelf, log
        self.assets: dict[str, Acknowledged] = {}
        self.problems: list[str] = []  # of assets that were not whole when they were committed

    def look(self) -> None:
        """Enters assets that were committed since."""
        for asset_id in sorted(self.shelf.asset_ids() - self.assets.keys()):
            key = f"assets/{asset_id}/manifest.json"
            if (content := self.shelf.read(key)) is not None:
                self._enter(asset_id, key, content)

    def _enter(self, asset_id: str, key: str, content: bytes) -> None:
        promised: dict[str, Any] = json.loads(content)["files"]
        files = {key: (_sha256(content), self.shelf.stamp(key))}
        for name, about in sorted(promised.items()):
            file = f"assets/{asset_id}/{name}"
            if (data := self.shelf.read(file)) is None:
                self.problems.append(f"{file}: committed, but it is not there")
            elif (len(data), _sha256(data)) != (about["bytes"], about["sha256"]):
                self.problems.append(f"{file}: committed, but it is not whole")
            else:
                files[file] = (about["sha256"], self.shelf.stamp(file))
        self.assets[asset_id] = Acknowledged(files)
        with self.log.open("a") as log:
            log.write(json.dumps({"asset": asset_id, "files": files}) + "\n")

    def check(self) -> list[str]:
        """What is no longer as it was acknowledged."""
        problems = list(self.problems)
        for asset in self.assets.values():
            for key, (sha256, stamp) in asset.files.items():
                if (data := self.shelf.read(key)) is None:
                    problems.append(f"{key}: acknowledged, and lost")
                elif _sha256(data) != sha256:
                    problems.append(f"{key}: acknowledged, and changed since")
                elif self.shelf.stamp(key) != stamp:
                    problems.append(f"{key}: acknowledged, and written again since")
        return problems


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
