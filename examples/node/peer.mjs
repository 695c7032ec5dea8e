// A service and a client, as examples/minimal has them in Python.
//
//   node peer.mjs serve PORT [AUDIENCE URL]               asks that service, too, in the caller's transaction
//   node peer.mjs call AUDIENCE METHOD URL [BODY]
//   node peer.mjs sign AUDIENCE METHOD TARGET [BODY]      prints the token
//   node peer.mjs rotate                                  the next key, from the next start on
import { createServer } from 'node:http'
import { Identity } from './identity.mjs'
import { Registry } from './registry.mjs'
import { Refused, bearerToken, parseJoinToken } from './strict.mjs'
import { Verifier, problemOf } from './verifier.mjs'

const MAX_BODY = 1 << 20
const { PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, PEERSEAL_REGISTRY_PIN, PEERSEAL_JOIN_TOKEN, PEERSEAL_KEY_DIR } = process.env

const pin = PEERSEAL_REGISTRY_PIN ?? parseJoinToken(PEERSEAL_JOIN_TOKEN ?? '').pin
const registry = new Registry({ url: PEERSEAL_REGISTRY_URL.replace(/\/$/, ''), pin })
const identity = new Identity({ service: PEERSEAL_SERVICE, registry, keyDir: PEERSEAL_KEY_DIR ?? './keys', joinToken: PEERSEAL_JOIN_TOKEN })

/** One route: a greeting, which service asked for it, for which user, and what the next service says. */
async function answer(request, verifier, next) {
  const headers = Object.fromEntries(Object.entries(request.headersDistinct).map(([name, values]) => [name, values.join(', ')]))
  let content
  const caller = await verifier.verify(bearerToken(request.headersDistinct.authorization), {
    method: request.method, target: request.url, headers, scope: 'greetings:read',
    body: async () => (content = await bodyOf(request)),
  })
  const { user, token } = caller.transaction ?? {}
  const hello = content.toString() || request.url.split('/').at(-1)
  return { hello, caller: caller.id.split('/')[1], user, next: await next?.(token) }
}

async function bodyOf(request) {
  const pieces = []
  let size = 0
  for await (const piece of request) {
    size += piece.length
    if (size > MAX_BODY) throw new Refused('content_too_large')
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

async function serve(port, audience, url) {
  const allow = { [`${identity.id.split('/')[0]}/caller`]: ['greetings:read'] }
  const verifier = new Verifier({ trust: registry, audience: identity.id, allow })
  const next = audience && ((transaction) => call(audience, 'GET', url, '', transaction))
  const server = createServer(async (request, response) => {
    try {
      const body = JSON.stringify(await answer(request, verifier, next))
      response.writeHead(200, { 'content-type': 'application/json' }).end(body)
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error)
      else console.error(`refused ${request.method} ${request.url}: ${error.message}`)
      const problem = problemOf(error instanceof Refused ? error.code : 'trust_unavailable')
      response.writeHead(problem.status, problem.headers).end(problem.body)
    }
  })
  server.listen(Number(port), '127.0.0.1', () => console.log(`Listening at http://127.0.0.1:${port}`))
}

async function call(audience, method, url, body, transaction) {
  const response = await identity.call(audience, method, url, body, {}, transaction)
  return `${response.status} ${await response.text()}`
}

const commands = {
  serve,
  async call(audience, method, url, body) {
    console.log(await call(audience, method, url, body))
  },
  async sign(audience, method, target, body) {
    console.log(await identity.sign(audience, method, target, body, body ? { 'content-type': 'application/json' } : {}))
  },
  async rotate() {
    await identity.rotate()
    console.log(identity.kid)
  },
}

const [command, ...rest] = process.argv.slice(2)
if (!Object.hasOwn(commands, command ?? '')) {
  console.error('usage: node peer.mjs serve PORT [AUDIENCE URL] | call AUDIENCE METHOD URL [BODY] | sign AUDIENCE METHOD TARGET [BODY] | rotate')
  process.exit(2)
}
await identity.start()
await commands[command](...rest)
