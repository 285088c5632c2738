"""The way to an S3 server: a boto3 client that is known to work, and errors with their fix.

Settings are boto3's own: credentials from its default chain, the endpoint from
``AWS_ENDPOINT_URL_S3``, trusted authorities from ``AWS_CA_BUNDLE``.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from tasks.store.interface import NotInStore, StoreError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ATTEMPTS, READ_SECONDS = 5, 60  # of one request; botocore waits longer before each attempt
FIRST_ATTEMPTS, FIRST_READ_SECONDS = 3, 10  # before there is work that could be lost
CONNECT_SECONDS = 10
MISSING = {"NoSuchKey", "404"}

# What the network, or a server that is not S3, makes of a request. ValueError: a malformed
# endpoint; HTTPError: urllib3's that botocore lets through, such as a record that TLS refuses.
NETWORK_ERRORS = (
    BotoCoreError, ResponseParserError, HTTPError, ValueError, ConnectionError, TimeoutError,
)  # fmt: skip

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_AGAIN = "and run the same command again"
_EXPIRED = ("the credentials have expired", f"renew them {_AGAIN}")
_REGION = ("the bucket is in another region", "set AWS_DEFAULT_REGION to it")
_ADVICE = {  # by S3's code: what is wrong, and the fix
    "NoSuchBucket": ("the bucket does not exist", "create it or correct its name"),
    "AccessDenied": (
        "these credentials may not do that", "allow them to read, write and delete there"
    ),
    # A server's own errors have names; what botocore cannot read has this one.
    "500": ("the server answers 500, or its reply is cut short", "try again later"),
    "403": ("these credentials are wrong or may not do that", _CREDENTIALS),
    "InvalidAccessKeyId": ("the access key is unknown there", _CREDENTIALS),
    "SignatureDoesNotMatch": ("the secret key is wrong", _CREDENTIALS),
    "ExpiredToken": _EXPIRED,
    "InvalidToken": ("the session token is wrong", "renew the credentials"),
    "RequestExpired": _EXPIRED,
    "RequestTimeTooSkewed": ("this machine's clock is wrong", f"set it {_AGAIN}"),
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
}  # fmt: skip


def connect(session: boto3.Session, bucket: str, prefix: str, *, writable: bool) -> S3Client:
    """A client for `bucket`, after a look whether it can be used.

    With `writable` a small object is written, read and removed. A server that refuses or garbles
    what botocore sends with a checksum (in a trailer, over HTTPS) is sent none from then on: TLS
    guards the way to it, and each download is held against its SHA-256. How it refuses says little:
    Google's answers a checksum with a wrong signature, others with 400, 411 or 501. So a refusal
    counts only if the same request without a checksum is refused too. botocore's errors.
    """
    first = Config(
        retries={"mode": "standard", "total_max_attempts": FIRST_ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=FIRST_READ_SECONDS,
        signature_version="s3v4",
    )
    client: S3Client = session.client("s3", config=first)
    region = _check_access(client, bucket, prefix)
    work = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, read_timeout=READ_SECONDS
    )
    if writable and not _keeps_files(client, bucket, prefix):
        plain = Config(request_checksum_calculation="when_required")
        first, work = first.merge(plain), work.merge(plain)
        problem, fix = "what is written there is read back as something else", "use another server"
        try:
            kept = _keeps_files(
                session.client("s3", region, config=first), bucket, prefix, sure=True
            )
        except ClientError as error:
            if error_code(error) != "SignatureDoesNotMatch":
                raise
            # Not the secret key's fault, as S3 would have it: the same has just signed a HEAD.
            problem = "the server refuses what is written there, with and without a checksum"
            fix = "check that these credentials may write, and any proxy"
            kept = False
        if not kept:
            raise StoreError(f"Cannot use s3://{bucket}/{prefix}: {problem}", fix)
    return session.client("s3", region, config=first.merge(work))


def _check_access(client: S3Client, bucket: str, prefix: str) -> str | None:
    """The bucket's region, if the server names it: botocore follows it for this client alone."""
    try:
        headers = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        # The reply to a HEAD has no body that distinguishes a wrong clock from a wrong key.
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return headers.get("x-amz-bucket-region")


def _keeps_files(client: S3Client, bucket: str, prefix: str, *, sure: bool = False) -> bool:
    """Whether a small object comes back as it was written.

    Without `sure` a refusal is a no and not an error.
    """
    # The name starts with a dot: a probe that is left behind shows in no listing.
    key, content = f"{prefix}.probe-{secrets.token_hex(4)}", secrets.token_bytes(64)
    try:
        client.put_object(Bucket=bucket, Key=key, Body=content)
        found = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if sure or (status >= 500 and status != 501):  # a server that is busy, or broken
            raise
        return False
    client.delete_object(Bucket=bucket, Key=key)
    return found == content


def error_code(error: Exception) -> str:
    """The code of an S3 error, such as "NoSuchKey"; empty for other errors."""
    return error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""


@contextlib.contextmanager
def explained(verb: str, where: str) -> Iterator[None]:
    """Turn botocore's error into a StoreError."""
    try:
        yield
    except (ClientError, OSError, *NETWORK_ERRORS) as error:
        if error_code(error) in MISSING and verb != "list":  # a listing names no key
            problem = f"Cannot {verb} {where}: it does not exist"
            raise NotInStore(problem, "check the address") from error
        problem, fix = _problem(error)
        raise StoreError(f"Cannot {verb} {where}: {problem}", fix) from error


def _problem(error: Exception) -> tuple[str, str]:
    """What is wrong, and the fix."""
    text = " ".join(str(error).split())[:300]
    match error:
        case ClientError():
            code = error_code(error)
            return _ADVICE.get(code) or (f"the server answers {code}", "try again later")
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return "there are no complete AWS credentials", _CREDENTIALS
        case (
            exceptions.CredentialRetrievalError()
            | exceptions.SSOError()
            | exceptions.TokenRetrievalError()
        ):
            return text, f"renew the credentials {_AGAIN}"
        case exceptions.ProfileNotFound():
            return text, "correct AWS_PROFILE, or add the profile to ~/.aws/config"
        case exceptions.ParamValidationError():
            return "this is not a valid bucket", "use s3://bucket/prefix"
        case exceptions.SSLError():
            authority = "name the file of the server's certificate authority in AWS_CA_BUNDLE"
            return text, f"{authority}, or correct AWS_ENDPOINT_URL_S3"
    if isinstance(error, NETWORK_ERRORS):
        return text, "check AWS_ENDPOINT_URL_S3 and the network"
    return text, "check the local disk"
