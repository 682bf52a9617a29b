"""Finds the jobs whose messages Redis has. Scripts read the messages in Redis: their senders choose their sizes."""

from collections.abc import Iterator
from itertools import chain
from typing import Any
from uuid import UUID

from inference_service.contract.task_message import MAX_MESSAGE_BYTES
from inference_service.jobs.queues.celery_app import App, open_channel, redis_key, shares_of_tenants
from inference_service.jobs.queues.lists import all_lists

_MAX_MESSAGES_READ = 100_000
_PAGE_SIZE = 200
# The header of a message that the service has sent. Of others, nothing is known before they are taken.
_JOB_ID = """
local four = string.rep('%x', 4)
local header = '"id": *"(' .. four .. four .. string.rep('%-' .. four, 4) .. four .. four .. ')"'

local function add_job_id(ids, message)
  if #message <= tonumber(ARGV[3]) then ids[#ids + 1] = string.match(message, header) end
end
"""
# KEYS: a list. ARGV: first and last position, most bytes of a message. Returns the number of messages, ids of jobs.
_READ_QUEUE = (
    _JOB_ID
    + """
local messages = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local ids = {}
for _, message in ipairs(messages) do add_job_id(ids, message) end
return {#messages, ids}
"""
)
# KEYS: the hash of unacknowledged messages, and their times. ARGV: cursor, size of the page, most bytes of a message,
# longest time since a message was taken. Returns the next cursor, the number of messages, ids of jobs.
_READ_UNACKNOWLEDGED = (
    _JOB_ID
    + """
local cursor, page = unpack(redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]))
local since = redis.call('TIME')[1] - ARGV[4]
local ids = {}
for i = 1, #page, 2 do
  local taken = redis.call('ZSCORE', KEYS[2], page[i])
  if not taken or tonumber(taken) >= since then add_job_id(ids, page[i + 1]) end
end
return {cursor, #page / 2, ids}
"""
)


def find_waiting_jobs(app: App, *, taken_within_s: int) -> set[UUID] | None:
    """Reads the ids of the jobs whose messages Redis has, in a queue or taken recently and not acknowledged.

    Args:
        app: The Celery application.
        taken_within_s: Messages that were taken earlier are left out. A worker claims a job soon after it has taken its
            message; if it has not, it was lost on the way to the worker or with it.

    Returns:
        None if there are too many messages to read.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    job_ids: set[UUID] = set()
    messages = 0
    with open_channel(app) as channel:
        # A message that is taken meanwhile is found after its queue, among those that are not acknowledged.
        queues = _pages_of_queues(app, channel.client)
        for count, ids in chain(queues, _pages_of_unacknowledged(channel, taken_within_s)):
            messages += count
            if messages > _MAX_MESSAGES_READ:
                return None
            job_ids.update(UUID(job_id.decode()) for job_id in ids)
    return job_ids


def _pages_of_queues(app: App, client: Any) -> Iterator[tuple[int, list[bytes]]]:
    for name in all_lists(shares_of_tenants(app)):
        start = 0
        count = _PAGE_SIZE
        # From the newest message to the oldest, which is taken first: new ones shift the others towards the end.
        while count:
            last = start + _PAGE_SIZE - 1
            count, ids = client.eval(_READ_QUEUE, 1, redis_key(app, name), start, last, MAX_MESSAGE_BYTES)
            yield count, ids
            start += count


def _pages_of_unacknowledged(channel: Any, taken_within_s: int) -> Iterator[tuple[int, list[bytes]]]:
    cursor = b"0"
    while True:
        cursor, count, ids = channel.client.eval(
            _READ_UNACKNOWLEDGED,
            2,
            channel.unacked_key,
            channel.unacked_index_key,
            cursor,
            _PAGE_SIZE,
            MAX_MESSAGE_BYTES,
            taken_within_s,
        )
        yield count, ids
        if cursor == b"0":
            return
