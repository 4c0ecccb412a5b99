# shellcheck shell=dash
# PostgreSQL recovers; every transaction that was answered is there; the sums of all that the same transactions changed
# are equal; every index agrees with its table, and every page with its checksum.
# shellcheck source=tests/power/scripts/postgres-server.sh
. "$SCRIPTS/postgres-server.sh"
postgres_start
install -o postgres -m 644 "$ANSWERED" "$socket/answered"
postgres_as psql --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 postgres --command "
    CREATE TEMPORARY TABLE told (round int, client int, n int);" --command "
    COPY told FROM '$socket/answered' (FORMAT csv)" --command "
    SELECT 'answered and lost: ' || t::text FROM told t WHERE NOT EXISTS (
        SELECT 1 FROM answered a WHERE (a.round, a.client, a.n) = (t.round, t.client, t.n));" --command "
    SELECT 'the sums differ' WHERE (SELECT count(DISTINCT total) FROM (
        SELECT sum(abalance) total FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers
        UNION ALL SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(delta) FROM pgbench_history) sums) <> 1;" --command "
    SELECT 'history and answered differ' WHERE (SELECT count(*) FROM pgbench_history) <> (SELECT count(*) FROM answered);
" >"$W/said"
[ ! -s "$W/said" ] || { cat "$W/said"; exit 1; }
postgres_as /usr/lib/postgresql/15/bin/pg_amcheck --install-missing --heapallindexed postgres
postgres_stop
postgres_as /usr/lib/postgresql/15/bin/pg_checksums --check --pgdata="$data" >"$W/said" || { cat "$W/said"; exit 1; }
