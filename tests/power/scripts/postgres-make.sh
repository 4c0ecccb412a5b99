# shellcheck shell=dash
# A cluster with checksums, and in it the tables of pgbench and one for the transactions that are answered. In GMT: a
# guest has no files of time zones.
# shellcheck source=tests/power/scripts/postgres-server.sh
. "$SCRIPTS/postgres-server.sh"
postgres_directory "$data"
postgres_as env TZ=GMT /usr/lib/postgresql/15/bin/initdb --pgdata="$data" --auth=trust --data-checksums --no-locale >/dev/null
postgres_start
postgres_as pgbench --quiet --initialize --scale=1 postgres
postgres_as psql --quiet postgres --command "
    CREATE TABLE answered (round int, client int, n int, PRIMARY KEY (round, client, n))"
postgres_stop
