# shellcheck shell=dash
# pgbench's transactions from four clients, each of which also numbers its own. Says each that was answered: round,
# client and number.
# shellcheck source=tests/power/scripts/postgres-server.sh
. "$SCRIPTS/postgres-server.sh"
postgres_start
postgres_as pgbench --no-vacuum --client=4 --jobs=2 --time=100000 --define=round="$ROUND" --define=n=0 \
    --random-seed="$SEED" --file=- postgres <"$SCRIPTS/transaction.sql"
