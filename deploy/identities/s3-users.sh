#!/bin/bash
# Creates the MinIO users with their policies; their keys are in /run/secrets. MINIO_URL is the server's address,
# MINIO_INPUT_BUCKET and MINIO_OUTPUT_BUCKET are the buckets, and MODELS_BUCKET that of the stored models, if there is one.
# For another S3 storage, create users with the policies s3-*.json by its own means. If it has but one key, give that to
# every identity: an identity with the administrator's access key gets no user here.
set -euo pipefail
secrets=${SECRETS_PATH:-/run/secrets}
folder=${BASH_SOURCE[0]%/*}
admin=$(<"$secrets/minio_admin_access_key")

identities="migrate worker upstream"
[ -z "${MODELS_BUCKET:-}" ] || identities+=" models"
[ ! -f "$secrets/minio_gateway_access_key" ] || identities+=" gateway"
# Without stored models, their rights are those that the worker has on the results anyway.
models_bucket=${MODELS_BUCKET:-$MINIO_OUTPUT_BUCKET}
for identity in $identities; do
  key=$(<"$secrets/minio_${identity}_access_key")
  if [ "$key" = "$admin" ]; then
    echo "WARNING: $identity has the administrator's access key, and with it all rights" >&2
    continue
  fi
  [ -n "${connected:-}" ] || mc alias set server "$MINIO_URL" <<<"$admin"$'\n'"$(<"$secrets/minio_admin_secret_key")" >/dev/null
  connected=yes
  policy=$(<"$folder/s3-$identity.json")
  policy=${policy//INPUT_BUCKET/$MINIO_INPUT_BUCKET}
  policy=${policy//MODELS_BUCKET/$models_bucket}
  mc admin policy create server "inference-$identity" <(printf %s "${policy//OUTPUT_BUCKET/$MINIO_OUTPUT_BUCKET}")
  mc admin user add server <<<"$key"$'\n'"$(<"$secrets/minio_${identity}_secret_key")"
  # Attaching a policy again is an error, so the outcome is checked instead.
  mc admin policy attach server "inference-$identity" --user "$key" || true
  [[ $(mc admin user info server "$key") == *"inference-$identity"* ]] || { echo "no policy for $identity" >&2; exit 1; }
done
