// The registry's signed documents: their members, and the checks that need no history (docs/protocol.md: Signed documents).
import { compactVerify } from 'jose'
import { Refused, isNatural, isObject, isText, isTime, parseJws, readKey, splitKid, splitServiceId, strictObject } from './strict.mjs'
import { decodeProof } from './ledger.mjs'

const isBoolean = (value) => typeof value === 'boolean'
const listOf = (each) => (value) => Array.isArray(value) && value.every(each)
const optional = (check) => (value) => value === undefined || check(value)
const isKid = (value) => isText(value) && Boolean(splitKid(value))
const isServiceId = (value) => isText(value) && Boolean(splitServiceId(value))
const isProof = (value) => Boolean(decodeProof(value))

const FRAME = { iss: isText, sub: isText, iat: isTime, exp: isTime }
const LEDGER = { ...FRAME, seq: isNatural, checkpoint: isText }
const LISTED = {
  kid: isText, state: (value) => ['active', 'retired'].includes(value), active_until: isTime, active_from: isTime,
  expires_at: isTime, index: isNatural, by: isObject, evidence: (value) => value === null || isText(value), proof: isProof,
}
const REVOKED = { kid: isKid, revoked_at: isTime, index: isNatural }
const DERIVED = { minter: isServiceId, from: isText, to: listOf(isText) }
const isLedgerKey = (value) => isObject(value) && value.kty === 'OKP' && value.crv === 'Ed25519' && isText(value.x)

/** Each kind: its typ, its greatest size in characters, and its members. Unknown members are ignored. */
export const KINDS = {
  registryKeys: {
    typ: 'peerseal-registry+jwt', size: 64 << 10,
    members: {
      ...FRAME, version: isNatural, root: isObject, signing_keys: listOf(isObject), ledger_key: isLedgerKey,
      past_ledger_keys: optional(listOf(isLedgerKey)), urls: listOf(isText),
    },
  },
  keySet: {
    typ: 'jwk-set+jwt', size: 8 << 20,
    members: { ...LEDGER, head: isNatural, keys: listOf(isObject), revoked: listOf((key) => isObject(key) && fits(key, REVOKED)) },
  },
  changes: {
    typ: 'peerseal-changes+jwt', size: 1 << 20,
    members: {
      ...LEDGER, since: isNatural, services: listOf(isServiceId), reset: isBoolean, revoked: optional(listOf(isKid)),
      proof: optional(isProof), seqs: optional(listOf(isNatural)),
    },
    whole: ({ since, seq, services, seqs }) => seqs === undefined ||
      (seqs.length === services.length && seqs.every((entry) => since < entry && entry <= seq)),
  },
  policy: {
    typ: 'peerseal-policy+jwt', size: 256 << 10,
    members: { ...LEDGER, head: isNatural, policy: (value) => value === null || isPolicy(value) },
  },
  domain: {
    typ: 'peerseal-domain+jwt', size: 256 << 10,
    members: {
      ...LEDGER, head: isNatural, minters: listOf(isServiceId), issuers: listOf(isObject),
      derived_scopes: optional(listOf((value) => isObject(value) && fits(value, DERIVED))),
    },
  },
}

function isPolicy(value) {
  if (!isObject(value) || Object.keys(value).some((name) => !['allow', 'restricted'].includes(name))) return false
  const callers = isObject(value.allow) && Object.entries(value.allow)
  return Boolean(callers) && optional(isBoolean)(value.restricted) &&
    callers.every(([caller, scopes]) => (caller === '*' || isServiceId(caller)) && listOf(isText)(scopes))
}

/** Whether each of these members passes its check. */
export function fits(value, members) {
  return Object.entries(members).every(([name, check]) => check(value[name]))
}

/** A document of that kind, signed by one of `signers` (a Map by kid) for the registry of `domain`, and in force now. */
export async function readDocument(kind, jws, signers, domain, now) {
  const parsed = asDocument(() => parse(kind, jws))
  const signer = signers.get(parsed.header.kid)
  if (signer?.alg !== parsed.header.alg) throw new Refused('document_unknown_signer', parsed.header.kid)
  await checkSignature(jws, signer, 'document_bad_signature')
  const claims = asDocument(() => membersOf(kind, parsed.payload))
  if (claims.iss !== `${domain}/registry`) throw new Refused('document_wrong_issuer', claims.iss)
  if (claims.iat > now + 30) throw new Refused('document_from_future', 'is a clock wrong?')
  if (claims.exp <= claims.iat || now >= claims.exp + 30) throw new Refused('document_expired', 'is a clock wrong?')
  return claims
}

/** The root's document, believed by the pin. Its root key is in the payload, which is read before the signature is checked. */
export async function readRegistryKeys(jws, pin, now) {
  const kind = KINDS.registryKeys
  const [parsed, root] = asDocument(() => {
    const parsed = parse(kind, jws)
    return [parsed, readKey(strictObject(parsed.payload).root)]
  })
  if (root.thumbprint !== pin) throw new Refused('document_wrong_root', root.thumbprint)
  const { owner, thumbprint } = splitKid(parsed.header.kid)
  const { domain, service } = splitServiceId(owner)
  const signers = new Map(thumbprint === pin ? [[parsed.header.kid, root]] : [])
  const claims = await readDocument(kind, jws, signers, domain, now)
  if (service !== 'registry') throw new Refused('document_wrong_issuer', owner)
  if (claims.sub !== domain) throw new Refused('document_wrong_subject', claims.sub)
  const keys = asDocument(() => claims.signing_keys.map(readKey))
  const ledgerKeys = [claims.ledger_key, ...(claims.past_ledger_keys ?? [])]
  return { domain, version: claims.version, signers: new Map(keys.map((key) => [`${owner}/${key.thumbprint}`, key])), ledgerKeys }
}

/** The keys of a key set, each with Node's own key object. */
export function keysOf(claims) {
  return asDocument(() => {
    if (claims.revoked.some((key) => splitKid(key.kid).owner !== claims.sub)) throw new Refused('malformed_token')
    return claims.keys.map((listed) => {
      const key = readKey(listed)
      if (!fits(listed, LISTED) || listed.kid !== `${claims.sub}/${key.thumbprint}`) throw new Refused('malformed_token')
      return { ...listed, ...key }
    })
  })
}

/** Throws a Refused with that code unless the key signed this compact JWS with its one algorithm. */
export async function checkSignature(jws, { publicKey, alg }, code) {
  try {
    await compactVerify(jws, publicKey, { algorithms: [alg] })
  } catch (error) {
    throw new Refused(code, error.message)
  }
}

function parse(kind, jws) {
  const parsed = parseJws(jws, kind.size)
  if (parsed.header.typ !== kind.typ) throw new Refused('document_wrong_type', parsed.header.typ)
  return parsed
}

function membersOf(kind, payload) {
  const claims = strictObject(payload, { integers: true })
  if (!fits(claims, kind.members) || !(kind.whole?.(claims) ?? true)) throw new Refused('malformed_token', 'a member is missing, or of another type')
  return claims
}

/** What is wrong with a token, key or name is wrong with the document. */
function asDocument(read) {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof Refused) || error.code.startsWith('document_')) throw error
    throw new Refused('document_malformed', error.message)
  }
}
