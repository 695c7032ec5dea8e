// Who calls this service: the eleven steps (docs/protocol.md: Verification).
import { LEEWAY, checkSigned, checkTimes, ownerIn } from './claims.mjs'
import { Refused, decode, digest, isObject, isTime, parseJws, strictObject, canonical } from './strict.mjs'
import { boundTransaction } from './transaction.mjs'

const LONGEST = 300
const CLAIMS = ['iss', 'sub', 'aud', 'iat', 'nbf', 'exp', 'jti', 'method', 'target_digest', 'content_digest', 'headers']
const TIMES = ['iat', 'nbf', 'exp']
const JTI = /^[A-Za-z0-9_-]{21}[AQgw]$/

/** The tokens that were accepted. For one process: several need a store that they share, with one atomic insert. */
export class ReplayGuard {
  #seen = new Map()
  constructor(clock = () => Date.now() / 1000) {
    this.clock = clock
  }

  claim(issuer, jti, until) {
    const now = this.clock()
    for (const [key, end] of this.#seen) {
      if (end > now) break // they end in about the order in which they came
      this.#seen.delete(key)
    }
    const key = `${issuer} ${jti}`
    if (this.#seen.has(key)) return false
    this.#seen.set(key, until)
    return true
  }
}

export class Verifier {
  /** `trust` answers `domain()`, `key(kid)`, `policy(id)` and `settings()`; `allow` maps callers, by id or "*", to their scopes. */
  constructor({ trust, audience, allow, replay = new ReplayGuard(), clock = () => Date.now() / 1000 }) {
    Object.assign(this, { trust, audience, allow, replay, clock })
  }

  /** The proven caller, and its transaction, if any: `scopes` are what it may do here in that. `headers` have lower-case
   * names; `body()` gives the bytes, and is called after the checks of what is sent before it. Throws Refused. */
  async verify(token, { method, target, headers, body, scope }) {
    const { header, payload } = parseJws(token) // 1
    const claims = strictObject(payload, { integers: true })
    const caller = ownerIn(header, 'peerseal-request+jwt') // 2
    checkShape(claims)
    const allowed = await this.#scopesOf(caller) // 3
    const key = await this.trust.key(header.kid)
    await checkSigned(token, header, key) // 4
    if (claims.iss !== caller || claims.sub !== caller) throw new Refused('wrong_issuer', claims.iss) // 5
    if (claims.aud !== this.audience) throw new Refused('wrong_audience', claims.aud) // 6
    checkTimes(claims, key, this.clock(), LONGEST) // 7
    await checkBinding(claims, { method, target, headers, body }) // 8
    const transaction = await boundTransaction(this.trust, claims.tth, valueOf(headers, 'txn-token'), this.clock()) // 9
    const scopes = transaction ? allowed.filter((one) => transaction.scopes.includes(one)) : allowed
    if (scope != null && !scopes.includes(scope)) throw new Refused('insufficient_scope', scope) // 10
    if (!(await this.replay.claim(caller, claims.jti, claims.exp + LEEWAY))) throw new Refused('replayed', claims.jti) // 11
    return { id: caller, kid: header.kid, scopes, claims, transaction }
  }

  /** What the code and the registry's policy both allow. */
  async #scopesOf(caller) {
    const local = caller.startsWith(`${await this.trust.domain()}/`)
    const ours = this.allow[caller] ?? (local ? this.allow['*'] : undefined)
    if (!ours) throw new Refused('caller_not_allowed', caller)
    const policy = await this.trust.policy(this.audience)
    if (!policy) return ours
    const theirs = policy.allow[caller] ?? (local ? policy.allow['*'] : undefined)
    if (!theirs) throw new Refused('caller_not_allowed', caller)
    return ours.filter((scope) => theirs.includes(scope))
  }
}

/** All claims, each of its type, and no other: an unchecked claim must not look as if it was checked. */
function checkShape(claims) {
  const known = [...CLAIMS, 'tth', 'ctx', 'cp']
  const right = (name) =>
    TIMES.includes(name) ? isTime(claims[name]) : name === 'headers' ? isObject(claims[name]) : typeof claims[name] === 'string'
  const lower = ([name, value]) => typeof value === 'string' && name === name.toLowerCase()
  if (!CLAIMS.every(right) || !Object.keys(claims).every((name) => known.includes(name)) || !JTI.test(claims.jti)) {
    throw new Refused('malformed_token', 'a claim is missing, unknown, or of another type')
  }
  if (!Object.entries(claims.headers).every(lower)) throw new Refused('malformed_token', 'headers')
  if ('tth' in claims && decode(claims.tth).length !== 32) throw new Refused('malformed_token', 'tth')
  if ('ctx' in claims && !(isObject(claims.ctx) && Buffer.byteLength(canonical(claims.ctx)) <= 1024)) {
    throw new Refused('malformed_token', 'ctx')
  }
  if ('cp' in claims && typeof claims.cp !== 'string') throw new Refused('malformed_token', 'cp')
}

async function checkBinding(claims, { method, target, headers, body }) {
  if (claims.method !== method) throw new Refused('wrong_binding', 'method')
  if (!/^\/[!-~]*$/.test(target) || claims.target_digest !== digest(target)) throw new Refused('wrong_binding', 'target')
  for (const name of new Set(['content-type', 'content-encoding', ...Object.keys(claims.headers)])) {
    if (valueOf(headers, name) !== valueOf(claims.headers, name)) throw new Refused('wrong_binding', name)
  }
  if (claims.content_digest !== digest(await body())) throw new Refused('wrong_binding', 'body')
}

function valueOf(headers, name) {
  if (!Object.hasOwn(headers, name)) return undefined // "constructor", too, is a name that a token may bind
  const value = headers[name].replace(/^[ \t]+|[ \t]+$/g, '')
  return value === '' && name === 'content-type' ? undefined : value
}

/** Status and headers of the answer to a refused request; the body is the problem document (RFC 9457). */
export function problemOf(code) {
  const forbidden = ['caller_not_allowed', 'insufficient_scope'].includes(code)
  const others = {
    trust_unavailable: 503, split_view: 503, content_too_large: 413, content_unreadable: 400,
    next_unavailable: 502, // of this example, not of the protocol
  }
  const status = others[code] ?? (forbidden ? 403 : 401)
  const headers = { 'content-type': 'application/problem+json', 'cache-control': 'no-store' }
  const error = forbidden ? ' error="insufficient_scope"' : code === 'missing_token' ? '' : ' error="invalid_token"'
  if (status === 401 || status === 403) headers['www-authenticate'] = `Bearer${error}`
  if (status === 503) headers['retry-after'] = '5'
  return { status, headers, body: JSON.stringify({ type: 'about:blank', status, code }) }
}
