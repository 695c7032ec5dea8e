// Who this service is: its key, its registration, and the tokens that it signs (docs/protocol.md: Registration, Request token).
import { generateKeyPairSync, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CompactSign } from 'jose'
import { digest, encode, parseJoinToken, readKey } from './strict.mjs'
import { transactionHash } from './transaction.mjs'

const JSON_TYPE = { 'content-type': 'application/json' }

export class Identity {
  /** `registry` is a Registry. `joinToken` is needed until the key is registered. */
  constructor({ service, registry, keyDir, joinToken, clock = () => Date.now() / 1000 }) {
    Object.assign(this, { service, registry, keyDir, joinToken, clock })
  }

  /** Load or make the key, and register it. A key that is registered already is registered again without harm. */
  async start() {
    const domain = await this.registry.domain()
    this.id = `${domain}/${this.service}`
    this.registryId = `${domain}/registry`
    this.path = join(this.keyDir, `${this.service}.pem`)
    Object.assign(this, this.#described(await loadOrMake(this.path)))
    const proof = await this.#proof(this)
    const joining = this.joinToken && parseJoinToken(this.joinToken)
    const right = joining ? { join: { id: joining.id, mac: joining.mac(proof) } } : {}
    await this.#register(JSON.stringify({ proof, ...right }), JSON_TYPE)
    this.registry.headers = (method, target) => this.headersFor('registry', method, target)
    return this
  }

  /** Register another key, for which the present one vouches, and keep it in place of that. A key is good for 7 days: do
   * this once a day, and restart the service some time after. */
  async rotate() {
    const next = this.#described(newKey())
    const body = JSON.stringify({ proof: await this.#proof(next) })
    await this.#register(body, await this.headersFor('registry', 'POST', this.#keysPath, body, JSON_TYPE))
    await rm(`${this.path}.new`, { force: true }) // of a rotation that was cut short
    await save(`${this.path}.new`, next.privateKey)
    await rename(`${this.path}.new`, this.path)
    Object.assign(this, next)
  }

  /** The headers of one request, with a token for it alone. `headers` are those that the token binds; `transaction` is the
   * transaction token in which the request is made, if any: it goes along unchanged. */
  async headersFor(audience, method, target, body = '', headers = {}, transaction = undefined) {
    const authorization = `Bearer ${await this.sign(audience, method, target, body, headers, transaction)}`
    return { ...headers, ...(transaction && { 'txn-token': transaction }), authorization }
  }

  /** A request token for one attempt: sign again for each retry. */
  async sign(audience, method, target, body = '', headers = {}, transaction = undefined) {
    const iat = Math.floor(this.clock())
    const aud = audience.includes('/') ? audience : `${this.id.split('/')[0]}/${audience}`
    const digests = { target_digest: digest(target), content_digest: digest(body) }
    const claims = { iss: this.id, sub: this.id, aud, iat, nbf: iat, exp: iat + 60, jti: newJti(), method, ...digests, headers }
    const tth = transaction && { tth: transactionHash(transaction) }
    return this.#jws(this, 'peerseal-request+jwt', { ...claims, ...tth })
  }

  /** One signed call: the answer as `fetch` gives it. No redirect is followed. */
  async call(audience, method, url, body = '', headers = {}, transaction = undefined) {
    const { pathname, search, href } = new URL(url) // escaped as fetch sends it
    const bound = body && !headers['content-type'] ? { ...headers, ...JSON_TYPE } : headers
    const signed = await this.headersFor(audience, method, pathname + search, body, bound, transaction)
    return fetch(href, { method, body: body || undefined, headers: signed, redirect: 'manual', signal: AbortSignal.timeout(20_000) })
  }

  #described(privateKey) {
    const { alg, jwk, thumbprint } = readKey(createPublicKey(privateKey).export({ format: 'jwk' }))
    return { privateKey, alg, jwk, kid: `${this.id}/${thumbprint}` }
  }

  /** By the new key: its holder asks to register it. */
  async #proof(key) {
    const iat = Math.floor(this.clock())
    const claims = { iss: this.id, aud: this.registryId, iat, exp: iat + 60, jti: newJti(), jwk: key.jwk }
    return this.#jws(key, 'peerseal-proof+jwt', claims)
  }

  get #keysPath() {
    return `/v1/services/${this.service}/keys`
  }

  async #register(body, headers) {
    const answer = await fetch(this.registry.url + this.#keysPath, { method: 'POST', body, headers, redirect: 'error' })
    const text = await answer.text()
    if (answer.status !== 200 && answer.status !== 201) throw new Error(`not registered: ${answer.status} ${text}`)
  }

  #jws({ privateKey, alg, kid }, typ, claims) {
    return new CompactSign(Buffer.from(JSON.stringify(claims))).setProtectedHeader({ alg, kid, typ }).sign(privateKey)
  }
}

const newJti = () => encode(randomBytes(16))

async function loadOrMake(path) {
  try {
    return createPrivateKey(await readFile(path))
  } catch (error) {
    if (error.code !== 'ENOENT') throw error
  }
  const made = newKey()
  await mkdir(join(path, '..'), { recursive: true, mode: 0o700 })
  await save(path, made)
  return made
}

const newKey = () => generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey

const save = (path, key) => writeFile(path, key.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600, flag: 'wx' })
