#!/bin/sh
# Runs a command as root of network, mount and process namespaces of its own: whatever it builds and starts is gone when
# it ends, however it ends. Who is not root on the machine becomes it in a user namespace, where the kernel allows that.
set -eu
missing=""
command -v ip >/dev/null || PATH=$PATH:/usr/sbin:/sbin
for tool in ip:iproute2 nft:nftables conntrack:conntrack unshare:util-linux; do
  command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "the NAT lab needs$missing; as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
  apt-get update -q
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="--user --map-root-user"
# shellcheck disable=SC2086
if ! unshare $as_root --net --mount true 2>/dev/null; then
  echo "the NAT lab needs namespaces: run it as root, or allow them to users (sysctl kernel.unprivileged_userns_clone," >&2
  echo "kernel.apparmor_restrict_unprivileged_userns); in a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN" >&2
  exit 1
fi
# shellcheck disable=SC2086,SC2016
exec unshare $as_root --net --mount --pid --fork --kill-child --mount-proc sh -c '
  mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && exec env NAT_LAB_ENTERED=1 "$@"' enter "$@"
