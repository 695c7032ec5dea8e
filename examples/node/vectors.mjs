// Runs the test vectors of docs/vectors: node vectors.mjs FOLDER. The other kinds are for parts that this peer has not.
import { readFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import { KINDS, readRegistryKeys } from './documents.mjs'
import { checkConsistency, checkInclusion, decodeProof, leafHash, readCheckpoint } from './ledger.mjs'
import { Registry, kindOf } from './registry.mjs'
import { Refused, bearerToken, canonical, decode, digest, encode, parseJoinToken, readKey, sameText, splitKid, strictObject } from './strict.mjs'
import { ReplayGuard, Verifier, problemOf } from './verifier.mjs'

const check = (right, code) => {
  if (!right) throw new Refused(code)
}

function request(given) {
  const clock = () => given.now
  const keys = new Map(given.keys.map((key) => [key.kid, key]))
  const trust = {
    domain: async () => given.domain,
    policy: async () => given.policy,
    settings: async () => given,
    async key(kid) {
      const listed = keys.get(kid)
      check(listed, 'unknown_key')
      check(listed.state !== 'revoked', 'revoked_key')
      check(listed.state !== 'unavailable', 'trust_unavailable')
      return { ...listed, ...readKey(listed.jwk) }
    },
  }
  const replay = new ReplayGuard(clock)
  for (const [issuer, jti] of given.seen) replay.claim(issuer, jti, given.now + 600)
  const verifier = new Verifier({ trust, audience: given.audience, allow: given.allow, replay, clock })
  return verifier.verify(given.token, { ...given, body: async () => decode(given.body) })
}

const document = (kind) => async (given) => {
  const get = async (url) => (url.includes('/ledger/proof') ? JSON.stringify({ proof: given.consistency }) : given.registry_keys)
  const registry = new Registry({ url: '', pin: given.pin, clock: () => given.now, get })
  for (const jws of given.seen) await registry.read(kindOf(jws), jws, JSON.parse(decode(jws.split('.')[1])).sub)
  const { claims } = await registry.read(kind, given.document, given.subject, registry.seen)
  return kind === KINDS.keySet ? { ...claims, keys: claims.keys.map((key) => key.kid), revoked: claims.revoked.map((key) => key.kid) } : claims
}

const judges = {
  base64url: ({ text }) => ({ hex: decode(text).toString('hex') }),
  json: ({ text }) => strictObject(decode(text)),
  'canonical-json': ({ text }) => ({ canonical: encode(canonical(strictObject(decode(text)))) }),
  'content-digest': (given) => check(digest(decode(given.body)) === given.digest, 'wrong_binding'),
  'target-digest': (given) => check(/^[!-~]+$/.test(given.target) && digest(given.target) === given.digest, 'wrong_binding'),
  kid: ({ kid }) => ({ service_id: splitKid(kid).owner, thumbprint: splitKid(kid).thumbprint }),
  key({ jwk }) {
    const { alg, thumbprint, publicKey } = readKey(jwk)
    const spki = encode(publicKey.export({ type: 'spki', format: 'der' }))
    return { alg, thumbprint, keyId: `acme.internal/client-service/${thumbprint}`, publicKey: spki }
  },
  authorization: ({ authorization }) => ({ token: bearerToken(authorization === null ? undefined : [authorization]) }),
  join({ join_token, proof, mac }) {
    const token = parseJoinToken(join_token)
    check(sameText(token.mac(proof), mac), 'join_refused')
    return token
  },
  refusal: ({ code }) => problemOf(code),
  request: async (given) => (await request(given)).claims,
  transaction: async (given) => (await request(given)).transaction.claims,
  'registry-keys': async ({ document, pin, now }) => {
    const read = await readRegistryKeys(document, pin, now)
    return { ...read, signing_keys: [...read.signers.keys()] }
  },
  'key-set': document(KINDS.keySet),
  changes: document(KINDS.changes),
  policy: document(KINDS.policy),
  domain: document(KINDS.domain),
  inclusion(given) {
    const proof = asDocument(() => decodeProof(given.proof))
    checkInclusion(leafHash(decode(given.entry)), given.index, given.size, proof, decode(given.root))
  },
  consistency(given) {
    const older = { size: given.old, root: decode(given.old_root) }
    checkConsistency(older, { size: given.new, root: decode(given.new_root) }, decodeProof(given.proof))
  },
  checkpoint({ note, origin, keys }) {
    const { size, root } = readCheckpoint(note, origin, keys)
    return { size, root: encode(root) }
  },
}

function asDocument(read) {
  try {
    return read()
  } catch {
    throw new Refused('document_malformed')
  }
}

async function verdict(file, one) {
  try {
    return ['accepted', (await judges[file.kind]({ keys: file.keys, ...file.defaults, ...one.input })) ?? {}]
  } catch (error) {
    return [error.code ?? error.stack, {}]
  }
}

if (process.argv.length !== 3) {
  console.error('usage: node vectors.mjs FOLDER')
  process.exit(2)
}
let [passed, failed] = [0, 0]
for (const kind of Object.keys(judges)) {
  const file = JSON.parse(readFileSync(`${process.argv[2]}/${kind}.json`))
  for (const one of file.cases) {
    const [code, facts] = await verdict(file, one)
    const wrong = Object.entries(one.claims ?? {}).filter(([name, value]) => !isDeepStrictEqual(facts[name], value))
    if (code === one.expect && wrong.length === 0) passed += 1
    else {
      failed += 1
      console.error(`${kind}/${one.id}: ${code}, expected ${one.expect} ${JSON.stringify(wrong)}`)
    }
  }
}
console.log(`${passed} cases passed, ${failed} failed`)
process.exit(failed === 0 ? 0 : 1)
