package example;

import static example.Documents.OBJECT;
import static example.Documents.TEXT;
import static example.Documents.TIME;
import static example.Verifier.check;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import example.Documents.ListedKey;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import java.util.regex.Pattern;

/**
 * For which user a chain of calls is made, and what any service may do in it (docs/protocol.md: Transaction token). The
 * {@code token} goes along unchanged with each call.
 */
record Transaction(String id, String user, Set<String> scopes, ObjectNode claims, String token) {
    static final String HEADER = "txn-token";
    private static final long LONGEST = 900;
    private static final Pattern ID = Pattern.compile("[!-~]{1,200}");
    private static final Pattern SCOPE = Pattern.compile("[!#-\\[\\]-~]{1,100}");
    private static final Pattern PRINTABLE = Pattern.compile("[ [^\\p{C}\\p{Z}]]{1,512}"); // it stands in logs
    private static final Predicate<JsonNode> SMALL = OBJECT.and(value -> Strict.canonical(value).length <= 1024);
    private static final Map<String, Predicate<JsonNode>> CLAIMS = Map.of(
            "iss", TEXT, "aud", TEXT, "req_wl", TEXT, "iat", TIME, "exp", TIME, "tctx", SMALL, "rctx", SMALL,
            "sub", TEXT.and(value -> PRINTABLE.matcher(value.textValue()).matches()),
            "txn", TEXT.and(value -> ID.matcher(value.textValue()).matches()),
            "scope", TEXT.and(value -> areScopes(scopesIn(value))));

    /** The hash by which a request token binds a transaction token. */
    static String hash(String token) {
        return Strict.encode(Strict.sha256(Strict.utf8(token)));
    }

    /** Step 9: the transaction of a request, null where it has none. {@code tth} is the claim of its token, {@code token}
     * the header's value, or null. Whatever is wrong is refused as bad_transaction_token; settings or a key that cannot be
     * had now are trust_unavailable. */
    static Transaction bound(Verifier.Trust trust, String tth, String token, long now) throws IOException {
        if (tth == null && token == null) {
            return null;
        }
        try {
            check(token != null && hash(token).equals(tth), "wrong_binding", "tth");
            return read(trust, token, now);
        } catch (Refused error) {
            if (error.code.equals("trust_unavailable")) {
                throw error;
            }
            throw new Refused("bad_transaction_token", error.getMessage());
        }
    }

    private static Transaction read(Verifier.Trust trust, String token, long now) throws IOException {
        Strict.Jws parsed = Strict.Jws.parse(token, Verifier.MAX_TOKEN);
        ObjectNode claims = Strict.strictObject(parsed.payload());
        String minter = Verifier.ownerIn(parsed, "txntoken+jwt");
        boolean fits = Documents.fits(claims, CLAIMS) && claims.size() == CLAIMS.size();
        check(fits, "malformed_token", "a claim is missing, unknown, or of another type");
        JsonNode settings = trust.settings();
        check(contains(settings.get("minters"), minter), "caller_not_allowed", minter + " is no minter");
        ListedKey key = trust.key(parsed.kid()); // only now: a caller can name any key
        check(key.key().signed(parsed), "bad_signature", "alg, or the signature");
        check(claims.get("iss").textValue().equals(minter), "wrong_issuer", claims.get("iss").textValue());
        check(claims.get("aud").textValue().equals(trust.domain()), "wrong_audience", claims.get("aud").textValue());
        Verifier.checkTimes(claims, key, now, LONGEST);
        List<String> scopes = scopesIn(claims.get("scope"));
        if (claims.get("rctx").has("derived_from")) {
            check(derives(settings, claims, scopes), "insufficient_scope", "the settings derive no such scope");
        }
        String id = claims.get("txn").textValue();
        return new Transaction(id, claims.get("sub").textValue(), Set.copyOf(scopes), claims, token);
    }

    /** A scope that the user's token has not is the only one, and the settings derive it for the service that asked. */
    private static boolean derives(JsonNode settings, ObjectNode claims, List<String> scopes) {
        JsonNode context = claims.get("rctx");
        if (scopes.size() != 1 || !context.path("iss").isTextual()) {
            return false;
        }
        boolean derived = false;
        for (JsonNode one : settings.path("derived_scopes")) {
            derived |= one.get("minter").equals(claims.get("req_wl")) && one.get("from").equals(context.get("derived_from"))
                    && contains(one.get("to"), scopes.get(0));
        }
        return derived;
    }

    private static boolean contains(JsonNode texts, String text) {
        boolean found = false;
        for (JsonNode one : texts) {
            found |= one.asText().equals(text);
        }
        return found;
    }

    private static List<String> scopesIn(JsonNode spaced) {
        return spaced.textValue().isEmpty() ? List.of() : List.of(spaced.textValue().split(" ", -1));
    }

    private static boolean areScopes(List<String> scopes) {
        return scopes.stream().allMatch(scope -> SCOPE.matcher(scope).matches())
                && scopes.stream().distinct().count() == scopes.size();
    }
}
