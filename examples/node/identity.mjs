// Who this service is: its key, its registration, and the tokens that it signs (docs/protocol.md: Registration, Request token).
import { generateKeyPairSync, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CompactSign } from 'jose'
import { digest, encode, parseJoinToken, readKey } from './strict.mjs'

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
    this.#hold(await loadOrMake(join(this.keyDir, `${this.service}.pem`)))
    const proof = await this.#proof(this)
    const joining = this.joinToken && parseJoinToken(this.joinToken)
    await this.#register(joining ? { proof, join: { id: joining.id, mac: joining.mac(proof) } } : { proof })
    this.registry.headers = (method, target) => this.headersFor('registry', method, target)
    return this
  }

  /** The headers of one request, with a token for it alone. `headers` are those that the token binds. */
  async headersFor(audience, method, target, body = '', headers = {}) {
    return { ...headers, authorization: `Bearer ${await this.sign(audience, method, target, body, headers)}` }
  }

  /** A request token for one attempt: sign again for each retry. */
  async sign(audience, method, target, body = '', headers = {}) {
    const iat = Math.floor(this.clock())
    const aud = audience.includes('/') ? audience : `${this.id.split('/')[0]}/${audience}`
    const digests = { target_digest: digest(target), content_digest: digest(body) }
    const claims = { iss: this.id, sub: this.id, aud, iat, nbf: iat, exp: iat + 60, jti: newJti(), method, ...digests, headers }
    return this.#jws(this, 'peerseal-request+jwt', claims)
  }

  /** One signed call: the answer as `fetch` gives it. No redirect is followed. */
  async call(audience, method, url, body = '', headers = {}) {
    const { pathname, search, href } = new URL(url) // escaped as fetch sends it
    const bound = body && !headers['content-type'] ? { ...headers, ...JSON_TYPE } : headers
    const signed = await this.headersFor(audience, method, pathname + search, body, bound)
    return fetch(href, { method, body: body || undefined, headers: signed, redirect: 'manual' })
  }

  #hold(privateKey) {
    const { alg, jwk, thumbprint } = readKey(createPublicKey(privateKey).export({ format: 'jwk' }))
    Object.assign(this, { privateKey, alg, jwk, kid: `${this.id}/${thumbprint}` })
  }

  /** By the new key: its holder asks to register it. */
  async #proof(key) {
    const iat = Math.floor(this.clock())
    const claims = { iss: this.id, aud: this.registryId, iat, exp: iat + 60, jti: newJti(), jwk: key.jwk }
    return this.#jws(key, 'peerseal-proof+jwt', claims)
  }

  async #register(body) {
    const path = `/v1/services/${this.service}/keys`
    const options = { method: 'POST', body: JSON.stringify(body), headers: JSON_TYPE, redirect: 'error' }
    const answer = await fetch(this.registry.url + path, options)
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
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  await mkdir(join(path, '..'), { recursive: true, mode: 0o700 })
  await writeFile(path, privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600, flag: 'wx' })
  return privateKey
}
