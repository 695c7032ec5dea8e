#!/bin/sh
# Keeps a copy of a registry's public ledger, which `peerseal-registry restore` and any monitor can read:
#
#   keep-ledger.sh https://registry.acme.internal /var/lib/peerseal-ledger
#
# Run it every minute from cron, on another host than the registry's. It fetches what is new. What was kept is never
# replaced by another history: where the registry shows one, it says so, ends with 1 and leaves the copy as it is.
set -eu
url=${1%/}
cd "$2"
new=ledger/checkpoint.new

# The path of bundle number $1 of a ledger of $2 entries (C2SP tlog-tiles).
bundle() {
    number=$1 path=$(printf %03d $(($1 % 1000)))
    while [ "$number" -ge 1000 ]; do
        number=$((number / 1000))
        path=x$(printf %03d $((number % 1000)))/$path
    done
    if [ "$1" -lt $(($2 / 256)) ]; then echo "ledger/tile/entries/$path"; else echo "ledger/tile/entries/$path.p/$(($2 % 256))"; fi
}

fetch() {
    mkdir -p "$(dirname "$2")"
    curl --silent --show-error --fail --max-time 60 --output "$2" "$url/$1"
}

refuse() {
    echo "keep-ledger: $url shows another history: $1" >&2
    exit 1
}

fetch ledger/checkpoint "$new"
size=$(sed -n 2p "$new") root=$(sed -n 3p "$new") old=0 last=
if [ -f ledger/checkpoint ]; then
    old=$(sed -n 2p ledger/checkpoint)
    last=$(bundle $(((old - 1) / 256)) "$old")
    [ "$size" -ge "$old" ] || refuse "$size entries, and there were $old"
    [ "$size" -gt "$old" ] || [ "$root" = "$(sed -n 3p ledger/checkpoint)" ] || refuse "another root of $old entries"
fi
next=$((old > 0 ? (old - 1) / 256 : 0))
while [ $((next * 256)) -lt "$size" ]; do
    path=$(bundle "$next" "$size")
    fetch "$path" "$path.new"
    if [ -n "$last" ] && [ -f "$last" ]; then # what was kept last is how this one must begin
        cmp -s -n "$(wc -c < "$last")" "$last" "$path.new" || refuse "entries up to $old are not those that were kept"
        kept=$last last=
    fi
    mv "$path.new" "$path"
    next=$((next + 1))
done
mv "$new" ledger/checkpoint
[ -z "${kept-}" ] || [ "$kept" = "$(bundle $(((old - 1) / 256)) "$size")" ] || rm -f "$kept"
