#!/bin/sh
# Creates the Postgres roles, and sets the password of each that has one in /run/secrets. PGHOST, PGUSER and PGDATABASE
# name the server, its superuser and the service's database.
set -eu
secrets=${SECRETS_PATH:-/run/secrets}
PGPASSWORD=$(cat "$secrets/postgres_admin_password")
export PGPASSWORD file
run() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"; }

run --file "$(dirname "$0")/postgres-roles.sql"
for identity in migrate worker upstream gateway monitoring keda; do
  file=$secrets/postgres_${identity}_password
  [ -f "$file" ] || continue
  [ -s "$file" ] || { echo "$file is empty" >&2; exit 1; }
  run --set role="inference_$identity" <<'SQL'
-- The server's log must not have the password.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
\set password `cat "$file"`
ALTER ROLE :"role" LOGIN PASSWORD :'password';
SQL
done
