// A Helia node on loopback, driven by JSON lines: node.mjs PORT [DHT_PROTOCOL]. First line: {ready, id}; then one {result} or {error} a line.
import readline from 'node:readline'
import { yamux } from '@chainsafe/libp2p-yamux'
import { noise } from '@chainsafe/libp2p-noise'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { CarReader } from '@ipld/car'
import * as dagCbor from '@ipld/dag-cbor'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

const say = object => process.stdout.write(JSON.stringify(object) + '\n')
const protocol = process.argv[3]
const dht = protocol === undefined ? {} : { dht: kadDHT({ protocol, clientMode: false, peerInfoMapper: passthroughMapper, allowQueryWithZeroPeers: true }) }
const config = {
  addresses: { listen: [`/ip4/127.0.0.1/tcp/${process.argv[2]}`] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping(), ...dht },
  connectionGater: { denyDialMultiaddr: () => false }
}
const blockstore = new MemoryBlockstore()
const helia = withBitswap(withLibp2pLight(createHeliaLight({ blockstore, codecs: [dagCbor] }), config))
await helia.start()
const { libp2p } = helia

async function bytes (found) {
  if (found instanceof Uint8Array) return Buffer.from(found)
  if (typeof found.then === 'function') return bytes(await found)
  const chunks = []
  for await (const chunk of found) chunks.push(chunk)
  return Buffer.concat(chunks)
}

async function holds (cid, data) {
  const digest = await sha256.digest(data)
  return Buffer.from(digest.digest).equals(Buffer.from(cid.multihash.digest))
}

const operations = {
  connect: async c => { await libp2p.dial(multiaddr(c.address), { signal: AbortSignal.timeout(10000) }); return true },
  add: async c => {
    const data = Buffer.from(c.hex, 'hex')
    const cid = CID.createV1(c.codec, await sha256.digest(data))
    await helia.blockstore.put(cid, data)
    return cid.toString()
  },
  provide: async c => { await libp2p.contentRouting.provide(CID.parse(c.cid), { signal: AbortSignal.timeout(15000) }); return true },
  known: async () => libp2p.services.dht.routingTable.size,
  peers: async () => libp2p.getPeers().map(String),
  get: async c => {
    const signal = AbortSignal.timeout(c.timeout_ms ?? 10000)
    return (await bytes(helia.blockstore.get(CID.parse(c.cid), { signal }))).toString('hex')
  },
  // What a trustless client does with a gateway's CAR: every block against its CID, the DAG from its root.
  car: async c => {
    const reader = await CarReader.fromBytes(new Uint8Array(await (await fetch(c.url)).arrayBuffer()))
    const cids = []
    for await (const { cid, bytes } of reader.blocks()) {
      if (!await holds(cid, bytes)) throw new Error(`${cid} is not its block`)
      if (cid.code === dagCbor.code) dagCbor.decode(bytes)
      cids.push(cid.toString())
    }
    return { roots: (await reader.getRoots()).map(String), cids }
  }
}

say({ ready: true, id: libp2p.peerId.toString() })
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    say({ result: await operations[command.op](command) })
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` })
  }
}
process.exit(0)
