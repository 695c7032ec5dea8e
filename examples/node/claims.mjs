// Checks that all tokens of services share (docs/protocol.md: Verification, steps 2, 4 and 7).
import { checkSignature } from './documents.mjs'
import { Refused, splitKid } from './strict.mjs'

export const LEEWAY = 30

/** The service that owns the key which a token of that typ names. */
export function ownerIn({ typ, alg, kid }, expected) {
  if (typ !== expected) throw new Refused('wrong_type', typ)
  if (alg !== 'RS256' && alg !== 'ES256') throw new Refused('malformed_token', `alg ${alg}`)
  try {
    return splitKid(kid).owner
  } catch (error) {
    throw new Refused('malformed_token', error.message)
  }
}

/** The key, with its one algorithm, signed the token. */
export async function checkSigned(token, header, key) {
  if (header.alg !== key.alg) throw new Refused('bad_signature', "alg is not the key's")
  await checkSignature(token, key, 'bad_signature')
}

/** `longest` is in seconds; a token without nbf is good from its iat on. */
export function checkTimes({ iat, nbf = iat, exp }, key, now, longest) {
  if (exp <= iat) throw new Refused('expired', 'exp is not after iat')
  if (exp - iat > longest) throw new Refused('lifetime_too_long', `${exp - iat} s`)
  if (Math.max(iat, nbf) > now + LEEWAY) throw new Refused('not_yet_valid', 'is a clock wrong?')
  if (now >= exp + LEEWAY) throw new Refused('expired', 'is a clock wrong?')
  if (iat < key.active_from - LEEWAY) throw new Refused('not_yet_valid', 'before its key was active')
  if (iat > key.active_until + LEEWAY) throw new Refused('expired', 'after its key ended')
}
