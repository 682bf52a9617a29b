"""The public sentence for each way in which Redis refuses a command, with its remedy."""

import re

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.sentinel import MasterNotFoundError

NO_ANSWER = "Redis does not answer"
_PASSWORD = "Redis refuses the password, or asks for one"
CLUSTER = "Redis is a cluster, which the service does not support: use a single server, with or without Sentinel"
_DENIED = "Redis denies this user a command or a key (NOPERM): give it the rights of deploy/identities/redis-users.sh"
_REPLICA = "Redis is a replica and takes no writes (READONLY): REDIS_URL must name the primary"
# The first class that an error belongs to decides.
_BY_CLASS: tuple[tuple[type[RedisError], str], ...] = (
    (
        MasterNotFoundError,
        "the sentinels name no primary of Redis: wait for the end of a failover, or check the addresses in REDIS_URL, "
        "REDIS_SENTINEL_MASTER, REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD",
    ),
    (BusyLoadingError, "Redis loads its data from disk (LOADING): wait until it is ready"),
    (AuthenticationError, _PASSWORD),
    (AuthorizationError, _PASSWORD),
    (NoPermissionError, _DENIED),
    (OutOfMemoryError, "Redis is full (OOM): raise its maxmemory, or wait until workers have taken messages"),
    (ReadOnlyError, _REPLICA),
    (MasterDownError, "Redis is a replica that has lost its primary (MASTERDOWN)"),
    (MovedError, CLUSTER),
    (AskError, CLUSTER),
    (ClusterCrossSlotError, CLUSTER),
    (ClusterDownError, CLUSTER),
)
# Codes at the start of an error's text, for which redis-py has no class.
_BY_CODE = {
    "MISCONF": "Redis cannot save its data and takes no writes (MISCONF): see its log and its disk",
    "NOREPLICAS": "Redis takes no writes without its replicas (NOREPLICAS): start them",
    "BUSY": "Redis is busy with a script (BUSY)",
    "WRONGTYPE": "a queue's key in Redis is not a list (WRONGTYPE): remove the key",
    "NOPERM": _DENIED,
    "READONLY": _REPLICA,
    "CROSSSLOT": CLUSTER,
    # "SELECT is not allowed in cluster mode", and "DB index is out of range".
    "SELECT": CLUSTER,
    "DB": "Redis has no database of the number in REDIS_URL: 0 is always there",
}
# In a pipeline, redis-py puts the command before the text of the server.
_CODE = re.compile(r"(?:.*caused error: )?([A-Z]{2,})\b", re.DOTALL)
_NO_CONNECTION_LEFT = "max number of clients"


def refusal(error: BaseException) -> str:
    """Returns the sentence for an error of Redis, or of kombu that was caused by one.

    It quotes no text of the server, which may repeat a part of a message.

    >>> refusal(ResponseError("MISCONF Redis is configured to save RDB snapshots, but ..."))[:59]
    'Redis cannot save its data and takes no writes (MISCONF): s'
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RedisError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return NO_ANSWER
    if _NO_CONNECTION_LEFT in str(cause):
        return "Redis has no connection left: raise its maxclients"
    for kind, sentence in _BY_CLASS:
        if isinstance(cause, kind):
            return sentence
    if not isinstance(cause, ResponseError):
        return NO_ANSWER
    code = _CODE.match(str(cause))
    return _BY_CODE.get(code[1], f"Redis refuses a command ({code[1]})") if code else "Redis refuses a command"
