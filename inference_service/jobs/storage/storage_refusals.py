"""The public sentence for each way in which an object storage refuses a request, with its remedy."""

_DENIED = "the object storage denies access ({code}): check the access key, the secret key and the rights of its policy"
_FULL = "the object storage is full ({code}): free space, or raise the quota"
_SLOW = "the object storage is overloaded ({code}): run fewer workers, or make it faster"
_REGION = "the object storage is in another region ({code}): check MINIO_REGION"
_TOO_LARGE = "the object storage, or a proxy before it, refuses an object of this size ({code}): raise its limit"
_BY_CODE = {
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "InvalidAccessKeyId": "the object storage does not know the access key ({code}): check MINIO_ACCESS_KEY",
    "SignatureDoesNotMatch": "the object storage refuses the secret key ({code}): check MINIO_SECRET_KEY",
    "ExpiredToken": "the credentials of the object storage have expired ({code}): renew them",
    "InvalidToken": "the credentials of the object storage are not valid ({code}): renew them",
    "RequestTimeTooSkewed": "the clocks of this machine and of the object storage differ by more than 15 minutes "
    "({code}): synchronise them",
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "PermanentRedirect": _REGION,
    "InvalidBucketName": "the object storage does not accept the bucket's name ({code})",
    "MethodNotAllowed": "MINIO_ENDPOINT does not allow the requests of S3 ({code}): it may be a console",
    "EntityTooLarge": _TOO_LARGE,
    "SlowDown": _SLOW,
    "SlowDownRead": _SLOW,
    "SlowDownWrite": _SLOW,
    "TooManyRequests": _SLOW,
    "ServiceUnavailable": _SLOW,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
}
# Of answers that are not S3's, as those of a proxy.
_BY_STATUS = {
    401: _DENIED,
    403: _DENIED,
    413: _TOO_LARGE,
    429: _SLOW,
    503: _SLOW,
    507: _FULL,
}


def refusal(code: str | None, status: int) -> str:
    """Returns the sentence for an answer.

    Args:
        code: The code in the answer; None if the answer is not S3's.
        status: The HTTP status.

    >>> refusal("SlowDown", 503)
    'the object storage is overloaded (SlowDown): run fewer workers, or make it faster'
    """
    if code is not None:
        return _BY_CODE.get(code, "the object storage refuses: {code}").format(code=code)
    generic = "the object storage does not answer as S3 does (HTTP {code}): check MINIO_ENDPOINT and MINIO_SECURE"
    return _BY_STATUS.get(status, generic).format(code=status)
