// Strict reading of names, encodings and keys, and the digests (docs/protocol.md: Names, Encodings, Keys).
import { createHash, createHmac, createPublicKey, timingSafeEqual } from 'node:crypto'

/** A refusal with a stable code. The message is for the log of this side only. */
export class Refused extends Error {
  constructor(code, detail = '') {
    super(`${code}: ${detail}`)
    this.code = code
  }
}

const LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?'
const NAME = `${LABEL}(?:\\.${LABEL})*`
const SERVICE_ID = new RegExp(`^(?=[^/]{1,253}/)(${NAME})/(?=[^/]{1,100}$)(${NAME})$`)
const KID = /^(.+)\/([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])$/
const PRIVATE = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k']

export const encode = (bytes) => Buffer.from(bytes).toString('base64url')
export const sha256 = (bytes) => createHash('sha256').update(bytes).digest()
/** RFC 9530: the digest of a body's bytes, or of a request-target's. */
export const digest = (bytes) => `sha-256=:${sha256(bytes).toString('base64')}:`

/** The bytes of canonical base64url. Node's own decoder takes padding, blanks and trailing bits. */
export function decode(text) {
  const bytes = Buffer.from(typeof text === 'string' ? text : '', 'base64url')
  if (encode(bytes) !== text) throw new Refused('malformed_token', 'not base64url')
  return bytes
}

/** The JSON object in these bytes. JSON.parse takes repeated members, half surrogate pairs and 1e400. */
export function strictObject(bytes, { integers = false } = {}) {
  let text, value
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    value = JSON.parse(text)
  } catch (error) {
    throw new Refused('malformed_token', error.message)
  }
  if (!isObject(value)) throw new Refused('malformed_token', 'not an object')
  checkParts(text, integers)
  return value
}

/** A second look at JSON that JSON.parse has read. With `integers`, no member of the object itself is a fraction. */
function checkParts(text, integers) {
  const open = [] // the names of each object that is open, null for an array
  let last
  for (const [part] of text.matchAll(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[{}[\]:]/g)) {
    if (part === '{' || part === '[') open.push(part === '{' ? new Set() : null)
    else if (part === '}' || part === ']') open.pop()
    else if (part === ':') {
      if (open.at(-1).has(last)) throw new Refused('malformed_token', 'a member is repeated')
      open.at(-1).add(last)
    } else if (part.startsWith('"')) {
      last = JSON.parse(part)
      if (!last.isWellFormed()) throw new Refused('malformed_token', 'half a surrogate pair')
    } else if (!Number.isFinite(Number(part)) || (integers && open.length === 1 && /[.eE]/.test(part))) {
      throw new Refused('malformed_token', 'a number out of range, or a time that is no integer')
    }
    if (open.length > 32) throw new Refused('malformed_token', 'nested too deeply')
  }
}

export const isText = (value) => typeof value === 'string'
export const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
export const isNatural = (value) => Number.isSafeInteger(value) && value >= 0
export const isTime = (value) => isNatural(value) && value <= 253402300799

/** Names sorted by code points at every level, no white space. JavaScript's own order is by halves of pairs. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (!isObject(value)) return JSON.stringify(value)
  const names = Object.keys(value).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
  const members = names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)
  return `{${members.join(',')}}`
}

/** Domain and short name in a service id. */
export function splitServiceId(id) {
  const found = id.length <= 354 && SERVICE_ID.exec(id)
  if (!found) throw new Refused('invalid_name', 'not a service id')
  return { domain: found[1], service: found[2] }
}

/** The owner of a key and its thumbprint. */
export function splitKid(kid) {
  const found = KID.exec(kid)
  if (!found) throw new Refused('invalid_name', 'not a kid')
  splitServiceId(found[1])
  return { owner: found[1], thumbprint: found[2] }
}

/** A compact JWS, taken apart. Its signature is not checked. The header holds exactly alg, kid and typ. */
export function parseJws(text, limit = 6144) {
  if (typeof text !== 'string' || text.length > limit) throw new Refused('malformed_token', 'no text, or too long')
  const segments = text.split('.')
  if (segments.length !== 3 || !segments[1]) throw new Refused('malformed_token', 'not three segments')
  const [head, payload] = segments.map(decode)
  const header = strictObject(head)
  if (Object.keys(header).sort().join() !== 'alg,kid,typ' || Object.values(header).some((v) => typeof v !== 'string')) {
    throw new Refused('malformed_token', 'the header must hold exactly alg, kid and typ')
  }
  return { text, header, payload }
}

/** The token in the values of the Authorization header; `values` is a list, since a header may come twice. */
export function bearerToken(values) {
  const value = (values ?? []).join(', ').trim()
  const [, scheme, rest] = /^([^ ]*) *(.*)$/s.exec(value)
  if (value.includes(',')) throw new Refused('malformed_token', 'two values, or a comma')
  if (scheme.toLowerCase() !== 'bearer') throw new Refused('missing_token', 'no bearer token')
  if (!/^[A-Za-z0-9._~+/-]+=*$/.test(rest)) throw new Refused('malformed_token', 'not a token')
  return rest
}

/** A public key that a service may have: its algorithm, required members, thumbprint, and Node's own object. */
export function readKey(jwk) {
  if (!isObject(jwk)) throw new Refused('key_malformed', 'not an object')
  if (PRIVATE.some((name) => name in jwk)) throw new Refused('key_private_members')
  const key = jwk.kty === 'RSA' ? readRsa(jwk) : jwk.kty === 'EC' && jwk.crv === 'P-256' ? readP256(jwk) : null
  if (!key) throw new Refused('key_type_unsupported')
  if (jwk.alg !== undefined && jwk.alg !== key.alg) throw new Refused('key_alg_mismatch')
  return { ...key, thumbprint: encode(sha256(canonical(key.jwk))) }
}

function readRsa({ n, e }) {
  const [modulus, exponent] = [n, e].map((text) => integer(text))
  const bits = modulus.length * 8 - Math.clz32(modulus[0]) + 24
  if (bits < 2048 || bits > 8192) throw new Refused('key_size_unsupported')
  if (!exponent.equals(Buffer.from([1, 0, 1]))) throw new Refused('key_exponent_unsupported')
  if (modulus.at(-1) % 2 === 0) throw new Refused('key_even_modulus')
  const jwk = { kty: 'RSA', n, e }
  return { alg: 'RS256', jwk, publicKey: createPublicKey({ key: jwk, format: 'jwk' }) }
}

function readP256({ x, y }) {
  if ([x, y].some((text) => integer(text, 32).length !== 32)) throw new Refused('key_malformed')
  const jwk = { kty: 'EC', crv: 'P-256', x, y }
  try {
    return { alg: 'ES256', jwk, publicKey: createPublicKey({ key: jwk, format: 'jwk' }) }
  } catch {
    throw new Refused('key_off_curve')
  }
}

/** A number's bytes: of exactly `size`, or without a leading zero (RFC 7518 section 2). */
function integer(text, size) {
  let bytes
  try {
    bytes = decode(text)
  } catch {
    throw new Refused('key_malformed')
  }
  if (size === undefined && (bytes.length === 0 || bytes[0] === 0)) throw new Refused('key_malformed')
  return bytes
}

/** A join token's parts. The secret never leaves this process: only its MAC over a proof does. */
export function parseJoinToken(text) {
  const [prefix, id, secret, pin, ...more] = text.trim().split('.')
  try {
    const sizes = [id, secret, pin].map((part) => decode(part).length).join()
    if (prefix !== 'psj1' || sizes !== '12,32,32' || more.length) throw new Error('wrong size')
  } catch {
    throw new Refused('configuration', 'the join token cannot be read')
  }
  return { id, pin, mac: (proof) => encode(createHmac('sha256', sha256(decode(secret))).update(proof).digest()) }
}

export function sameText(one, other) {
  const [a, b] = [Buffer.from(one), Buffer.from(other)]
  return a.length === b.length && timingSafeEqual(a, b)
}
