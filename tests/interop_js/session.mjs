// A js-libp2p node that speaks Shoal's session protocol, written from docs/protocol.md alone.
//
// usage: session.mjs dial ADDRESS SWARM MODEL    dials a Shoal node, uses every kind of frame that a caller needs
//        session.mjs listen SWARM                prints its address, and answers a Shoal node that dials it
// Each fact it finds is one line of JSON on stdout.
import { tcp } from '@libp2p/tcp'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'

const PROTOCOL = '/shoal/session/1.0.0'
const [HELLO, ADVERT, CALL, ACCEPT, DELTA, END, ERROR, CANCEL, CREDIT, LOOKUP, FOUND, PING, PONG, GOAWAY, PART, NOTE] =
  Array(16).keys()
const tell = facts => process.stdout.write(JSON.stringify(facts) + '\n')

// -- msgpack: as much of it as the protocol uses ----------------------------------------------------------------------

function encode (value) {
  const bytes = (...numbers) => Buffer.from(numbers)
  const sized = (length, small, codes) => {
    if (small && length < small[1]) return bytes(small[0] | length)
    const power = length < 256 && codes[0] ? 0 : length < 65536 ? 1 : 2
    const head = Buffer.alloc(1 + (1 << power)); head[0] = codes[power]; head.writeUIntBE(length, 1, 1 << power)
    return head
  }
  if (value === null || value === undefined) return bytes(0xc0)
  if (typeof value === 'boolean') return bytes(value ? 0xc3 : 0xc2)
  if (typeof value === 'number') {
    if (Number.isInteger(value) && value >= 0 && value < 128) return bytes(value)
    if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) { const b = Buffer.alloc(5); b[0] = 0xce; b.writeUInt32BE(value, 1); return b }
    const b = Buffer.alloc(9); b[0] = 0xcb; b.writeDoubleBE(value, 1); return b
  }
  if (typeof value === 'string') { const text = Buffer.from(value); return Buffer.concat([sized(text.length, [0xa0, 32], [0xd9, 0xda, 0xdb]), text]) }
  if (value instanceof Uint8Array) return Buffer.concat([sized(value.length, null, [0xc4, 0xc5, 0xc6]), value])
  if (Array.isArray(value)) return Buffer.concat([sized(value.length, [0x90, 16], [0, 0xdc, 0xdd]), ...value.map(encode)])
  const entries = Object.entries(value)
  return Buffer.concat([sized(entries.length, [0x80, 16], [0, 0xde, 0xdf]), ...entries.flat().map(encode)])
}

function decode (data) {
  let at = 0
  const number = width => { const value = data.readUIntBE(at, Math.min(width, 6)); at += width; return value }
  const take = length => data.subarray(at, at += length)
  const list = length => Array.from({ length }, read)
  const map = length => Object.fromEntries(Array.from({ length }, () => [read(), read()]))
  function read () {
    const byte = data[at++]
    if (byte < 0x80) return byte
    if (byte < 0x90) return map(byte & 15)
    if (byte < 0xa0) return list(byte & 15)
    if (byte < 0xc0) return take(byte & 31).toString()
    if (byte >= 0xe0) return byte - 256
    switch (byte) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: case 0xc5: case 0xc6: return take(number(1 << (byte - 0xc4)))
      case 0xca: at += 4; return data.readFloatBE(at - 4)
      case 0xcb: at += 8; return data.readDoubleBE(at - 8)
      case 0xcc: case 0xcd: case 0xce: return number(1 << (byte - 0xcc))
      case 0xcf: at += 8; return Number(data.readBigUInt64BE(at - 8))
      case 0xd0: at += 1; return data.readInt8(at - 1)
      case 0xd1: at += 2; return data.readInt16BE(at - 2)
      case 0xd2: at += 4; return data.readInt32BE(at - 4)
      case 0xd3: at += 8; return Number(data.readBigInt64BE(at - 8))
      case 0xd9: case 0xda: case 0xdb: return take(number(1 << (byte - 0xd9))).toString()
      case 0xdc: case 0xdd: return list(number(2 << (byte - 0xdc)))
      case 0xde: case 0xdf: return map(number(2 << (byte - 0xde)))
    }
    throw new Error(`msgpack byte ${byte.toString(16)}`)
  }
  return read()
}

// -- frames -----------------------------------------------------------------------------------------------------------

function frame (kind, id, body) {
  const payload = encode([kind, id, body])
  const length = Buffer.alloc(4); length.writeUInt32BE(payload.length)
  return Buffer.concat([length, payload])
}

async function * frames (stream) {
  let rest = Buffer.alloc(0)
  for await (const chunk of stream) {
    rest = Buffer.concat([rest, chunk.subarray()])
    while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32BE()) {
      const end = 4 + rest.readUInt32BE()
      yield decode(rest.subarray(4, end))
      rest = rest.subarray(end)
    }
  }
}

// -- the node ---------------------------------------------------------------------------------------------------------

const [mode, ...args] = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: mode === 'listen' ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() },
  connectionGater: { denyDialMultiaddr: () => false }
})
const hello = swarm => frame(HELLO, 0, { swarm, peer: node.peerId.toString(), agent: 'js/1', v: 1 })

async function dial (address, swarm, model) {
  const connection = await node.dial(multiaddr(address), { signal: AbortSignal.timeout(10000) })
  tell({ fact: 'ping', ms: await node.services.ping.ping(connection.remotePeer) })
  const seen = await node.services.identify.identify(connection)
  tell({ fact: 'identify', agent: seen.agentVersion, session: seen.protocols.includes(PROTOCOL), listens: seen.listenAddrs.map(String) })
  const stream = await connection.newStream(PROTOCOL)
  stream.send(hello(swarm))
  let said = ''
  let leaving = false // from then on a reset of the stream is its end
  const all = frames(stream)
  for (;;) {
    const next = await all.next().catch(error => { if (!leaving) throw error; return { done: true } })
    if (next.done) break
    const [kind, id, body] = next.value
    if (kind === HELLO) {
      tell({ fact: 'hello', swarm: body.swarm, peer: body.peer, v: body.v })
      stream.send(frame(PING, 7, null))
    } else if (kind === ADVERT) {
      const advert = decode(Buffer.from(body[0]))
      tell({ fact: 'advert', peer: advert.peer, models: advert.models.map(offered => offered.model.name) })
    } else if (kind === PONG && id === 7) {
      tell({ fact: 'pong' })
      stream.send(frame(LOOKUP, 1, [Buffer.from('0171', 'hex')]))
    } else if (kind === FOUND) {
      tell({ fact: 'found', blocks: body })
      const request = { model, messages: [{ role: 'user', content: 'one two three' }], temperature: 0 }
      const seen = [node.peerId.toString()]
      stream.send(frame(CALL, 3, ['generate', { request, deadline_ms: 20000, hops: 0, seen }]))
    } else if (kind === DELTA) {
      if (body[0] === 't') said += body[1]
      if (body[0] === 'f') tell({ fact: 'finish', reason: body[1] })
    } else if (kind === END && id === 3) {
      tell({ fact: 'end', said, provider: body.provider })
      stream.send(frame(CALL, 5, ['unheard of', null]))
    } else if (kind === ERROR) {
      tell({ fact: 'error', id, code: body[0] })
      leaving = true
      stream.send(frame(GOAWAY, 0, 'enough'))
      await stream.close()
    } else if (kind === PING) {
      stream.send(frame(PONG, id, null))
    } else if (kind === GOAWAY) {
      leaving = true
      tell({ fact: 'goaway', reason: body })
    }
  }
  tell({ fact: 'over' })
}

async function listen (swarm) {
  await node.handle(PROTOCOL, async stream => {
    stream.send(hello(swarm))
    for await (const [kind, id, body] of frames(stream)) {
      if (kind === HELLO) tell({ fact: 'hello', swarm: body.swarm, peer: body.peer, v: body.v })
      else if (kind === PING) stream.send(frame(PONG, id, null))
      else if (kind === CALL) stream.send(frame(ERROR, id, ['unknown_method', 'not here', null]))
      else if (kind === LOOKUP) stream.send(frame(FOUND, id, body.map(() => null)))
      else if (kind === GOAWAY) tell({ fact: 'goaway', reason: body })
    }
  })
  tell({ fact: 'listening', address: String(node.getMultiaddrs()[0]), peer: node.peerId.toString() })
  await new Promise(resolve => process.stdin.on('end', resolve).resume())
}

await (mode === 'dial' ? dial(...args) : listen(...args))
await node.stop()
