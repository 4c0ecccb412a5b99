# shellcheck shell=dash
# pgbench's transactions from four clients, each of which also numbers its own. Says each that was answered: round,
# client and number.
# shellcheck source=tests/power/scripts/postgres-server.sh
. "$SCRIPTS/postgres-server.sh"
[ -e "$data/ready" ] || {
    install -d -o postgres -m 700 "$data"
    postgres_as /usr/lib/postgresql/15/bin/initdb --pgdata="$data" --auth=trust --data-checksums --no-locale >/dev/null
}
postgres_start
[ -e "$data/ready" ] || {
    postgres_as pgbench --quiet --initialize --scale=1 postgres
    postgres_as psql --quiet postgres --command "
        CREATE TABLE answered (round int, client int, n int, PRIMARY KEY (round, client, n))"
    touch "$data/ready"
    sync
}
postgres_as pgbench --no-vacuum --client=4 --jobs=2 --time=100000 --define=round="$ROUND" --define=n=0 \
    --random-seed="$SEED" --file=- postgres <"$SCRIPTS/transaction.sql"
