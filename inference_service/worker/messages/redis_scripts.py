"""The Lua scripts with which a worker takes messages from Redis and gives them back, each an atomic step.

Kombu records an unacknowledged message in the hash `unacked`, under its delivery tag, as `[message, exchange, queue]`,
and its age in the sorted set `unacked_index`. The scripts keep this format, which workers of earlier versions read.
In a full Redis a script may write once it has removed something, so each removes first.
"""

# KEYS: unacked, unacked_index, then for each list its key and those of Celery's message priorities.
# ARGV: delivery tag, most bytes of an item, number of keys of each list.
# A longer item is replaced by `{"oversized": its bytes, "end": the last 4096 of them}`.
# Returns queue and item; nil if the queues are empty. As EXISTS reads their lists, Redis announces their next change.
TAKE = """
local unacked, index, tag, lists = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[3])

local function delete_unless(kind, key)
  if redis.call('TYPE', key).ok ~= kind then redis.call('DEL', key) end
end

local function take(queue, priorities)
  delete_unless('list', queue)
  local item = redis.call('RPOP', queue)
  if redis.call('EXISTS', unpack(priorities)) > 0 then
    for _, list in ipairs(priorities) do
      delete_unless('list', list)
      for _ = 1, 100 do
        local moved = redis.call('RPOP', list)
        if not moved then break end
        redis.call('LPUSH', queue, moved)
      end
    end
  end
  return item or redis.call('RPOP', queue)
end

for first = 3, #KEYS, lists do
  local queue, last = KEYS[first], first + lists - 1
  local item
  if redis.call('EXISTS', unpack(KEYS, first, last)) > 0 then
    item = take(queue, {unpack(KEYS, first + 1, last)})
  end
  if item then
    if #item > tonumber(ARGV[2]) then
      item = string.format('{"oversized":%d,"end":%s}', #item, cjson.encode(string.sub(item, -4096)))
    end
    delete_unless('hash', unacked)
    delete_unless('zset', index)
    redis.call('HSET', unacked, tag, '[' .. item .. ',"","' .. queue .. '"]')
    redis.call('ZADD', index, redis.call('TIME')[1], tag)
    return {queue, item}
  end
end
"""

_GIVE_BACK = """
local unacked, index = KEYS[1], KEYS[2]

local function give_back(tag, push)
  local value = redis.call('HGET', unacked, tag)
  redis.call('HDEL', unacked, tag)
  redis.call('ZREM', index, tag)
  local item, name = string.match(value or '', '^%[(.*),%s*"",%s*"([^"]*)"%]$')
  for i = 3, #KEYS do
    if KEYS[i] == name then
      redis.call(push, name, item)
      return true
    end
  end
  return not value
end
"""

# KEYS: unacked, unacked_index, the queues. ARGV: delivery tag; LPUSH behind all other messages, RPUSH before them.
GIVE_BACK = _GIVE_BACK + "give_back(ARGV[1], ARGV[2])"

# Gives back the messages that were taken long ago, and removes what is no message from the keys of kombu.
# KEYS: unacked, unacked_index, the queues. ARGV: least age in seconds; kombu's separator in the routes of an exchange.
# Returns the number of removed entries.
TIDY = (
    _GIVE_BACK
    + """
local removed = 0

local function delete_unless(kind, key)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    removed = removed + 1
  end
end

delete_unless('hash', unacked)
delete_unless('zset', index)
local now = tonumber(redis.call('TIME')[1])
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now - ARGV[1], 'LIMIT', 0, 1000)) do
  if not give_back(tag, 'RPUSH') then removed = removed + 1 end
end
if redis.call('HLEN', unacked) > redis.call('ZCARD', index) then
  -- Entries without an age get one. HRANDFIELD came with Redis 6.2; a full Redis refuses ZADD.
  for _, tag in ipairs(redis.pcall('HRANDFIELD', unacked, 1000)) do redis.pcall('ZADD', index, 'NX', now, tag) end
end

local separator = ARGV[2]
for i = 3, #KEYS do
  local routes = '_kombu.binding.' .. KEYS[i]
  local target = separator .. KEYS[i]
  delete_unless('set', routes)
  for _, route in ipairs(redis.call('SRANDMEMBER', routes, 1000)) do
    if string.sub(route, -#target) ~= target or select(2, string.gsub(route, separator, '')) ~= 2 then
      redis.call('SREM', routes, route)
      removed = removed + 1
    end
  end
end
redis.call('DEL', '_kombu.binding.celery.pidbox', '_kombu.binding.reply.celery.pidbox')
return removed
"""
)
