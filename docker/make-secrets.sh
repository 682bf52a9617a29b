#!/bin/sh
# Creates the secret files of docker compose and Kubernetes, with random values, in SECRETS_PATH (default: secrets). A file
# that exists stays as it is.
#   docker/make-secrets.sh
# The administrators' passwords of an existing installation are taken from the environment, where set: REDIS_PASSWORD,
# POSTGRES_PASSWORD, MINIO_ACCESS_KEY, MINIO_SECRET_KEY.
set -eu
path=${SECRETS_PATH:-secrets}
# Only the owner enters the folder. The files are readable by all, because containers mount them as users of their own.
mkdir -p "$path"
chmod 700 "$path"

secret() { # NAME [VALUE]
  [ ! -e "$path/$1" ] || return 0
  value=${2:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}
  printf %s "$value" >"$path/$1"
  chmod 644 "$path/$1"
}

secret redis_admin_password "${REDIS_PASSWORD:-}"
secret postgres_admin_password "${POSTGRES_PASSWORD:-}"
secret minio_admin_access_key "${MINIO_ACCESS_KEY:-inference-admin}"
secret minio_admin_secret_key "${MINIO_SECRET_KEY:-}"
for identity in worker upstream gateway monitoring keda; do
  secret "redis_${identity}_password"
done
for identity in migrate worker upstream gateway monitoring keda; do
  secret "postgres_${identity}_password"
done
for identity in migrate worker upstream models gateway; do
  secret "minio_${identity}_access_key" "inference-$identity"
  secret "minio_${identity}_secret_key"
done
secret gateway_webhook_secret
secret grafana_admin_password
secret flower_basic_auth "operator:$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
