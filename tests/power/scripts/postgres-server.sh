# shellcheck shell=dash
# A PostgreSQL on the cluster below "$D/pg", with a socket in "$W": small caches, and checkpoints all the time.
data=$D/pg
socket=$W/socket
export PGHOST="$socket"
cd /

postgres_as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

postgres_start() {
    install -d -o postgres "$socket"
    rm -f "$socket"/.s.PGSQL*
    postgres_as /usr/lib/postgresql/15/bin/pg_ctl start --wait --timeout=250 --silent --pgdata="$data" --log="$socket/log" \
        --options="-c listen_addresses='' -c unix_socket_directories='$socket' -c shared_buffers=8MB -c max_wal_size=64MB \
            -c min_wal_size=32MB -c dynamic_shared_memory_type=mmap -c checkpoint_timeout=30s -c checkpoint_completion_target=0.2" ||
        { cat "$socket/log"; exit 1; }
}
