# For `.` in a shell, from the repository's root: makes the shell an upstream of the servers of docker compose on this
# machine. The files are those of docker/make-secrets.sh.
secrets=${SECRETS_PATH:-secrets}
export REDIS_URL="redis://upstream:$(cat "$secrets/redis_upstream_password")@127.0.0.1:${REDIS_PORT:-6379}/0"
export POSTGRES_USER=inference_upstream POSTGRES_PASSWORD_FILE="$secrets/postgres_upstream_password"
export MINIO_ACCESS_KEY_FILE="$secrets/minio_upstream_access_key"
export MINIO_SECRET_KEY_FILE="$secrets/minio_upstream_secret_key"
