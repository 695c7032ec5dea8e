package example;

import static example.Documents.OBJECT;
import static example.Documents.TEXT;
import static example.Documents.TIME;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import example.Documents.ListedKey;
import java.io.IOException;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.LongSupplier;
import java.util.function.Predicate;
import java.util.regex.Pattern;

/** Who calls this service: the eleven steps (docs/protocol.md: Verification). */
final class Verifier {
    private static final long LEEWAY = 30;
    private static final long LONGEST = 300;
    static final int MAX_TOKEN = 6144;
    private static final Pattern JTI = Pattern.compile("[A-Za-z0-9_-]{21}[AQgw]");
    private static final Pattern ORIGIN_FORM = Pattern.compile("/[!-~]*");

    private static final Map<String, Predicate<JsonNode>> REQUIRED = Map.ofEntries(
            Map.entry("iss", TEXT), Map.entry("sub", TEXT), Map.entry("aud", TEXT),
            Map.entry("iat", TIME), Map.entry("nbf", TIME), Map.entry("exp", TIME),
            Map.entry("method", TEXT), Map.entry("target_digest", TEXT), Map.entry("content_digest", TEXT),
            Map.entry("headers", OBJECT.and(Verifier::areHeaders)),
            Map.entry("jti", TEXT.and(value -> JTI.matcher(value.textValue()).matches())));
    private static final Map<String, Predicate<JsonNode>> FURTHER = Map.of(
            "tth", TEXT.and(value -> Strict.decode(value.textValue()).length == 32),
            "ctx", OBJECT.and(value -> Strict.canonical(value).length <= 1024),
            "cp", TEXT);

    /** Answers a verifier's questions; a {@link Registry} does. */
    interface Trust {
        String domain() throws IOException;

        ListedKey key(String kid) throws IOException;

        JsonNode policy(String id) throws IOException;

        JsonNode settings() throws IOException;
    }

    /** A body that is read after the checks of what is sent before it. */
    interface Body {
        byte[] read() throws IOException;
    }

    /** A request as it was received: the target from the request line, headers by lower-case names, a scope or null. */
    record Request(String method, String target, Map<String, String> headers, Body body, String scope) {}

    /** The proven caller, and what it may do here in its transaction, which is null where it has none. */
    record Peer(String id, String kid, Set<String> scopes, ObjectNode claims, Transaction transaction) {
        String service() {
            return id.substring(id.indexOf('/') + 1);
        }
    }

    /** The tokens that were accepted. For one process: several need a store that they share, with one atomic insert. */
    static final class ReplayGuard {
        private final Map<String, Long> seen = new ConcurrentHashMap<>();

        boolean claim(String issuer, String jti, long until, long now) {
            if (seen.size() % 1000 == 999) { // now and then: forget those that have expired
                seen.values().removeIf(end -> end < now);
            }
            return seen.putIfAbsent(issuer + " " + jti, until) == null;
        }
    }

    private final Trust trust;
    private final String audience;
    private final Map<String, Set<String>> allow;
    private final ReplayGuard replay;
    private final LongSupplier clock;

    /** {@code audience} is this service's id; {@code allow} maps callers, by id or "*", to their scopes. */
    Verifier(Trust trust, String audience, Map<String, Set<String>> allow, ReplayGuard replay, LongSupplier clock) {
        this.trust = trust;
        this.audience = audience;
        this.allow = allow;
        this.replay = replay;
        this.clock = clock;
    }

    /** The proven caller, or the refusal of the first step that fails. */
    Peer verify(String token, Request request) throws IOException {
        Strict.Jws parsed = Strict.Jws.parse(token, MAX_TOKEN); // 1
        ObjectNode claims = Strict.strictObject(parsed.payload());
        String caller = ownerIn(parsed, "peerseal-request+jwt"); // 2
        checkShape(claims);
        Set<String> scopes = scopesOf(caller); // 3
        ListedKey key = trust.key(parsed.kid());
        check(key.key().signed(parsed), "bad_signature", "alg, or the signature"); // 4
        check(text(claims, "iss").equals(caller) && text(claims, "sub").equals(caller), "wrong_issuer", text(claims, "iss")); // 5
        check(text(claims, "aud").equals(audience), "wrong_audience", text(claims, "aud")); // 6
        checkTimes(claims, key, clock.getAsLong(), LONGEST); // 7
        checkBinding(claims, request); // 8
        String carried = valueOf(Transaction.HEADER, request.headers().get(Transaction.HEADER));
        Transaction transaction = Transaction.bound(trust, claims.path("tth").textValue(), carried, clock.getAsLong()); // 9
        if (transaction != null) {
            scopes = common(scopes, transaction.scopes());
        }
        check(request.scope() == null || scopes.contains(request.scope()), "insufficient_scope", request.scope()); // 10
        long until = claims.get("exp").longValue() + LEEWAY;
        check(replay.claim(caller, text(claims, "jti"), until, clock.getAsLong()), "replayed", text(claims, "jti")); // 11
        return new Peer(caller, parsed.kid(), scopes, claims, transaction);
    }

    static void check(boolean right, String code, String detail) {
        if (!right) {
            throw new Refused(code, detail);
        }
    }

    private static String text(ObjectNode claims, String name) {
        return claims.get(name).textValue();
    }

    /** The scopes that the code and the registry's policy both allow. */
    private Set<String> scopesOf(String caller) throws IOException {
        boolean local = caller.startsWith(trust.domain() + "/");
        Set<String> ours = allow.containsKey(caller) ? allow.get(caller) : local ? allow.get("*") : null;
        check(ours != null, "caller_not_allowed", caller);
        JsonNode policy = trust.policy(audience);
        if (policy == null || policy.isNull()) {
            return ours;
        }
        JsonNode named = policy.get("allow").path(caller);
        JsonNode theirs = named.isMissingNode() && local ? policy.get("allow").path("*") : named;
        check(!theirs.isMissingNode(), "caller_not_allowed", caller);
        Set<String> both = new HashSet<>();
        theirs.forEach(scope -> both.add(scope.textValue()));
        return common(both, ours);
    }

    private static Set<String> common(Set<String> ours, Set<String> theirs) {
        Set<String> both = new HashSet<>(ours);
        both.retainAll(theirs);
        return both;
    }

    /** The service that owns the key which a token of that typ names. */
    static String ownerIn(Strict.Jws parsed, String typ) {
        check(parsed.typ().equals(typ), "wrong_type", parsed.typ());
        check(List.of("RS256", "ES256").contains(parsed.alg()), "malformed_token", "alg");
        try {
            return Strict.Kid.split(parsed.kid()).owner();
        } catch (Refused error) {
            throw new Refused("malformed_token", error.getMessage());
        }
    }

    /** All claims, each of its type, and no other: an unchecked claim must not look as if it was checked. */
    private static void checkShape(ObjectNode claims) {
        check(Documents.fits(claims, REQUIRED), "malformed_token", "a claim is missing, or of another type");
        long further = 0;
        for (var claim : FURTHER.entrySet()) {
            if (claims.has(claim.getKey())) {
                check(claim.getValue().test(claims.get(claim.getKey())), "malformed_token", claim.getKey());
                further++;
            }
        }
        check(claims.size() == REQUIRED.size() + further, "malformed_token", "an unknown claim");
    }

    private static boolean areHeaders(JsonNode headers) {
        boolean right = true;
        for (var header : headers.properties()) {
            right &= header.getValue().isTextual() && header.getKey().equals(header.getKey().toLowerCase(Locale.ROOT));
        }
        return right;
    }

    /** {@code longest} is in seconds; a token without nbf is good from its iat on. */
    static void checkTimes(ObjectNode claims, ListedKey key, long now, long longest) {
        long issued = claims.get("iat").longValue();
        long begin = Math.max(issued, claims.path("nbf").longValue());
        long end = claims.get("exp").longValue();
        check(end > issued, "expired", "exp is not after iat");
        check(end - issued <= longest, "lifetime_too_long", (end - issued) + " s");
        check(begin <= now + LEEWAY, "not_yet_valid", "is a clock wrong?");
        check(now < end + LEEWAY, "expired", "is a clock wrong?");
        check(issued >= key.activeFrom() - LEEWAY, "not_yet_valid", "before its key was active");
        check(issued <= key.activeUntil() + LEEWAY, "expired", "after its key ended");
    }

    private static void checkBinding(ObjectNode claims, Request request) throws IOException {
        check(text(claims, "method").equals(request.method()), "wrong_binding", "method");
        String target = Strict.digest(Strict.utf8(request.target()));
        boolean sameTarget = ORIGIN_FORM.matcher(request.target()).matches() && text(claims, "target_digest").equals(target);
        check(sameTarget, "wrong_binding", "target");
        Set<String> names = new HashSet<>(Set.of("content-type", "content-encoding"));
        claims.get("headers").fieldNames().forEachRemaining(names::add);
        for (String name : names) {
            JsonNode signed = claims.get("headers").get(name);
            String ours = valueOf(name, request.headers().get(name));
            String theirs = valueOf(name, signed == null ? null : signed.textValue());
            check(ours == null ? theirs == null : ours.equals(theirs), "wrong_binding", name);
        }
        check(text(claims, "content_digest").equals(Strict.digest(request.body().read())), "wrong_binding", "body");
    }

    private static String valueOf(String name, String value) {
        String bare = value == null ? null : value.replaceAll("^[ \t]+|[ \t]+$", "");
        return "".equals(bare) && name.equals("content-type") ? null : bare;
    }

    /** The answer to a refused request (RFC 9457). */
    record Problem(int status, Map<String, String> headers, byte[] body) {
        static Problem of(String code) {
            int status = switch (code) {
                case "caller_not_allowed", "insufficient_scope" -> 403;
                case "trust_unavailable", "split_view" -> 503;
                case "content_too_large" -> 413;
                case "content_unreadable" -> 400;
                case "next_unavailable" -> 502; // of this example, not of the protocol
                default -> 401;
            };
            Map<String, String> headers = new TreeMap<>();
            headers.put("content-type", "application/problem+json");
            headers.put("cache-control", "no-store");
            switch (status) {
                case 401 -> headers.put("www-authenticate",
                        code.equals("missing_token") ? "Bearer" : "Bearer error=\"invalid_token\"");
                case 403 -> headers.put("www-authenticate", "Bearer error=\"insufficient_scope\"");
                case 503 -> headers.put("retry-after", "5");
                default -> { }
            }
            ObjectNode body = Strict.object().put("type", "about:blank").put("status", status).put("code", code);
            return new Problem(status, headers, Strict.canonical(body));
        }
    }
}
