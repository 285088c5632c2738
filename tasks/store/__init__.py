"""The store, opened by its address; `tasks.store.interface` defines it."""

from __future__ import annotations

from pathlib import Path

from tasks.store.interface import Damaged, NotInStore, Store, StoreError, check_address
from tasks.store.local import LocalStore

__all__ = ["Damaged", "NotInStore", "Store", "StoreError", "open_store"]


def open_store(
    url: str | Path, *, writable: bool = True, option: str = "--store", foreign: bool = False
) -> Store:
    """Open the store at `url`: a directory, or ``s3://bucket/prefix``.

    With `writable` a local directory is made when it is missing, and one small write proves that
    results can be kept: an unusable store is found here, before any work. option: what named the
    store on the command line, for messages. foreign: what is read there is not this program's, so
    that its keys may be any; on S3 only.
    """
    text = str(url)
    check_address(text, "a store's address", f"{option} s3://bucket/prefix")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(Path(text), writable=writable, option=option)
    if scheme == "s3":
        # boto3 takes half a second to import; a local store does not pay for it.
        from tasks.store.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix, writable=writable, foreign=foreign)
    raise StoreError(f"{text} is not a store", "use a directory or s3://bucket/prefix")
