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
/** A client may be silent. Node looks for expired requests every 30 s by default. */
const TIME_LIMITS = { requestTimeout: 10_000, connectionsCheckingInterval: 5_000 }
const USAGE = `usage: node peer.mjs serve PORT [AUDIENCE URL] | call AUDIENCE METHOD URL [BODY] | sign AUDIENCE METHOD TARGET [BODY]
       | rotate
needs PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, and PEERSEAL_JOIN_TOKEN or PEERSEAL_REGISTRY_PIN; keys are in PEERSEAL_KEY_DIR`
/** How many arguments each command takes. */
const COUNTS = new Map([['serve', [1, 3]], ['call', [3, 4]], ['sign', [3, 4]], ['rotate', [0]]])

let identity, registry

function wrongUsage(reason) {
  console.error(`wrong usage: ${reason}\n${USAGE}`)
  process.exit(2)
}

async function join({ PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, PEERSEAL_REGISTRY_PIN, PEERSEAL_JOIN_TOKEN, PEERSEAL_KEY_DIR }) {
  if (!PEERSEAL_SERVICE || !PEERSEAL_REGISTRY_URL || !(PEERSEAL_REGISTRY_PIN || PEERSEAL_JOIN_TOKEN)) wrongUsage('a variable is not set')
  const pin = PEERSEAL_REGISTRY_PIN || parseJoinToken(PEERSEAL_JOIN_TOKEN).pin
  registry = new Registry({ url: PEERSEAL_REGISTRY_URL.replace(/\/$/, ''), pin })
  const keyDir = PEERSEAL_KEY_DIR ?? './keys'
  identity = await new Identity({ service: PEERSEAL_SERVICE, registry, keyDir, joinToken: PEERSEAL_JOIN_TOKEN }).start()
}

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
  try {
    for await (const piece of request.iterator({ destroyOnReturn: false })) {
      size += piece.length
      if (size > MAX_BODY) break
      pieces.push(piece)
    }
  } catch (error) {
    throw new Refused('content_unreadable', error.message)
  }
  if (size > MAX_BODY) throw new Refused('content_too_large')
  return Buffer.concat(pieces)
}

async function serve(port, audience, url) {
  const allow = { [`${identity.id.split('/')[0]}/caller`]: ['greetings:read'] }
  const verifier = new Verifier({ trust: registry, audience: identity.id, allow })
  const next = audience && ((transaction) => ask(audience, url, transaction))
  const server = createServer(TIME_LIMITS, async (request, response) => {
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

/** What the next service says. */
async function ask(audience, url, transaction) {
  try {
    return await call(audience, 'GET', url, '', transaction)
  } catch (error) {
    throw new Refused('next_unavailable', reasonOf(error))
  }
}

/** In one line: `fetch` hides why it failed in the cause. */
function reasonOf({ message, cause }) {
  return [message, cause?.code, cause?.message].filter(Boolean).join(': ')
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
if (!COUNTS.get(command)?.includes(rest.length)) wrongUsage('the command, or the number of its arguments')
try {
  await join(process.env)
  await commands[command](...rest)
} catch (error) {
  console.error(reasonOf(error))
  process.exit(1)
}
