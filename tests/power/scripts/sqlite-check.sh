# shellcheck shell=dash
# Everything that was answered, and nothing in part: ANSWERED has the numbers.
base=$D/sqlite/base
last=$(tail -n 1 "$ANSWERED")
sqlite3 "$base" "
    PRAGMA integrity_check;
    SELECT 'entries have gaps' WHERE (SELECT count(*) FROM entry) <> (SELECT max(n) FROM entry);
    SELECT 'entry $last was answered and is lost' WHERE NOT EXISTS (SELECT 1 FROM entry WHERE n = $last);
    SELECT 'entry ' || n || ' is damaged' FROM entry
        WHERE payload <> replace(hex(zeroblob((n * 37) % 2000)), '0', 'x') || n;
    SELECT 'account ' || id || ' has ' || balance FROM account WHERE balance <> 100
        - (SELECT coalesce(sum(n % 7), 0) FROM entry WHERE n % 10 = id)
        + (SELECT coalesce(sum(n % 7), 0) FROM entry WHERE (n + 3) % 10 = id);
    SELECT 'accounts are missing' WHERE (SELECT count(*) FROM account) <> 10;
" >"$W/said"
[ "$(cat "$W/said")" = ok ] || { cat "$W/said"; exit 1; }
