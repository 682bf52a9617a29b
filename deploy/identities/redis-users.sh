#!/bin/sh
# The users of Redis, one for each identity that has a password in /run/secrets: redis_IDENTITY_password.
#   redis-users.sh         prints an aclfile, with the administrator as the user `default`
#   redis-users.sh apply   creates the users on the server REDIS_ADDRESS, as the administrator
# REDIS_PREFIX is the setting of that name. Passwords are passed on as sha256. Redis 7 or newer, or Valkey.
set -eu
p=${REDIS_PREFIX:-}
secrets=${SECRETS_PATH:-/run/secrets}

user() { # NAME IDENTITY RULES
  file=$secrets/redis_$2_password
  [ -f "$file" ] || return 0
  password=$(cat "$file")
  [ -n "$password" ] || { echo "$file is empty" >&2; exit 1; }
  printf 'user %s reset on #%s %s\n' "$1" "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)" "$3"
}

identities() {
  # Consumes both queues, acknowledges messages, reads cancellations, reports its heartbeat. No command that administers
  # Redis or lists keys.
  user worker worker "~${p}priority* ~${p}overflow* ~${p}cancellations* ~${p}unacked* ~${p}inference_service.deployment ~${p}completions ~_kombu.binding* &/*.${p}celeryev* -@all +xadd +xrevrange +@list +@hash +@set +@sortedset +@string +@transaction +del +exists +expire +pexpire +type +eval +evalsha +script|load +publish +client|tracking +ping +info +time"
  # Puts messages on both queues and the list of cancellations, reads how many wait, and reads events. It cannot read a
  # message.
  # The HTTP gateway does the same.
  submits="~${p}priority* ~${p}overflow* ~${p}cancellations* %R~${p}inference_service.deployment ~_kombu.binding*.${p}priority ~_kombu.binding*.${p}overflow ~_kombu.binding*.${p}cancellations %R~${p}completions -@all +xread +xrange +lpush +llen +exists +get +sadd +smembers +multi +exec +ping +info"
  user upstream upstream "$submits"
  user gateway gateway "$submits"
  # The upstream of one tenant, for each file redis_upstream_TENANT_password: it puts messages on the tenant's lists alone.
  for file in "$secrets"/redis_upstream_*_password; do
    [ -f "$file" ] || continue
    tenant=${file##*/redis_upstream_}
    tenant=${tenant%_password}
    user "upstream-$tenant" "upstream_$tenant" "~${p}priority.$tenant ~${p}overflow.$tenant %R~${p}priority* %R~${p}overflow* %R~${p}inference_service.deployment ~_kombu.binding*.${p}priority.$tenant ~_kombu.binding*.${p}overflow.$tenant -@all +lpush +llen +exists +get +sadd +smembers +multi +exec +ping +info"
  done
  # Reads how many messages wait: KEDA does so by a script that calls TYPE and LLEN.
  user keda keda "~${p}priority ~${p}priority.* ~${p}overflow ~${p}overflow.* -@all +llen +type +eval +ping"
  # Flower: reads the workers' heartbeats and how many messages wait, and asks workers, which do not answer. It writes keys
  # of its own alone.
  user monitoring monitoring "%R~${p}priority* %R~${p}overflow* %R~${p}inference_service.deployment ~flower.* ~celeryev.* ~*.reply.celery.pidbox* ~_kombu.binding*celeryev ~_kombu.binding*pidbox ~_kombu.binding_deadlines &/0.${p}celeryev/* &/0.${p}celery.pidbox -@all +llen +exists +ping +info +publish +psubscribe +punsubscribe +brpop +del +sadd +srem +smembers +zrem +zadd +zscore +zrange +zrangebyscore +hget +set +get +multi +exec +watch +unwatch +eval +evalsha +script|load +script|exists +time"
}

if [ "${1:-}" != apply ]; then
  user default admin '~* &* +@all' | grep . || { echo "$secrets/redis_admin_password is missing" >&2; exit 1; }
  identities
  exit
fi
REDISCLI_AUTH=$(cat "$secrets/redis_admin_password")
export REDISCLI_AUTH
admin() { # runs a command on the server; REDIS_CLI_OPTIONS may hold --tls and the like
  redis-cli -e -h "${REDIS_ADDRESS%:*}" -p "${REDIS_ADDRESS##*:}" ${REDIS_CLI_OPTIONS:-} "$@"
}
identities | while read -r _ name rules; do
  set -f
  admin ACL SETUSER "$name" $rules
done
admin ACL SAVE || echo "the users are lost when Redis restarts: it has no aclfile" >&2
