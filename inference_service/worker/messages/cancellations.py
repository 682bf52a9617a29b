"""Cancels the jobs that messages name, for upstreams that do not reach Postgres.

The messages have a list of their own, so that they do not wait behind jobs. Each is removed only after its job's row is
written: a worker that dies in between loses none, and to cancel a job twice changes nothing.
"""

import logging

from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import App, open_channel, redis_key
from inference_service.jobs.queues.lists import CANCELLATIONS, keys_of
from inference_service.worker.messages.message_check import NoJob, cancelled_job

logger = logging.getLogger(__name__)

# Forks of child processes wait for a sweep.
_MAX_AT_ONCE = 100
_MAX_ITEM_BYTES = 16 * 1024
# KEYS: the lists. ARGV: most items, most bytes of an item. Removes longer items.
# Returns the number of removed items, and the oldest of the others, each after its list.
_READ = """
local room, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local removed, found = 0, {}
if redis.call('EXISTS', unpack(KEYS)) == 0 then return {removed, found} end
for _, list in ipairs(KEYS) do
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'list' and kind ~= 'none' then redis.call('DEL', list) end
  local position = -1
  while removed + #found / 2 < room do
    local item = redis.call('LINDEX', list, position)
    if not item then break end
    if #item > limit then
      redis.call('LREM', list, -1, item)
      removed = removed + 1
    else
      found[#found + 1] = list
      found[#found + 1] = item
      position = position - 1
    end
  end
end
return {removed, found}
"""


def cancel_by_messages(app: App, database: Database) -> None:
    """Cancels the jobs of the oldest messages, a bounded number at a time.

    Raises:
        QueueUnavailable: Redis does not answer or refuses. Messages that it still has are read again.
        DatabaseUnavailable: Postgres does not answer. The messages stay.
    """
    lists = keys_of(redis_key(app, CANCELLATIONS))
    with open_channel(app) as channel:
        client = channel.client
        removed, found = client.eval(_READ, len(lists), *lists, _MAX_AT_ONCE, _MAX_ITEM_BYTES)
        if removed:
            logger.error("dropped %d cancellation(s) of more than %d bytes", removed, _MAX_ITEM_BYTES)
        for key, item in zip(found[::2], found[1::2], strict=True):
            if _is_done(database, item):
                client.lrem(key, -1, item)


def _is_done(database: Database, item: bytes) -> bool:
    """Cancels the job of a message; returns whether the message has done its work, or can do none."""
    try:
        job_id = cancelled_job(item)
    except NoJob as error:
        logger.error("dropped a cancellation of %d bytes: %s", len(item), error)
        return True
    if not job_store.cancel_by_message(database, job_id):
        logger.warning("job %s: not cancelled yet: another session has locked its row", job_id)
        return False
    logger.info("job %s: cancellation requested by a message", job_id)
    return True
