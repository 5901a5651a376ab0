#!/usr/bin/env bash
# A real Ceph object gateway (S3) of one node, from Debian's packages, without systemd. In the foreground: prints `ready`
# when it answers, and ends everything it started when its standard input ends.
#
#   ceph-gateway.sh EMPTY_DIR GATEWAY_PORT MONITOR_PORT_V2 MONITOR_PORT_V1 ACCESS_KEY SECRET_KEY
set -euo pipefail
[ $# = 6 ] || {
    sed -n 2,5p "$0" >&2
    exit 2
}
dir=$1 port=$2 mon2=$3 mon1=$4 access=$5 secret=$6
for program in ceph-mon ceph-mgr ceph-osd radosgw radosgw-admin ceph; do
    command -v $program >/dev/null || {
        echo "$program is not installed: tests/setup/install.sh ceph" >&2
        exit 1
    }
done
[ ! -e "$dir" ] || {
    echo "$dir exists" >&2
    exit 2
}
mkdir -p "$dir"/{mon,mgr,osd,run,log,rgw,crash}
cd "$dir"
conf=$dir/ceph.conf
fsid=$(cat /proc/sys/kernel/random/uuid)

# The OSD first: without a monitor it would not stop.
stop() {
    trap - EXIT
    for name in osd.0 client.rgw.a mgr.a mon.a; do
        [ -f "run/$name.pid" ] || continue
        pid=$(cat "run/$name.pid")
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
}
trap stop EXIT

cat >"$conf" <<CONF
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$mon2,v1:127.0.0.1:$mon1
public_addr = 127.0.0.1
keyring = $dir/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
run_dir = $dir/run
admin_socket = $dir/run/\$name.\$pid.asok
log_file = $dir/log/\$name.log
pid_file = $dir/run/\$name.pid
mon_data = $dir/mon
mgr_data = $dir/mgr
osd_data = $dir/osd
crash_dir = $dir/crash
ms_bind_ipv6 = false
mgr_initial_modules =
mon_pg_warn_min_per_osd = 0
[osd]
osd_objectstore = bluestore
bluestore_block_size = 10737418240
osd_memory_target = 1073741824
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_data = $dir/rgw
rgw_enable_usage_log = false
CONF
export CEPH_CONF=$conf
as="--setuser root --setgroup root -c $conf"
key() { ceph-authtool keyring --gen-key -n "$@" >/dev/null; }
ceph-authtool -C keyring --gen-key -n mon. --cap mon 'allow *' >/dev/null
key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *'
key mgr.a --cap mon 'allow profile mgr' --cap osd 'allow *' --cap mds 'allow *'
key client.rgw.a --cap mon 'allow rwx' --cap osd 'allow rwx'
key osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon2,v1:127.0.0.1:$mon1]" monmap >/dev/null
ceph-mon --mkfs -i a --monmap monmap --keyring keyring -c "$conf"
# shellcheck disable=SC2086
ceph-mon -i a $as
# shellcheck disable=SC2086
ceph-mgr -i a $as
uuid=$(cat /proc/sys/kernel/random/uuid)
ceph -c "$conf" auth import -i keyring
ceph -c "$conf" osd new "$uuid"
echo bluestore >osd/type
ceph-osd -i 0 --mkfs --osd-uuid "$uuid" -c "$conf" >log/mkfs.log 2>&1
# shellcheck disable=SC2086
ceph-osd -i 0 $as
for _ in $(seq 300); do
    ceph -c "$conf" osd stat 2>/dev/null | grep -q '1 up' && break
    sleep 0.2
done
# shellcheck disable=SC2086
radosgw -n client.rgw.a $as
for _ in $(seq 600); do
    curl -s -o /dev/null "http://127.0.0.1:$port/" && break
    sleep 0.1
done
radosgw-admin -c "$conf" user create --uid=tests --display-name=tests --access-key="$access" --secret-key="$secret" >/dev/null
echo ready
# Until whoever started this goes.
cat >/dev/null
