# shellcheck shell=dash
# Transactions on a database in "$D/sqlite", one after the other, each a number higher than the one before: a new entry,
# and something moved from one account to another. Says each one that was answered. Odd rounds have a rollback journal,
# even ones a write-ahead log.
mkdir -p "$D/sqlite"
sync
base=$D/sqlite/base
if [ $((ROUND % 2)) = 1 ]; then journal=DELETE; else journal=WAL; fi
sqlite3 -bail "$base" "
    CREATE TABLE IF NOT EXISTS entry (n INTEGER PRIMARY KEY, payload TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    INSERT OR IGNORE INTO account VALUES (0,100),(1,100),(2,100),(3,100),(4,100),(5,100),(6,100),(7,100),(8,100),(9,100);
    PRAGMA journal_mode=$journal;"
n=$(sqlite3 "$base" 'SELECT coalesce(max(n), 0) FROM entry')
{
    echo "PRAGMA synchronous=EXTRA; PRAGMA wal_autocheckpoint=50; PRAGMA cache_size=20;"
    while :; do
        n=$((n + 1))
        echo "BEGIN IMMEDIATE;"
        echo "INSERT INTO entry VALUES ($n, replace(hex(zeroblob(($n * 37) % 2000)), '0', 'x') || $n);"
        echo "UPDATE account SET balance = balance - $n % 7 WHERE id = $n % 10;"
        echo "UPDATE account SET balance = balance + $n % 7 WHERE id = ($n + 3) % 10;"
        echo "COMMIT;"
        echo "SELECT 'vm: answered $n.';"
    done
} | $LINEWISE sqlite3 -bail "$base"
