// A js-libp2p node as each of the three parties of circuit relay v2, the two others being Shoal's.
//
// usage: relay.mjs call ADDRESS      dials a circuit address through a Shoal relay, and pings who is behind it
//        relay.mjs behind ADDRESS    takes a place behind a Shoal relay, prints its circuit address, answers pings
//        relay.mjs serve             relays; prints its address
// Each fact it finds is one line of JSON on stdout.
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'

const tell = facts => process.stdout.write(JSON.stringify(facts) + '\n')
const [role, address] = process.argv.slice(2)

const node = await createLibp2p({
  addresses: { listen: role === 'serve' ? ['/ip4/127.0.0.1/tcp/0'] : role === 'behind' ? [`${address}/p2p-circuit`] : [] },
  transports: [tcp(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: { identify: identify(), ping: ping(), ...(role === 'serve' ? { relay: circuitRelayServer() } : {}) }
})

if (role === 'call') {
  const connection = await node.dial(multiaddr(address))
  tell({ fact: 'connected', peer: connection.remotePeer.toString(), address: connection.remoteAddr.toString(), limits: connection.limits != null })
  tell({ fact: 'ping', ms: await node.services.ping.ping(multiaddr(address), { runOnLimitedConnection: true }) })
  await node.stop()
} else {
  const told = () => node.getMultiaddrs().map(String).filter(text => role === 'serve' || text.includes('/p2p-circuit'))
  for (let i = 0; i < 100 && told().length === 0; i++) await new Promise(resolve => setTimeout(resolve, 100))
  tell({ fact: 'listening', addresses: told(), peer: node.peerId.toString() })
}
