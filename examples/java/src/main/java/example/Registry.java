package example;

import static java.util.concurrent.TimeUnit.NANOSECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import example.Documents.Kind;
import example.Documents.ListedKey;
import example.Documents.Root;
import example.Ledger.Checkpoint;
import java.io.IOException;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BinaryOperator;
import java.util.function.LongSupplier;

/**
 * What this peer believes of the registry, and for how long (docs/protocol.md: Check a document, How long a document is
 * believed). Its lock is never held over a call to the registry: documents that are held are believed while the registry
 * hangs.
 */
final class Registry implements Verifier.Trust {
    private static final long OFFLINE_LIMIT = 3600; // seconds for which a document is believed after its last confirmation
    private static final long POLL = SECONDS.toNanos(1); // between two questions for changes: a revocation takes effect that soon
    private static final long COOLDOWN = SECONDS.toNanos(5); // until a document that could not be had is asked for again
    private static final long PATIENCE = SECONDS.toNanos(1); // a caller with a document that is believed waits no longer

    /** One GET: the text of a 200. */
    interface Getter {
        String get(String url, Map<String, String> headers) throws IOException;
    }

    /** The registry knows no such thing. */
    static final class NotFound extends IOException {
        private static final long serialVersionUID = 1;

        NotFound(String url) {
            super(url + ": 404");
        }
    }

    /** A document that is believed. {@code changedAt} is the entry that changed its subject since, 0 for none; {@code asOf}
     * is the nanosecond when the registry was last asked for it, or whether it has changed. */
    private record Held(ObjectNode claims, Map<String, ListedKey> keys, String subject, long covered, long confirmedAt,
            long changedAt, long asOf) {
        Held confirmed(long seq, long at, long asked) {
            long newer = asked - asOf > 0 ? asked : asOf;
            return new Held(claims, keys, subject, seq, Math.max(confirmedAt, at), changedAt, newer);
        }

        Held changed(long seq) {
            return new Held(claims, keys, subject, covered, confirmedAt, seq, asOf);
        }
    }

    /** A question to the registry. */
    private interface Question {
        void ask() throws IOException;
    }

    /** One question for all callers that want the answer: its end, with an error or null, and the end of their patience. */
    private record Flight(CompletableFuture<Exception> ended, CompletableFuture<Exception> soon) {}

    /** A document that passed every check, and the keys in it. */
    record Checked(ObjectNode claims, Map<String, ListedKey> keys) {}

    final String url;
    private final String pin;
    private final Getter getter;
    private final LongSupplier clock;
    private volatile BinaryOperator<String> signer; // of method and target: a value for Authorization
    private volatile Root root;
    private Checkpoint newest = new Checkpoint(0, new byte[0]);
    private final Map<String, Held> held = new HashMap<>(); // by path
    private final Map<String, Long> failed = new HashMap<>(); // by path: the nanosecond when it could not be had
    private final Set<String> revoked = new HashSet<>(); // kids: no later document brings one back
    private final Map<String, Flight> flights = new HashMap<>(); // by path: what the registry is asked for now
    private long polled = System.nanoTime() - POLL;

    /** Trusts the registry at that URL whose root key has the thumbprint {@code pin}. */
    Registry(String url, String pin, Getter getter, LongSupplier clock) {
        this.url = url;
        this.pin = pin;
        this.getter = getter;
        this.clock = clock;
    }

    long now() {
        return clock.getAsLong();
    }

    /** Signs calls for a restricted policy, which is told to its own service only. */
    void signWith(BinaryOperator<String> signer) {
        this.signer = signer;
    }

    @Override
    public String domain() throws IOException {
        return rootDocument(false).domain();
    }

    /** A service's key by its kid. Refuses with unknown_key, revoked_key or trust_unavailable. A kid that is not held may
     * be new: it waits for the next question for changes, so that unknown kids cost the registry nothing. */
    @Override
    public ListedKey key(String kid) throws IOException {
        String owner = Strict.Kid.split(kid).owner();
        String service = Strict.ServiceId.split(owner).service();
        long arrived = System.nanoTime();
        while (true) {
            Held found = believed(Documents.KEY_SET, "/v1/services/" + service + "/jwks.jwt", owner);
            if (isRevoked(kid)) {
                throw new Refused("revoked_key", kid);
            }
            if (found.keys().containsKey(kid)) {
                return found.keys().get(kid);
            }
            if (found.asOf() - arrived >= 0) {
                throw new Refused("unknown_key", kid);
            }
            if (polled() - arrived >= 0) {
                throw new Refused("trust_unavailable", kid + ": the registry did not answer");
            }
            LockSupport.parkNanos(polled() + POLL - System.nanoTime());
        }
    }

    private synchronized long polled() {
        return polled;
    }

    /** The operators' policy for a service, a NullNode where there is none. */
    @Override
    public JsonNode policy(String id) throws IOException {
        String service = Strict.ServiceId.split(id).service();
        return believed(Documents.POLICY, "/v1/services/" + service + "/policy.jwt", id).claims().get("policy");
    }

    /** The domain's settings: which services may mint transaction tokens, and which scopes are derived. */
    @Override
    public JsonNode settings() throws IOException {
        return believed(Documents.DOMAIN, "/v1/domain.jwt", domain()).claims();
    }

    /** The size of the newest checkpoint that was seen. */
    synchronized long seen() {
        return newest.size();
    }

    /** A document that passes every check. It must cover so many entries of the ledger. */
    Checked read(Kind kind, String compact, String subject, long covers) throws IOException {
        ObjectNode claims = readSigned(kind, compact);
        Root root = rootDocument(false);
        Checkpoint head = Ledger.checkpoint(claims.get("checkpoint").textValue(), root.domain(), root.ledgerKeys());
        long seq = claims.get("seq").longValue();
        if (head.size() != claims.path("head").asLong(seq) || seq > head.size()) {
            throw new Refused("document_malformed", "the checkpoint is of another size");
        }
        Map<String, ListedKey> keys = kind == Documents.KEY_SET ? Documents.keysOf(claims) : Map.of();
        if (!claims.get("sub").textValue().equals(subject)) {
            throw new Refused("document_wrong_subject", claims.get("sub").textValue());
        }
        if (head.size() < covers) {
            throw new Refused("document_rolled_back", "older than what was seen");
        }
        for (ListedKey key : keys.values()) {
            Ledger.checkAdmission(key, Strict.ServiceId.split(subject).service(), head);
        }
        follow(head, claims);
        revoke(keys.keySet(), claims.path("revoked"));
        return new Checked(claims, keys);
    }

    private synchronized void revoke(Set<String> good, JsonNode ended) {
        for (String kid : good) {
            if (revoked.contains(kid)) {
                throw new Refused("document_revived_key", kid);
            }
        }
        for (JsonNode key : ended) {
            revoked.add(key.isTextual() ? key.textValue() : key.get("kid").textValue());
        }
    }

    private synchronized boolean isRevoked(String kid) {
        return revoked.contains(kid);
    }

    private ObjectNode readSigned(Kind kind, String compact) throws IOException {
        Root known = rootDocument(false);
        try {
            return Documents.read(kind, compact, known.signers(), known.domain(), now());
        } catch (Refused error) {
            if (!error.code.equals("document_unknown_signer")) {
                throw error;
            }
            Root newer = rootDocument(true); // the registry may have a new signing key
            return Documents.read(kind, compact, newer.signers(), newer.domain(), now());
        }
    }

    private Root rootDocument(boolean again) throws IOException {
        Root known = root;
        if (known != null && !again) {
            return known;
        }
        Root found = Root.read(getter.get(url + "/.well-known/peerseal-registry", Map.of()), pin, now());
        synchronized (this) {
            if (root != null && found.version() < root.version()) {
                throw new Refused("document_rolled_back", "version " + found.version());
            }
            root = found;
        }
        return found;
    }

    /** The ledger only grows: the newer of two checkpoints begins with the older one. A checkpoint that another document
     * brought meanwhile is compared too. */
    private void follow(Checkpoint head, ObjectNode claims) throws IOException {
        Checkpoint compared;
        do {
            compared = newest();
            boolean grown = head.size() >= compared.size();
            Checkpoint older = grown ? compared : head;
            Checkpoint newer = grown ? head : compared;
            if (older.size() > 0) {
                Ledger.checkConsistency(older, newer, proof(older.size(), newer.size(), claims));
            }
        } while (!advance(compared, head));
    }

    private synchronized Checkpoint newest() {
        return newest;
    }

    /** Takes a head that was compared with that checkpoint, if that still is the newest one. */
    private synchronized boolean advance(Checkpoint compared, Checkpoint head) {
        if (newest != compared) {
            return false;
        }
        newest = head.size() > newest.size() ? head : newest;
        return true;
    }

    private List<byte[]> proof(long from, long to, ObjectNode claims) throws IOException {
        if (from == to) {
            return List.of();
        }
        if (claims.has("proof") && claims.get("since").longValue() == from) {
            return Ledger.proof(claims.get("proof"));
        }
        String answer = getter.get(url + "/ledger/proof?from=" + from + "&to=" + to, Map.of());
        return Ledger.proof(Strict.strictObject(Strict.utf8(answer)).path("proof"));
    }

    /** The document at that path, while a signed time confirms it. */
    private Held believed(Kind kind, String path, String subject) {
        changesAsked().soon().join();
        Held found = held(path);
        Flight asked = documentAsked(kind, path, subject);
        Exception error = (found == null ? asked.ended() : asked.soon()).join();
        if (found == null && error instanceof NotFound) {
            throw new Refused("unknown_key", "the registry knows no such service");
        }
        found = found == null ? confirmed(held(path), kind, path, subject) : held(path);
        boolean late = found == null || now() > found.confirmedAt() + OFFLINE_LIMIT;
        if (late || now() >= found.claims().get("exp").longValue()) {
            throw new Refused("trust_unavailable", path + ": no signed time confirms it");
        }
        return found;
    }

    /** A document that was fetched just now. It is signed seldom: where that is long ago, did it change since? */
    private Held confirmed(Held fetched, Kind kind, String path, String subject) {
        if (fetched == null || now() <= fetched.confirmedAt() + OFFLINE_LIMIT / 2) {
            return fetched;
        }
        share("changes", true, this::takeChanges).ended().join();
        Held listed = held(path);
        if (listed.changedAt() > 0) {
            share(path, true, () -> fetch(kind, path, subject, listed)).ended().join();
        }
        return held(path);
    }

    private synchronized Held held(String path) {
        return held.get(path);
    }

    private synchronized Flight changesAsked() {
        return share("changes", !held.isEmpty() && System.nanoTime() - polled >= POLL, this::takeChanges);
    }

    private synchronized Flight documentAsked(Kind kind, String path, String subject) {
        Held found = held.get(path);
        boolean stale = found == null || found.changedAt() > 0;
        Long last = failed.get(path);
        boolean due = stale && (last == null || System.nanoTime() - last >= COOLDOWN);
        return share(path, due, () -> fetch(kind, path, subject, found));
    }

    /** The question of that name, which is asked now if it is due: once for all callers. */
    private synchronized Flight share(String name, boolean due, Question question) {
        if (due && !flights.containsKey(name)) {
            CompletableFuture<Exception> ended =
                    CompletableFuture.supplyAsync(() -> errorOf(name, question), task -> new Thread(task).start());
            flights.put(name, new Flight(ended, ended.copy().completeOnTimeout(null, PATIENCE, NANOSECONDS)));
        }
        CompletableFuture<Exception> none = CompletableFuture.completedFuture(null);
        return flights.getOrDefault(name, new Flight(none, none));
    }

    /** Asks, and gives the error or null: what is held is believed for a while. */
    private Exception errorOf(String name, Question question) {
        try {
            question.ask();
            return null;
        } catch (IOException | RuntimeException error) {
            System.err.println(name + ": " + error.getMessage());
            failed(name);
            return error;
        } finally {
            end(name);
        }
    }

    private synchronized void failed(String name) {
        failed.put(name, System.nanoTime());
    }

    private synchronized void end(String name) {
        flights.remove(name);
    }

    /** Asks for a document that is not held, or has changed, and holds it. */
    private void fetch(Kind kind, String path, String subject, Held before) throws IOException {
        long covers = before == null ? 0 : before.changedAt();
        String target = before == null ? path : path + "?seq=" + covers;
        long asOf = System.nanoTime();
        boolean signed = kind == Documents.POLICY && signer != null;
        Map<String, String> headers = signed ? Map.of("authorization", signer.apply("GET", target)) : Map.of();
        Checked read = read(kind, getter.get(url + target, headers), subject, covers);
        ObjectNode claims = read.claims();
        if (before != null && claims.get("seq").longValue() < before.claims().get("seq").longValue()) {
            throw new Refused("document_rolled_back", path);
        }
        long head = claims.get("head").longValue();
        Held fresh = new Held(claims, read.keys(), subject, head, claims.get("iat").longValue(), 0, asOf);
        synchronized (this) {
            held.put(path, fresh);
        }
    }

    /** Notes the time of a question for changes, and gives the number of entries that the oldest document covers. */
    private synchronized long startPoll() {
        polled = System.nanoTime();
        return held.values().stream().mapToLong(Held::covered).min().orElse(0);
    }

    /** Asks which services have changed since the oldest document that is held. */
    private void takeChanges() throws IOException {
        long oldest = startPoll();
        long asOf = polled();
        String domain = rootDocument(false).domain();
        String compact = getter.get(url + "/v1/changes?since=" + oldest, Map.of());
        ObjectNode claims = read(Documents.CHANGES, compact, domain, 0).claims();
        long seq = claims.get("seq").longValue();
        long since = claims.get("since").longValue();
        boolean reset = claims.get("reset").booleanValue();
        Map<String, Long> changed = Documents.lastChanges(claims);
        boolean ofRegistry = changed.containsKey(domain + "/registry"); // for its keys, and the domain's settings
        changed.put(domain, changed.getOrDefault(domain + "/registry", 0L));
        synchronized (this) {
            held.replaceAll((path, each) -> {
                if (each.covered() > seq) {
                    return each; // the list is older than this document
                }
                if (reset || since > each.covered()) {
                    return each.changed(seq);
                }
                long changedAt = changed.getOrDefault(each.subject(), 0L); // all clients ask for this entry
                boolean named = changedAt > each.covered();
                return named ? each.changed(changedAt) : each.confirmed(seq, claims.get("iat").longValue(), asOf);
            });
        }
        if (reset || ofRegistry) {
            rootDocument(true);
        }
    }
}
