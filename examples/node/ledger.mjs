// The transparency log: checkpoints, inclusion and consistency proofs (docs/protocol.md: Ledger; RFC 9162 section 2.1).
import { createPublicKey, verify } from 'node:crypto'
import { Refused, canonical, decode, isNatural, sha256 } from './strict.mjs'

const BODY = /^([^\n]+)\n(0|[1-9][0-9]{0,17})\n([A-Za-z0-9+/]{43}=)\n$/
const SIGNATURE = /^— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})$/

export const leafHash = (entry) => sha256(Buffer.concat([Buffer.from([0]), Buffer.from(entry)]))
const nodeHash = (left, right) => sha256(Buffer.concat([Buffer.from([1]), left, right]))

/** The hashes of a proof. */
export function decodeProof(values) {
  if (!Array.isArray(values) || values.length > 64) throw new Refused('malformed_token', 'not a proof')
  const proof = values.map(decode)
  if (proof.some((hash) => hash.length !== 32)) throw new Refused('malformed_token', 'not a proof')
  return proof
}

/** The size and root of a ledger's head, signed by one of its keys (JWKs of Ed25519). */
export function readCheckpoint(note, origin, jwks) {
  const refused = (detail) => new Refused('document_bad_checkpoint', detail)
  const end = note.indexOf('\n\n')
  const text = note.slice(0, end + 1)
  const [body, lines] = [BODY.exec(text), note.slice(end + 2).split('\n')]
  if (note.length > 16384 || end < 0 || !body || lines.pop() !== '' || !lines.length || lines.length > 64) throw refused('not a checkpoint')
  const root = Buffer.from(body[3], 'base64')
  if (body[1] !== origin || root.toString('base64') !== body[3]) throw refused('of another ledger')
  const signatures = lines.map((line) => SIGNATURE.exec(line) ?? [])
  if (!signatures.every(([whole]) => whole)) throw refused('not a signature line')
  const ours = signatures.filter(([, name]) => name === origin).map(([, , value]) => strictBase64(value, refused))
  for (const jwk of jwks) {
    const id = sha256(Buffer.concat([Buffer.from(`${origin}\n\x01`), decode(jwk.x)])).subarray(0, 4)
    const signed = ours.find((value) => value.subarray(0, 4).equals(id))
    if (!signed) continue
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: jwk.x }, format: 'jwk' })
    if (!verify(null, Buffer.from(text), key, signed.subarray(4))) throw refused('the signature does not verify')
    return { size: Number(body[2]), root }
  }
  throw new Refused('document_unknown_signer', 'no key of the ledger signed the checkpoint')
}

function strictBase64(text, refused) {
  const bytes = Buffer.from(text, 'base64')
  if (bytes.toString('base64') !== text) throw refused('not a signature line')
  return bytes
}

/** The leaf is at `index` in the tree of that size and root. */
export function checkInclusion(leaf, index, size, proof, root) {
  const refused = new Refused('document_not_in_ledger', 'the proof does not lead to the root')
  const found = climb(index, size - 1, proof, refused, leaf, (hash, part, left) =>
    left ? nodeHash(part, hash) : nodeHash(hash, part))
  if (!found.equals(root)) throw refused
}

/** The newer tree begins with the older one. */
export function checkConsistency(older, newer, proof) {
  const refused = new Refused('document_inconsistent', 'two histories of one ledger')
  if (older.size === 0 || older.size === newer.size) {
    if (proof.length || (older.size && !older.root.equals(newer.root))) throw refused
    return
  }
  const whole = (older.size & (older.size - 1)) === 0 // then the old root is a node of the new tree
  const [first, ...rest] = whole ? [older.root, ...proof] : proof
  if (older.size > newer.size || !first) throw refused
  let [number, last] = [older.size - 1, newer.size - 1]
  for (; number % 2; number = half(number)) last = half(last)
  const [before, after] = climb(number, last, rest, refused, [first, first], ([old, now], part, left) =>
    left ? [nodeHash(part, old), nodeHash(part, now)] : [old, nodeHash(now, part)])
  if (!before.equals(older.root) || !after.equals(newer.root)) throw refused
}

const half = (number) => Math.floor(number / 2)

/** From a node of a level whose last node is `last` up to the root. */
function climb(number, last, proof, refused, start, step) {
  if (!isNatural(number) || number > last) throw refused
  let found = start
  for (const part of proof) {
    if (last === 0) throw refused
    const left = number % 2 === 1 || number === last
    found = step(found, part, left)
    for (; left && number && number % 2 === 0; number = half(number)) last = half(last)
    ;[number, last] = [half(number), half(last)]
  }
  if (last !== 0) throw refused
  return found
}

/** The entry that admitted a key of a key set, as the ledger has it, leads to the checkpoint. */
export function checkAdmission(key, service, checkpoint) {
  const { kid, index, active_from, active_until, expires_at, by, evidence, proof, state } = key
  const data = { alg: key.alg, jwk: key.jwk, active_from, expires_at }
  const type = 'key_admitted'
  const entry = { seq: index + 1, time: active_from, type, service, kid, by, evidence, data }
  checkInclusion(leafHash(canonical(entry)), index, checkpoint.size, decodeProof(proof), checkpoint.root)
  if (active_until > expires_at || (state === 'active' && active_until !== expires_at)) {
    throw new Refused('document_not_in_ledger', 'the key was admitted for another time')
  }
}
