# shellcheck shell=dash
# A PostgreSQL on the cluster below "$D/pg", with a socket in "$W": small caches, and checkpoints all the time.
data=$D/pg
socket=$W/socket
export PGHOST="$socket"
cd /

# By its path: busybox has one of its own that knows no users.
postgres_as() { /usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

# postgres_directory DIRECTORY: there, and PostgreSQL's own.
postgres_directory() {
    mkdir -p "$1"
    chown postgres "$1"
    chmod 700 "$1"
}

postgres_start() {
    postgres_directory "$socket"
    rm -f "$socket"/.s.PGSQL*
    postgres_as /usr/lib/postgresql/15/bin/pg_ctl start --wait --timeout=250 --silent --pgdata="$data" --log="$socket/log" \
        --options="-c listen_addresses='' -c unix_socket_directories='$socket' -c shared_buffers=8MB -c max_wal_size=64MB \
            -c min_wal_size=32MB -c dynamic_shared_memory_type=mmap -c checkpoint_timeout=30s -c checkpoint_completion_target=0.2" ||
        { cat "$socket/log"; exit 1; }
}

postgres_stop() { postgres_as /usr/lib/postgresql/15/bin/pg_ctl stop --wait --silent --mode=fast --pgdata="$data"; }
