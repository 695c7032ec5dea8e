// Proves what a page of the ledger shows, from a pin, public files of the registry and WebCrypto (docs/protocol.md).
//
// Nothing here touches the page, the network or the storage: `read` fetches a public path and resolves to its bytes. A
// check has three outcomes: it returns, it throws Refused (what was read contradicts what is certain), or it throws
// NotVerified (nothing is contradicted, and nothing is proved).

export class Refused extends Error {}
export class Forked extends Refused {} // by a checkpoint that this browser keeps
export class NotVerified extends Error {}

export const PROVED = "proved";
export const REFUSED = "refused";
export const UNVERIFIED = "unverified";

const TYP = "peerseal-registry+jwt";
const MAX_DOCUMENT = 64 * 1024; // characters
const MAX_NOTE = 16 * 1024; // characters
const MAX_SIGNATURES = 64;
const LEEWAY = 30; // seconds
const HEIGHT = 8;
const WIDTH = 2 ** HEIGHT; // hashes of a tile, and entries of a bundle
const HASH = 32; // bytes
const MEMBERS = ["by", "data", "evidence", "kid", "seq", "service", "time", "type"];
const NOTE_TEXT = /^([^\n]+)\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/]{43}=)\n$/;
const NOTE_SIGNATURE = /^— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})$/;

// ---- bytes and texts

const utf8 = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const toBase64url = (bytes) => toBase64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const same = (some, others) => some.length === others.length && some.every((byte, at) => byte === others[at]);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function must(condition, reason, Error = Refused) {
  if (!condition) throw new Error(reason);
}

/** The bytes of a text in the one spelling that `encode` makes. */
function decoded(value, encode, what) {
  try {
    const plain = value.replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(plain), (character) => character.charCodeAt(0));
    if (encode(bytes) === value) return bytes;
  } catch {
    // told below
  }
  throw new Refused(`${what} is malformed`);
}

const fromBase64 = (value, what) => decoded(value, toBase64, what);
const fromBase64url = (value, what) => decoded(value, toBase64url, what);

function parsed(bytes, what) {
  try {
    return JSON.parse(text(bytes));
  } catch {
    throw new Refused(`${what} is not JSON`);
  }
}

function subtle() {
  const found = globalThis.crypto?.subtle;
  if (!found) throw new NotVerified("this page came without https, so the browser offers no WebCrypto");
  return found;
}

async function sha256(...parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await subtle().digest("SHA-256", whole));
}

async function isSignedBy(jwk, algorithms, signature, signed) {
  let key;
  try {
    key = await subtle().importKey("jwk", jwk, algorithms.key, false, ["verify"]);
  } catch (error) {
    if (error.name === "NotSupportedError") {
      throw new NotVerified(`this browser cannot check ${algorithms.key.name} signatures: use a newer one`);
    }
    throw error instanceof NotVerified ? error : new Refused(`no public key for ${algorithms.key.name}`);
  }
  return subtle().verify(algorithms.signature, key, signature, signed);
}

const ES256 = { key: { name: "ECDSA", namedCurve: "P-256" }, signature: { name: "ECDSA", hash: "SHA-256" } };
const ED25519 = { key: { name: "Ed25519" }, signature: { name: "Ed25519" } };

// ---- 1. the root's document

/** The RFC 7638 thumbprint of a P-256 key, which a pin is. */
async function thumbprint({ crv, kty, x, y }) {
  must(kty === "EC" && crv === "P-256", "the root key is not an EC key on P-256");
  for (const number of [x, y]) {
    must(fromBase64url(number, "the root key").length === 32, "the root key is malformed");
  }
  return toBase64url(await sha256(utf8(JSON.stringify({ crv, kty, x, y }))));
}

/** The payload of the registry keys document, signed by the pinned root for that domain. `now` is in seconds. */
export async function readRegistryKeys(jws, { pin, domain, now }) {
  const segments = jws.split(".");
  must(jws.length <= MAX_DOCUMENT && segments.length === 3, "the root's document is not a JWS");
  const [head, body, signature] = segments.map((segment) => fromBase64url(segment, "the root's document"));
  const [header, payload] = [parsed(head, "its header"), parsed(body, "its payload")];
  must(isObject(header) && isObject(payload) && isObject(payload.root), "the root's document is malformed");
  must(header.typ === TYP && header.alg === "ES256", "the root's document is of another type");
  must(Object.keys(header).length === 3, "the root's document has an unknown header");
  const found = await thumbprint(payload.root);
  must(found === pin, `the root key is ${found}, and the pin is ${pin}`);
  must(header.kid === `${domain}/registry/${found}`, `the root's document is by ${header.kid}`);
  const { kty, crv, x, y } = payload.root;
  const signed = utf8(jws.slice(0, jws.lastIndexOf(".")));
  must(await isSignedBy({ kty, crv, x, y }, ES256, signature, signed), "the root's signature does not verify");
  must(payload.iss === `${domain}/registry` && payload.sub === domain, `the root's document is of ${payload.sub}`);
  const { version, iat, exp } = payload;
  must([version, iat, exp].every(Number.isSafeInteger), "the root's document has no version or no times");
  must(iat <= now + LEEWAY, "the root's document is from the future: is a clock wrong?");
  must(now < exp + LEEWAY, "the root's document has expired: the root must sign a new one");
  return payload;
}

/** The ledger keys that the document names: JWKs. */
function ledgerKeysOf({ ledger_key: current, past_ledger_keys: past = [] }) {
  must(Array.isArray(past), "the root's document names no ledger keys");
  return [current, ...past].map((jwk) => {
    must(isObject(jwk) && jwk.kty === "OKP" && jwk.crv === "Ed25519", "the root's document names no ledger key");
    return { kty: jwk.kty, crv: jwk.crv, x: jwk.x };
  });
}

// ---- 2. the checkpoint

/** `{size, root, note}` of a signed note (https://c2sp.org/tlog-checkpoint) by one of these keys. */
export async function readCheckpoint(note, domain, jwks) {
  const end = note.indexOf("\n\n") + 1;
  const [body, lines] = [note.slice(0, end), note.slice(end + 1).split("\n")];
  const [, origin, size, root] = NOTE_TEXT.exec(body) ?? [];
  const ends = lines.pop() === "" && lines.length > 0 && lines.length <= MAX_SIGNATURES;
  must(origin !== undefined && ends && note.length <= MAX_NOTE, "the checkpoint is not a signed note");
  must(origin === domain, `the checkpoint is of ${origin}`);
  must(Number.isSafeInteger(Number(size)), `a ledger of ${size} entries is more than a browser can count`);
  const signatures = lines.map((line) => NOTE_SIGNATURE.exec(line) ?? []);
  must(signatures.every(([whole]) => whole !== undefined), "a line of the checkpoint is no signature");
  const own = signatures.filter(([, name]) => name === domain).map(([, , value]) => fromBase64(value, "a signature"));
  for (const jwk of jwks) {
    const id = (await sha256(utf8(`${domain}\n\x01`), fromBase64url(jwk.x, "a ledger key"))).subarray(0, 4);
    for (const signature of own.filter((value) => same(value.subarray(0, 4), id))) {
      const sound = await isSignedBy(jwk, ED25519, signature.subarray(4), utf8(body));
      must(sound, "the checkpoint's signature does not verify");
      return { size: Number(size), root: fromBase64(root, "the root hash"), note };
    }
  }
  throw new Refused("no ledger key that the root names signed the checkpoint");
}

// ---- 3. entries in the tree (RFC 6962 section 2.1)

const leafHash = (entry) => sha256(Uint8Array.of(0), entry);
const nodeHash = (left, right) => sha256(Uint8Array.of(1), left, right);

function tilePath(level, number, width) {
  const groups = [String(number % 1000).padStart(3, "0")];
  for (let rest = Math.floor(number / 1000); rest > 0; rest = Math.floor(rest / 1000)) {
    groups.unshift(`x${String(rest % 1000).padStart(3, "0")}`);
  }
  return `ledger/tile/${level}/${groups.join("/")}${width === WIDTH ? "" : `.p/${width}`}`;
}

/** `(level, number)` to the hash of that complete subtree, as the tiles of a ledger of `size` entries have it. A wrong
 * tile proves nothing: its hashes do not lead to a root. */
export function nodeReader(read, size) {
  const tiles = new Map();
  const hashes = new Map();

  async function tile(level, number) {
    const width = Math.min(WIDTH, Math.floor(size / WIDTH ** level) - number * WIDTH);
    const path = tilePath(level, number, width);
    if (!tiles.has(path)) tiles.set(path, read(path));
    const bytes = await tiles.get(path);
    must(bytes.length === width * HASH, `the tile ${path} has ${bytes.length} bytes, expected ${width * HASH}`);
    return bytes;
  }

  async function computed(level, number) {
    if (level % HEIGHT > 0) return nodeHash(await node(level - 1, 2 * number), await node(level - 1, 2 * number + 1));
    const at = (number % WIDTH) * HASH;
    return (await tile(level / HEIGHT, Math.floor(number / WIDTH))).subarray(at, at + HASH);
  }

  function node(level, number) {
    const name = `${level}/${number}`;
    if (!hashes.has(name)) hashes.set(name, computed(level, number));
    return hashes.get(name);
  }
  return node;
}

/** The largest power of two below `size`. */
function split(size) {
  let half = 1;
  while (half * 2 < size) half *= 2;
  return half;
}

/** The root hash over the leaves from `begin` to before `end`, as the tiles have it. */
async function rangeHash(begin, end, node) {
  const size = end - begin;
  const level = Math.log2(size);
  if (Number.isInteger(level) && 2 ** level === size) return node(level, begin / size);
  const middle = begin + split(size);
  return nodeHash(await rangeHash(begin, middle, node), await rangeHash(middle, end, node));
}

/** The same, with these leaf hashes, by index, in the place of those of the tiles. */
async function rangeHashWith(leaves, begin, end, node) {
  const indexes = [...leaves.keys()].filter((index) => begin <= index && index < end);
  if (indexes.length === 0) return rangeHash(begin, end, node);
  if (end - begin === 1) return leaves.get(begin);
  const middle = begin + split(end - begin);
  const left = await rangeHashWith(leaves, begin, middle, node);
  return nodeHash(left, await rangeHashWith(leaves, middle, end, node));
}

/** Proves that entries are in the ledger. `bodies` maps their numbers, from 1, to their bytes. */
export async function checkIncluded(bodies, { size, root }, node) {
  const leaves = new Map();
  for (const [seq, body] of bodies) {
    leaves.set(seq - 1, await leafHash(body));
  }
  if (same(await rangeHashWith(leaves, 0, size, node), root)) return;
  for (const [index, leaf] of leaves) {
    must(same(leaf, await node(0, index)), `entry ${index + 1} is not the one in the ledger`);
  }
  throw new Refused("the tiles do not lead to the root hash that the registry signed");
}

/** The bytes of the entries `first` to `last`, by number, from the public bundles. */
export async function readEntries(read, first, last, size) {
  const found = new Map();
  for (let number = Math.floor((first - 1) / WIDTH); number * WIDTH < Math.min(last, size); number += 1) {
    const width = Math.min(WIDTH, size - number * WIDTH);
    let rest = await read(tilePath("entries", number, width));
    for (let seq = number * WIDTH + 1; seq <= number * WIDTH + width; seq += 1) {
      const end = 2 + rest[0] * 256 + rest[1];
      must(rest.length >= end, `the bundle with entry ${seq} breaks off`);
      if (first <= seq && seq <= last) found.set(seq, rest.subarray(2, end));
      rest = rest.subarray(end);
    }
    must(rest.length === 0, "a bundle has more entries than the ledger");
  }
  return found;
}

/** The members of an entry. It is refused unless it is in canonical JSON and has that number. */
export function readEntry(body, seq) {
  const entry = parsed(body, `entry ${seq}`);
  must(isObject(entry) && same(utf8(canonical(entry)), body), `entry ${seq} is not in canonical JSON`);
  must(Object.keys(entry).sort().join() === MEMBERS.join(), `entry ${seq} has other members than an entry`);
  must(entry.seq === seq, `entry ${entry.seq} is shown in the place of entry ${seq}`);
  return entry;
}

/** Canonical JSON: members sorted by code points, no white space. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`;
  if (!isObject(value)) return JSON.stringify(value);
  const names = Object.keys(value).sort(byCodePoints);
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join()}}`;
}

function byCodePoints(one, other) {
  const [some, others] = [[...one], [...other]];
  const at = some.findIndex((character, index) => character !== others[index]);
  if (at < 0) return some.length - others.length;
  return at < others.length ? some[at].codePointAt(0) - others[at].codePointAt(0) : 1;
}

// ---- what a page shows of entries

const GROUNDS = {
  join_token: "join token", kid: "key", oidc: "platform", self: "the key itself", local: "this host",
};
const EXCERPT = 200; // characters

/** How the pages write the parts of an entry (registry/console/pages/ledger.py). */
export function textsOf({ seq, time, type, service, kid, by, data, evidence }) {
  const all = canonical(data);
  const grounds = Object.entries(by).map(([ground, value]) => `${GROUNDS[ground] ?? ground} ${value}`);
  return {
    seq: String(seq),
    time: new Date(time * 1000).toISOString().replace(".000Z", "Z"),
    type,
    service: service ?? "–",
    kid: kid ?? "–",
    thumbprint: kid?.split("/").at(-1) ?? "–",
    by: grounds.join(", "),
    data: all,
    excerpt: [...all].length > EXCERPT ? `${[...all].slice(0, EXCERPT).join("")}…` : all,
    evidence: evidence ?? "–",
  };
}

/**
 * Proves that the entries in `shown` are in the ledger, and that what is shown of them is what they say.
 *
 * No entry between them is left out, and the newest is the first. Each is `{seq, cells, body?, evidence?}`: the cells by the names in `textsOf`, and, where the page has them, the texts
 * of the whole entry and of its evidence. Without bodies the entries are read from the public bundles.
 */
export async function checkShown(shown, checkpoint, read, node) {
  if (shown.length === 0) throw new NotVerified("this page shows no entry");
  const numbers = shown.map(({ seq }) => seq);
  const [first, last] = [Math.min(...numbers), Math.max(...numbers)];
  const gap = numbers.find((seq, at) => at > 0 && seq !== numbers[at - 1] - 1);
  must(gap === undefined, `entry ${gap} does not follow the one before it: an entry is left out`);
  must(last <= checkpoint.size, `entry ${last} is shown, and the registry signs a ledger of ${checkpoint.size} entries`);
  const found = shown.every(({ body }) => body !== undefined)
    ? new Map(shown.map(({ seq, body }) => [seq, utf8(body)]))
    : await readEntries(read, first, last, checkpoint.size);
  const bodies = new Map(numbers.map((seq) => [seq, found.get(seq)]));
  await checkIncluded(bodies, checkpoint, node);
  for (const { seq, cells, evidence } of shown) {
    const entry = readEntry(bodies.get(seq), seq);
    const texts = textsOf(entry);
    for (const [name, value] of Object.entries(cells)) {
      must(texts[name] === value, `entry ${seq} is shown with ${name} ${value}, and the ledger has ${texts[name]}`);
    }
    const digest = evidence === undefined ? entry.evidence : toBase64url(await sha256(utf8(evidence)));
    must(digest === entry.evidence, `the evidence that is shown is not that of entry ${seq}`);
  }
  const newer = checkpoint.size - last;
  const place = `in the ledger of that checkpoint${newer ? `, before ${newer} newer ones` : ""}`;
  return numbers.length > 1 ? `entries ${first} to ${last}, all of them, are ${place}` : `entry ${first} is ${place}`;
}

// ---- 4. the history that this browser saw (RFC 9162 section 2.1.4)

/** Proves that the ledger begins with the one of the checkpoint `old`. */
export async function checkContinues(old, { size, root }, node) {
  must(size >= old.size, `the registry shows ${size} entries, and this browser saw ${old.size}`, Forked);
  if (size === old.size) {
    must(same(root, old.root), `the registry shows another ledger of ${size} entries than this browser saw`, Forked);
  } else if (old.size > 0) {
    const [before, now] = await rootsOf(old.size, 0, size, node);
    must(same(now, root), "the tiles do not lead to the root hash that the registry signed");
    must(same(before, old.root), `the first ${old.size} entries are others than this browser saw`, Forked);
  }
}

/** The root hashes over the leaves from `begin`: to before `old`, and to before `end`. */
async function rootsOf(old, begin, end, node) {
  if (old === end) {
    const both = await rangeHash(begin, end, node);
    return [both, both];
  }
  const middle = begin + split(end - begin);
  if (old <= middle) {
    const [before, left] = await rootsOf(old, begin, middle, node);
    return [before, await nodeHash(left, await rangeHash(middle, end, node))];
  }
  const left = await rangeHash(begin, middle, node);
  const [before, right] = await rootsOf(old, middle, end, node);
  return [await nodeHash(left, before), await nodeHash(left, right)];
}

// ---- all of it

/**
 * Proves what a page shows.
 *
 * `read(path)` resolves to the bytes of a public path without its first slash. `remembered` is what an earlier run
 * returned in `remember`, or null; it has to be read from the storage before `read` is called. `shown` is as in
 * `checkShown`, `now` in seconds since the epoch.
 *
 * Returns `{state, steps: [{name, state, text}], forked, checkpoint, remember}`: `forked` says that the checkpoint contradicts
 * the one that is remembered, and `remember` is null unless it is proved to continue that one.
 */
export async function verify({ read, pin, domain, now, remembered, shown }) {
  const steps = [];
  let forked = false;

  async function step(name, canRun, work) {
    if (!canRun) return void steps.push({ name, state: UNVERIFIED, text: "needs the steps before" });
    try {
      const [value, told] = await work();
      steps.push({ name, state: PROVED, text: told });
      return value;
    } catch (error) {
      forked ||= error instanceof Forked;
      steps.push({ name, state: error instanceof Refused ? REFUSED : UNVERIFIED, text: error.message });
      return undefined;
    }
  }

  const keys = await step("The root's document", true, async () => {
    must(/^[A-Za-z0-9_-]{43}$/.test(pin), "the pin is not a thumbprint of 43 characters");
    const found = await readRegistryKeys(text(await read(".well-known/peerseal-registry")), { pin, domain, now });
    const seen = remembered?.version ?? 0;
    must(found.version >= seen, `the root's document has version ${found.version}, and this browser saw ${seen}`);
    return [found, `version ${found.version}, signed by the key that the pin names`];
  });
  const checkpoint = await step("The signed checkpoint", keys, async () => {
    const found = await readCheckpoint(text(await read("ledger/checkpoint")), domain, ledgerKeysOf(keys));
    return [found, `${found.size} entries, signed by a ledger key that the root names`];
  });
  const node = checkpoint && nodeReader(read, checkpoint.size);
  await step("What this page shows", checkpoint, async () => {
    const told = await checkShown(shown, checkpoint, read, node);
    return [true, told];
  });
  const continues = await step("The same ledger as before", checkpoint, async () => {
    if (!remembered) return [true, "this browser saw no checkpoint before; it keeps this one"];
    const old = { size: remembered.size, root: fromBase64(remembered.root, "the checkpoint that is kept") };
    await checkContinues(old, checkpoint, node);
    return [true, `it begins with the ${old.size} entries of the checkpoint that this browser saw`];
  });
  const kept = continues && { version: keys.version, size: checkpoint.size, root: toBase64(checkpoint.root) };
  return {
    state: [REFUSED, UNVERIFIED].find((state) => steps.some((one) => one.state === state)) ?? PROVED,
    steps,
    forked,
    checkpoint,
    remember: kept ? { ...kept, note: checkpoint.note } : null,
  };
}
