// What this peer believes of the registry, and for how long (docs/protocol.md: Check a document, How long a document is believed).
import { setTimeout as sleep } from 'node:timers/promises'
import { Refused, parseJws, splitKid, splitServiceId } from './strict.mjs'
import { KINDS, keysOf, readDocument, readRegistryKeys } from './documents.mjs'
import { checkAdmission, checkConsistency, decodeProof, readCheckpoint } from './ledger.mjs'

const OFFLINE_LIMIT = 3600 // seconds for which a document is believed after its last signed confirmation
const POLL = 1000 // milliseconds between two questions for changes: a revocation takes effect that soon
const COOLDOWN = 5000 // milliseconds until a document that could not be had is asked for again
const PATIENCE = 1000 // milliseconds: a caller with a document that is believed waits no longer for the registry

/** Milliseconds, for what is waited for here: no step of the clock stops a question. */
const ticks = () => performance.now()

export class Registry {
  #root // the registry keys document, read
  #newest = { size: 0 } // the newest checkpoint
  #held = new Map() // by path: the documents that are believed, each as of the tick when the registry was last asked
  #failed = new Map() // by path: the tick at which it could not be had
  #revoked = new Set() // kids: no later document brings one back
  #polled = -Infinity
  #flights = new Map() // by path: what the registry is asked for now

  /** `pin` is the root key's thumbprint; `headers(method, target)` gives the headers of a call that this service signs. */
  constructor({ url, pin, clock = () => Date.now() / 1000, get = httpGet }) {
    Object.assign(this, { url, pin, clock, get, headers: undefined })
  }

  /** The trust domain, after the root's document was fetched. */
  async domain() {
    return (await this.#rootDocument()).domain
  }

  /** A service's key by its kid. Throws unknown_key, revoked_key or trust_unavailable. A kid that is not held may be new:
   * it waits for the next question for changes, so that unknown kids cost the registry nothing. */
  async key(kid) {
    const { owner } = splitKid(kid)
    const { service } = splitServiceId(owner)
    const arrived = ticks()
    for (;;) {
      const { keys, claims, asOf } = await this.#believed(KINDS.keySet, `/v1/services/${service}/jwks.jwt`, owner)
      if (this.#revoked.has(kid) || claims.revoked.some((key) => key.kid === kid)) throw new Refused('revoked_key', kid)
      const key = keys.find((listed) => listed.kid === kid)
      if (key) return key
      if (asOf >= arrived) throw new Refused('unknown_key', kid)
      if (this.#polled >= arrived) throw new Refused('trust_unavailable', `${kid}: the registry did not answer`)
      await sleep(this.#polled + POLL - ticks())
    }
  }

  /** The operators' policy for a service, null where there is none. Throws trust_unavailable. */
  async policy(id) {
    const { service } = splitServiceId(id)
    return (await this.#believed(KINDS.policy, `/v1/services/${service}/policy.jwt`, id)).claims.policy
  }

  /** The domain's settings: who may mint transaction tokens, and which scopes are derived. Throws trust_unavailable. */
  async settings() {
    return (await this.#believed(KINDS.domain, '/v1/domain.jwt', await this.domain())).claims
  }

  /** A document that passes every check, and its keys. `covered` is the number of entries that it must cover. */
  async read(kind, jws, subject, covered = 0) {
    const root = await this.#rootDocument()
    const claims = await this.#readSigned(kind, jws, root)
    const checkpoint = readCheckpoint(claims.checkpoint, root.domain, (this.#root ?? root).ledgerKeys)
    if (checkpoint.size !== (claims.head ?? claims.seq) || claims.seq > checkpoint.size) {
      throw new Refused('document_malformed', 'the checkpoint is of another size')
    }
    const keys = kind === KINDS.keySet ? keysOf(claims) : []
    if (claims.sub !== subject) throw new Refused('document_wrong_subject', claims.sub)
    if (checkpoint.size < covered) throw new Refused('document_rolled_back', 'older than what was seen')
    for (const key of keys) checkAdmission(key, splitServiceId(subject).service, checkpoint)
    await this.#follow(checkpoint, claims)
    const revived = keys.find((key) => this.#revoked.has(key.kid))
    if (revived) throw new Refused('document_revived_key', revived.kid)
    for (const key of claims.revoked ?? []) this.#revoked.add(key.kid ?? key)
    return { claims, keys }
  }

  /** The size of the newest checkpoint that was seen. */
  get seen() {
    return this.#newest.size
  }

  async #readSigned(kind, jws, root) {
    try {
      return await readDocument(kind, jws, root.signers, root.domain, this.clock())
    } catch (error) {
      if (error.code !== 'document_unknown_signer') throw error
      const newer = await this.#rootDocument(true) // the registry may have a new signing key
      return readDocument(kind, jws, newer.signers, newer.domain, this.clock())
    }
  }

  async #rootDocument(again = false) {
    if (this.#root && !again) return this.#root
    const found = await readRegistryKeys(await this.get(`${this.url}/.well-known/peerseal-registry`), this.pin, this.clock())
    if (found.version < this.#root?.version) throw new Refused('document_rolled_back', `version ${found.version}`)
    return (this.#root = found)
  }

  /** The ledger only grows: the newer of two checkpoints begins with the older one. One that another document brought
   * meanwhile is compared too. */
  async #follow(checkpoint, claims) {
    let compared
    while (compared !== this.#newest) {
      compared = this.#newest
      const [older, newer] = [checkpoint, compared].sort((one, other) => one.size - other.size)
      if (older.size > 0) {
        const offered = claims.since === older.size ? claims.proof : undefined
        const proof = older.size === newer.size ? [] : offered ?? (await this.#proof(older.size, newer.size))
        checkConsistency(older, newer, decodeProof(proof))
      }
    }
    if (checkpoint.size > this.#newest.size) this.#newest = checkpoint
  }

  async #proof(from, to) {
    return JSON.parse(await this.get(`${this.url}/ledger/proof?from=${from}&to=${to}`)).proof
  }

  /** The document at that path, while a signed time confirms it. */
  async #believed(kind, path, subject) {
    const ask = this.#held.size > 0 && ticks() >= this.#polled + POLL
    await this.#share('changes', ask, () => this.#pollChanges())?.soon
    const before = this.#held.get(path)
    const stale = !before || before.changedAt !== undefined
    const due = stale && ticks() >= (this.#failed.get(path) ?? -Infinity) + COOLDOWN
    const asked = this.#share(path, due, () => this.#fetch(kind, path, subject))
    await (before ? asked?.soon : asked?.ended)
    let held = this.#held.get(path)
    if (!held) throw new Refused('trust_unavailable', `${path} could not be had a moment ago`)
    const now = this.clock()
    if (!before && now > held.confirmedAt + OFFLINE_LIMIT / 2) { // a document is signed seldom: did it change since?
      await this.#share('changes', true, () => this.#pollChanges()).ended
      if (held.changedAt !== undefined) await this.#share(path, true, () => this.#fetch(kind, path, subject)).ended
      held = this.#held.get(path)
    }
    if (now > held.confirmedAt + OFFLINE_LIMIT || now >= held.claims.exp) {
      throw new Refused('trust_unavailable', `${path}: no signed time confirms it`)
    }
    return held
  }

  async #fetch(kind, path, subject) {
    const [held, asOf] = [this.#held.get(path), ticks()]
    const covers = held?.changedAt ?? 0
    const target = covers ? `${path}?seq=${covers}` : path
    try {
      // A restricted policy is told to its own service only.
      const headers = kind === KINDS.policy ? await this.headers?.('GET', target) : undefined
      const jws = await this.get(this.url + target, headers)
      const read = await this.read(kind, jws, subject, covers)
      if (read.claims.seq < held?.claims.seq) throw new Refused('document_rolled_back', path)
      const fresh = { ...read, subject, covered: read.claims.head, confirmedAt: read.claims.iat, asOf }
      this.#held.set(path, fresh)
    } catch (error) {
      this.#failed.set(path, ticks())
      if (error.status === 404 && !held) throw new Refused('unknown_key', 'the registry knows no such service')
      console.error(`${path}: ${error.message}`)
    }
  }

  /** The question of that name, asked now if it is due: once for all callers. `soon` comes when the patience is over. */
  #share(name, due, ask) {
    if (due && !this.#flights.has(name)) {
      const ended = ask().finally(() => this.#flights.delete(name))
      const soon = Promise.race([ended.catch(() => {}), sleep(PATIENCE, undefined, { ref: false })])
      this.#flights.set(name, { ended, soon })
    }
    return this.#flights.get(name)
  }

  /** Asks what has changed; where that fails, what is held is believed for a while. */
  #pollChanges() {
    return this.#takeChanges().catch((error) => console.error(`changes: ${error.message}`))
  }

  async #takeChanges() {
    const asOf = (this.#polled = ticks())
    const since = Math.min(...[...this.#held.values()].map((held) => held.covered))
    const domain = await this.domain()
    const { claims } = await this.read(KINDS.changes, await this.get(`${this.url}/v1/changes?since=${since}`), domain)
    const registry = `${domain}/registry` // stands for the registry's keys and the domain's settings
    if (claims.reset || claims.services.includes(registry)) await this.#rootDocument(true)
    for (const held of this.#held.values()) {
      const at = claims.services.indexOf(held.subject === domain ? registry : held.subject)
      const changedAt = at < 0 ? 0 : claims.seqs?.[at] ?? claims.seq // all clients ask for this entry
      if (held.covered > claims.seq) continue
      if (claims.reset || claims.since > held.covered) held.changedAt = claims.seq
      else if (changedAt > held.covered) held.changedAt = changedAt
      else Object.assign(held, { covered: claims.seq, confirmedAt: Math.max(held.confirmedAt, claims.iat), asOf: Math.max(held.asOf, asOf) })
    }
  }
}

/** The kind of a document, by its typ. */
export const kindOf = (jws) => Object.values(KINDS).find((kind) => kind.typ === parseJws(jws, kind.size).header.typ)

async function httpGet(url, headers = {}) {
  const answer = await fetch(url, { headers, redirect: 'error', signal: AbortSignal.timeout(5000) })
  const text = await answer.text()
  if (!answer.ok) throw Object.assign(new Error(`${url}: ${answer.status}`), { status: answer.status })
  return text
}
