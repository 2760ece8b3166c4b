#!/bin/bash
# A small internet in network namespaces: two nodes behind NATs of their own, two public machines. Needs root of its
# network namespace (enter.sh gives that to anyone), iproute2 and nftables; conntrack for `flush`, python3 for `delay`.
# Every name begins with $LAB_PREFIX, and only those are ever touched.
#
#   lab.sh up [KIND_A [KIND_B]]     build it                 lab.sh down       remove everything
#   lab.sh nat a|b KIND             change a NAT's kind      lab.sh flush a|b  let a NAT forget its mappings
#   lab.sh cut a|b                  drop silently whatever that NAT should pass on
#   lab.sh cut ab                   drop silently what goes directly between the two NATs
#   lab.sh cut a:ADDRESS            drop silently what goes between that node and ADDRESS
#   lab.sh linkdown a|b             take the middle link of that node down
#   lab.sh loss a|b PERCENT         drop packets at random
#   lab.sh heal                     undo cut, linkdown and loss
#   lab.sh six                      global IPv6 addresses for everybody, without a NAT
#   lab.sh nofour NS                take a node's IPv4 address away
#   lab.sh delay MS | nodelay       every packet on the public net takes MS milliseconds longer, each way
#   lab.sh in NS COMMAND...         run in a namespace: pub relay relay2 nata nodea nodea2 natb nodeb
#
# KIND   cone  the NAT keeps ports and lets in only who was called, address and port
#        full  everything that comes in goes to the node
#        open  like cone, with port 4001 forwarded
#        hairpin  like open, for who is behind the same NAT, too
#        sym   a new port for every destination: no port can be foretold
#
#   nodea2 10.1.0.3 ----+
#   nodea 10.1.0.2 -- nata (10.1.0.1 | 11.22.33.1) --+        +-- relay  11.22.33.10 (.11 to .14 too)
#   nodeb 10.2.0.2 -- natb (10.2.0.1 | 11.22.33.2) --+-- pub -+-- relay2 11.22.33.20
#
# IPv6: relay 2a0e:33::10, relay2 2a0e:33::20, nodea 2a0e:a::2, nodea2 2a0e:a::3, nodeb 2a0e:b::2.
# 11.22.33.0/24 and 2a0e::/16 are public in here only, no route leads out. The ranges for examples (RFC 5737) count as private in many
# libraries, so they would not do. tc netem is not in every kernel: wire.py delays instead.
set -u
P=${LAB_PREFIX:?a prefix for the names of the namespaces}
HERE=$(cd "$(dirname "$0")" && pwd)
STATE=${LAB_STATE:?a directory for what runs beside the namespaces}
NAMES="pub relay relay2 nata nodea nodea2 natb nodeb"

x() { local name=$1; shift; ip netns exec "$P$name" "$@"; }

wire_stop() {
  if [ -f "$STATE/wire.pid" ]; then kill "$(cat "$STATE/wire.pid")" 2>/dev/null; rm -f "$STATE/wire.pid"; fi
}

down() {
  wire_stop
  for n in $NAMES; do ip netns del "$P$n" 2>/dev/null; done
  return 0
}

pair() { # NS1 IF1 NS2 IF2
  ip link add "$2" netns "$P$1" type veth peer name "$4" netns "$P$3"
  x "$1" ip link set "$2" up
  x "$3" ip link set "$4" up
}

nat() { # a|b KIND
  local side=$1 kind=$2 lan wan post=masquerade pre="" back=""
  [ "$side" = a ] && lan=10.1.0.2 wan=11.22.33.1 || lan=10.2.0.2 wan=11.22.33.2
  local forward="chain prenat { type nat hook prerouting priority -100; policy accept; iifname \"wan\""
  case $kind in
    cone) ;;
    full) pre="$forward dnat to $lan; }" ;;
    open) pre="$forward tcp dport 4001 dnat to $lan; }" ;;
    hairpin)
      pre="chain prenat { type nat hook prerouting priority -100; policy accept; ip daddr $wan tcp dport 4001 dnat to $lan; }"
      back="oifname \"lan\" ip saddr $lan/24 masquerade;" ;;
    sym) post="masquerade random,fully-random" ;;
    *) echo "unknown kind of NAT: $kind" >&2; exit 2 ;;
  esac
  x "nat$side" nft flush ruleset
  x "nat$side" nft -f /dev/stdin <<RULES
table ip lab {
  chain postnat { type nat hook postrouting priority 100; policy accept; oifname "wan" $post; $back }
  $pre
  chain inlocal { type filter hook input priority 0; policy accept; iifname "wan" drop; }
  chain cutall { type filter hook forward priority -20; policy accept; }
  chain pass { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname "lan" accept; ct status dnat accept; }
}
RULES
  flush "$side"
}

flush() { # a|b
  if command -v conntrack >/dev/null; then x "nat$1" conntrack -F >/dev/null 2>&1; fi
  return 0
}

up() { # KIND_A KIND_B
  down
  for n in $NAMES; do
    ip netns add "$P$n" || exit 1
    x "$n" ip link set lo up
  done
  x pub ip link add br0 type bridge
  x pub ip link set br0 up
  for n in nata natb relay relay2; do
    pair pub "to-$n" "$n" wan
    x pub ip link set "to-$n" master br0
  done
  x nata ip addr add 11.22.33.1/24 dev wan
  x natb ip addr add 11.22.33.2/24 dev wan
  for i in 10 11 12 13 14; do x relay ip addr add "11.22.33.$i/24" dev wan; done
  x relay2 ip addr add 11.22.33.20/24 dev wan
  for side in a b; do
    [ $side = a ] && net=10.1.0 || net=10.2.0
    x "nat$side" ip link add lan type bridge
    x "nat$side" ip link set lan up
    pair "nat$side" "to-node$side" "node$side" eth
    x "nat$side" ip link set "to-node$side" master lan
    x "nat$side" ip addr add "$net.1/24" dev lan
    x "node$side" ip addr add "$net.2/24" dev eth
    x "node$side" ip route add default via "$net.1"
    x "nat$side" sysctl -qw net.ipv4.ip_forward=1
  done
  pair nata to-nodea2 nodea2 eth
  x nata ip link set to-nodea2 master lan
  x nodea2 ip addr add 10.1.0.3/24 dev eth
  x nodea2 ip route add default via 10.1.0.1
  nat a "${1:-cone}"
  nat b "${2:-cone}"
}

six() {
  for n in nata natb; do x $n sysctl -qw net.ipv6.conf.all.forwarding=1; done
  x relay ip addr add 2a0e:33::10/64 dev wan nodad
  x relay2 ip addr add 2a0e:33::20/64 dev wan nodad
  for side in a b; do
    [ $side = a ] && number=1 other=b next=2 || { number=2; other=a; next=1; }
    x "nat$side" ip addr add "2a0e:33::$number/64" dev wan nodad
    x "nat$side" ip addr add "2a0e:$side::1/64" dev lan nodad
    x "nat$side" ip -6 route add "2a0e:$other::/64" via "2a0e:33::$next"
    x "node$side" ip addr add "2a0e:$side::2/64" dev eth nodad
    x "node$side" ip -6 route add default via "2a0e:$side::1"
    for n in relay relay2; do x $n ip -6 route add "2a0e:$side::/64" via "2a0e:33::$number"; done
  done
  x nodea2 ip addr add 2a0e:a::3/64 dev eth nodad
  x nodea2 ip -6 route add default via 2a0e:a::1
}

heal() {
  for side in a b; do
    x "nat$side" nft flush chain ip lab cutall
    x pub ip link set "to-nat$side" up
  done
}

cut() { # a | b | ab | a:ADDRESS
  case $1 in
    ab) local at=nata address=11.22.33.2 ;;
    *:*) local at="nat${1%%:*}" address=${1#*:} ;;
    *) x "nat$1" nft add rule ip lab cutall drop; return ;;
  esac
  x "$at" nft add rule ip lab cutall ip daddr "$address" drop
  x "$at" nft add rule ip lab cutall ip saddr "$address" drop
}

case "${1:-}" in
  up) shift; up "$@" ;;
  down) down ;;
  nat) nat "$2" "$3" ;;
  flush) flush "$2" ;;
  heal) heal ;;
  six) six ;;
  nofour) x "$2" ip -4 addr flush dev eth ;;
  cut) cut "$2" ;;
  linkdown) x pub ip link set "to-nat$2" down ;;
  loss) x "nat$2" nft add rule ip lab cutall numgen random mod 100 '<' "$3" drop ;;
  delay)
    wire_stop
    for n in nata natb relay relay2; do
      x pub ip link set "to-$n" nomaster
      x "$n" python3 "$HERE/wire.py" off wan
    done
    setsid ip netns exec "${P}pub" python3 "$HERE/wire.py" "$2" to-nata to-natb to-relay to-relay2 \
      >"$STATE/wire.log" 2>&1 </dev/null &
    echo $! >"$STATE/wire.pid" ;;
  nodelay)
    wire_stop
    for n in nata natb relay relay2; do x pub ip link set "to-$n" master br0; done ;;
  in) n=$2; shift 2; x "$n" "$@" ;;
  *) sed -n 2,32p "$0"; exit 2 ;;
esac
