// For which user a chain of calls is made: the token that goes along with each of them (docs/protocol.md: Transaction token).
import { checkSigned, checkTimes, ownerIn } from './claims.mjs'
import { fits } from './documents.mjs'
import { Refused, canonical, encode, isObject, isText, isTime, parseJws, sha256, strictObject } from './strict.mjs'

const LONGEST = 900
const isScope = (text) => /^[!#-[\]-~]{1,100}$/.test(text)
const isSmall = (value) => isObject(value) && Buffer.byteLength(canonical(value)) <= 1024
const scopesIn = (text) => (text === '' ? [] : text.split(' '))
const CLAIMS = {
  iss: isText, aud: isText, req_wl: isText, iat: isTime, exp: isTime, tctx: isSmall, rctx: isSmall,
  sub: (value) => isText(value) && /^(?: |[^\p{C}\p{Z}]){1,512}$/u.test(value), // printable: it stands in logs
  txn: (value) => isText(value) && /^[!-~]{1,200}$/.test(value),
  scope: (value) => isText(value) && scopesIn(value).every(isScope) && new Set(scopesIn(value)).size === scopesIn(value).length,
}

/** The hash by which a request token binds a transaction token. */
export const transactionHash = (token) => encode(sha256(token))

/** Step 9: the transaction of a request, undefined where it has none. `tth` is its token's claim, `token` the header's value.
 * Throws bad_transaction_token, whatever is wrong with it, or trust_unavailable. */
export async function boundTransaction(trust, tth, token, now) {
  if (tth === undefined && token === undefined) return undefined
  try {
    if (token === undefined || transactionHash(token) !== tth) throw new Refused('wrong_binding', 'tth')
    return await readTransaction(trust, token, now)
  } catch (error) {
    if (!(error instanceof Refused) || error.code === 'trust_unavailable') throw error
    throw new Refused('bad_transaction_token', error.message)
  }
}

async function readTransaction(trust, token, now) {
  const { header, payload } = parseJws(token)
  const claims = strictObject(payload, { integers: true })
  const minter = ownerIn(header, 'txntoken+jwt')
  const count = Object.keys(claims).length
  if (!fits(claims, CLAIMS) || count !== Object.keys(CLAIMS).length) throw new Refused('malformed_token', 'claims')
  const settings = await trust.settings()
  if (!settings.minters.includes(minter)) throw new Refused('caller_not_allowed', `${minter} is no minter`)
  const key = await trust.key(header.kid) // only now: a caller can name any key
  await checkSigned(token, header, key)
  if (claims.iss !== minter) throw new Refused('wrong_issuer', claims.iss)
  if (claims.aud !== (await trust.domain())) throw new Refused('wrong_audience', claims.aud)
  checkTimes(claims, key, now, LONGEST)
  const scopes = scopesIn(claims.scope)
  if ('derived_from' in claims.rctx) checkDerived(claims, scopes, settings.derived_scopes ?? [])
  return { id: claims.txn, user: claims.sub, scopes, claims, token }
}

/** A scope that the user's token has not is the only one, and the settings derive it for the service that asked. */
function checkDerived({ req_wl, rctx }, scopes, derivations) {
  const granted = ({ minter, from, to }) => minter === req_wl && from === rctx.derived_from && to.includes(scopes[0])
  if (scopes.length !== 1 || !isText(rctx.iss) || !derivations.some(granted)) {
    throw new Refused('insufficient_scope', 'the settings derive no such scope')
  }
}
