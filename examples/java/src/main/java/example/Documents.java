package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.stream.StreamSupport;

/** The registry's signed documents: their members, and the checks that need no history (docs/protocol.md: Signed documents). */
final class Documents {
    private static final long LATEST = 253402300799L;

    static final Predicate<JsonNode> TEXT = JsonNode::isTextual;
    static final Predicate<JsonNode> OBJECT = JsonNode::isObject;
    static final Predicate<JsonNode> NATURAL =
            value -> value.isIntegralNumber() && value.canConvertToLong() && value.longValue() >= 0;
    static final Predicate<JsonNode> TIME = NATURAL.and(value -> value.longValue() <= LATEST);
    private static final Predicate<JsonNode> FLAG = JsonNode::isBoolean;
    private static final Predicate<JsonNode> KID = TEXT.and(value -> passes(() -> Strict.Kid.split(value.textValue())));
    private static final Predicate<JsonNode> SERVICE =
            TEXT.and(value -> passes(() -> Strict.ServiceId.split(value.textValue())));
    private static final Predicate<JsonNode> PROOF = value -> passes(() -> Ledger.proof(value));
    private static final Predicate<JsonNode> LEDGER_KEY = value -> passes(() -> Ledger.SigningKey.read(value));

    private static final Map<String, Predicate<JsonNode>> FRAME = Map.of("iss", TEXT, "sub", TEXT, "iat", TIME, "exp", TIME);
    private static final Map<String, Predicate<JsonNode>> PLACE = Map.of("seq", NATURAL, "checkpoint", TEXT);
    private static final Map<String, Predicate<JsonNode>> REVOKED =
            Map.of("kid", KID, "revoked_at", TIME, "index", NATURAL);
    private static final Map<String, Predicate<JsonNode>> DERIVED =
            Map.of("minter", SERVICE, "from", TEXT, "to", listOf(TEXT));
    private static final Map<String, Predicate<JsonNode>> LISTED = Map.of(
            "kid", TEXT, "active_from", TIME, "active_until", TIME, "expires_at", TIME, "index", NATURAL,
            "by", OBJECT, "evidence", TEXT.or(JsonNode::isNull), "proof", PROOF,
            "state", value -> List.of("active", "retired").contains(value.asText()));

    private Documents() {}

    /** A kind of document: its typ, its greatest size in characters, and a check of each of its members. */
    record Kind(String typ, int size, Map<String, Predicate<JsonNode>> members) {}

    static final Kind REGISTRY_KEYS = new Kind("peerseal-registry+jwt", 64 << 10, all(FRAME, Map.of(
            "version", NATURAL, "root", OBJECT, "signing_keys", listOf(OBJECT), "ledger_key", LEDGER_KEY,
            "past_ledger_keys", optional(listOf(LEDGER_KEY)), "urls", listOf(TEXT))));
    static final Kind KEY_SET = new Kind("jwk-set+jwt", 8 << 20, all(FRAME, PLACE, Map.of(
            "head", NATURAL, "keys", listOf(OBJECT), "revoked", listOf(OBJECT.and(value -> fits(value, REVOKED))))));
    static final Kind CHANGES = new Kind("peerseal-changes+jwt", 1 << 20, all(FRAME, PLACE, Map.of(
            "since", NATURAL, "services", listOf(SERVICE), "reset", FLAG, "revoked", optional(listOf(KID)),
            "seqs", optional(listOf(NATURAL)), "proof", optional(PROOF))));
    static final Kind POLICY = new Kind("peerseal-policy+jwt", 256 << 10, all(FRAME, PLACE, Map.of(
            "head", NATURAL, "policy", value -> value.isNull() || isPolicy(value))));
    static final Kind DOMAIN = new Kind("peerseal-domain+jwt", 256 << 10, all(FRAME, PLACE, Map.of(
            "head", NATURAL, "minters", listOf(SERVICE), "issuers", listOf(OBJECT),
            "derived_scopes", optional(listOf(OBJECT.and(value -> fits(value, DERIVED)))))));

    @SafeVarargs
    private static Map<String, Predicate<JsonNode>> all(Map<String, Predicate<JsonNode>>... parts) {
        Map<String, Predicate<JsonNode>> members = new HashMap<>();
        for (var part : parts) {
            members.putAll(part);
        }
        return members;
    }

    static Predicate<JsonNode> listOf(Predicate<JsonNode> check) {
        return value -> value.isArray() && StreamSupport.stream(value.spliterator(), false).allMatch(check);
    }

    private static Predicate<JsonNode> optional(Predicate<JsonNode> check) {
        return value -> value.isMissingNode() || check.test(value);
    }

    private static boolean passes(Runnable read) {
        try {
            read.run();
            return true;
        } catch (Refused error) {
            return false;
        }
    }

    private static boolean isPolicy(JsonNode value) {
        boolean right = value.path("allow").isObject() && optional(FLAG).test(value.path("restricted"));
        right &= value.size() == (value.has("restricted") ? 2 : 1);
        for (var caller : value.path("allow").properties()) {
            right &= caller.getKey().equals("*") || passes(() -> Strict.ServiceId.split(caller.getKey()));
            right &= listOf(TEXT).test(caller.getValue());
        }
        return right;
    }

    /** Whether each member passes its check; a member that is not there is a MissingNode, and null is a NullNode. */
    static boolean fits(JsonNode object, Map<String, Predicate<JsonNode>> members) {
        return members.entrySet().stream().allMatch(member -> member.getValue().test(object.path(member.getKey())));
    }

    private static boolean hasEntryForEachService(JsonNode changes) {
        long since = changes.get("since").longValue();
        long seq = changes.get("seq").longValue();
        for (JsonNode entry : changes.path("seqs")) {
            if (entry.longValue() <= since || entry.longValue() > seq) {
                return false;
            }
        }
        return !changes.has("seqs") || changes.get("seqs").size() == changes.get("services").size();
    }

    /** For each service that changed, the entry that a document must cover to have the change. */
    static Map<String, Long> lastChanges(JsonNode changes) {
        Map<String, Long> found = new HashMap<>();
        for (int at = 0; at < changes.get("services").size(); at++) {
            JsonNode entry = changes.path("seqs").path(at);
            long seq = changes.get("seq").longValue();
            found.put(changes.get("services").get(at).textValue(), entry.isMissingNode() ? seq : entry.longValue());
        }
        return found;
    }

    /** A document of that kind, signed by one of the keys (by kid) for the domain's registry, and in force now. */
    static ObjectNode read(Kind kind, String compact, Map<String, Key> signers, String domain, long now) {
        Strict.Jws parsed = parse(kind, compact);
        Key signer = signers.get(parsed.kid());
        if (signer == null || !signer.alg().equals(parsed.alg())) {
            throw new Refused("document_unknown_signer", parsed.kid());
        }
        if (!signer.signed(parsed)) {
            throw new Refused("document_bad_signature", "the signature does not verify");
        }
        ObjectNode claims = ofDocument(() -> Strict.strictObject(parsed.payload()));
        if (!fits(claims, kind.members()) || (kind == CHANGES && !hasEntryForEachService(claims))) {
            throw new Refused("document_malformed", "a member is missing, or of another type");
        }
        long issued = claims.get("iat").longValue();
        long end = claims.get("exp").longValue();
        if (!claims.get("iss").textValue().equals(domain + "/registry")) {
            throw new Refused("document_wrong_issuer", claims.get("iss").textValue());
        }
        if (issued > now + 30) {
            throw new Refused("document_from_future", "is a clock wrong?");
        }
        if (end <= issued || now >= end + 30) {
            throw new Refused("document_expired", "is a clock wrong?");
        }
        return claims;
    }

    /** Which keys sign for the registry; {@code signers} by kid. */
    record Root(String domain, long version, Map<String, Key> signers, List<Ledger.SigningKey> ledgerKeys) {
        /** The root's document, believed by the pin. Its root key is in the payload, which is read before the signature is
         * checked. */
        static Root read(String compact, String pin, long now) {
            Strict.Jws parsed = parse(REGISTRY_KEYS, compact);
            Key root = ofDocument(() -> Key.read(Strict.strictObject(parsed.payload()).path("root")));
            if (!root.thumbprint().equals(pin)) {
                throw new Refused("document_wrong_root", root.thumbprint());
            }
            Strict.Kid kid = ofDocument(() -> Strict.Kid.split(parsed.kid()));
            Strict.ServiceId owner = Strict.ServiceId.split(kid.owner());
            Map<String, Key> self = kid.thumbprint().equals(pin) ? Map.of(parsed.kid(), root) : Map.of();
            ObjectNode claims = Documents.read(REGISTRY_KEYS, compact, self, owner.domain(), now);
            if (!owner.service().equals("registry")) {
                throw new Refused("document_wrong_issuer", kid.owner());
            }
            if (!claims.get("sub").textValue().equals(owner.domain())) {
                throw new Refused("document_wrong_subject", claims.get("sub").textValue());
            }
            Map<String, Key> signers = new HashMap<>();
            for (JsonNode jwk : claims.get("signing_keys")) {
                Key key = ofDocument(() -> Key.read(jwk));
                signers.put(kid.owner() + "/" + key.thumbprint(), key);
            }
            List<Ledger.SigningKey> ledgerKeys = new ArrayList<>();
            ledgerKeys.add(Ledger.SigningKey.read(claims.get("ledger_key")));
            claims.path("past_ledger_keys").forEach(jwk -> ledgerKeys.add(Ledger.SigningKey.read(jwk)));
            return new Root(owner.domain(), claims.get("version").longValue(), signers, ledgerKeys);
        }
    }

    /** A key in a key set. */
    record ListedKey(Key key, String kid, String state, long activeFrom, long activeUntil, long expiresAt, long index,
            JsonNode members) {
        static ListedKey of(Key key, JsonNode members) {
            return new ListedKey(key, members.path("kid").asText(), members.path("state").asText(),
                    members.path("active_from").longValue(), members.path("active_until").longValue(),
                    members.path("expires_at").longValue(), members.path("index").longValue(), members);
        }
    }

    /** The keys of a key set, by kid. */
    static Map<String, ListedKey> keysOf(ObjectNode claims) {
        String owner = claims.get("sub").textValue();
        for (JsonNode revoked : claims.get("revoked")) {
            if (!Strict.Kid.split(revoked.get("kid").textValue()).owner().equals(owner)) {
                throw new Refused("document_malformed", "a revoked key of another service");
            }
        }
        Map<String, ListedKey> keys = new HashMap<>();
        for (JsonNode members : claims.get("keys")) {
            Key key = ofDocument(() -> Key.read(members));
            String kid = owner + "/" + key.thumbprint();
            if (!fits(members, LISTED) || !members.get("kid").textValue().equals(kid)) {
                throw new Refused("document_malformed", "a key's members are wrong");
            }
            keys.put(kid, ListedKey.of(key, members));
        }
        return keys;
    }

    private static Strict.Jws parse(Kind kind, String compact) {
        Strict.Jws parsed = ofDocument(() -> Strict.Jws.parse(compact, kind.size()));
        if (!parsed.typ().equals(kind.typ())) {
            throw new Refused("document_wrong_type", parsed.typ());
        }
        return parsed;
    }

    /** A fault of a token, key or name inside a document is one of the document. */
    static <T> T ofDocument(Supplier<T> read) {
        try {
            return read.get();
        } catch (Refused error) {
            throw new Refused("document_malformed", error.getMessage());
        }
    }
}
