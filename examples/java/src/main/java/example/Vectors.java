package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import example.Documents.Kind;
import example.Documents.ListedKey;
import java.io.IOException;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/** Runs the test vectors of docs/vectors. The other kinds are for parts that this peer has not. */
final class Vectors {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Map<String, Judge> JUDGES = new TreeMap<>(Map.ofEntries(
            Map.entry("base64url", given -> facts("hex", HexFormat.of().formatHex(octets(given, "text")))),
            Map.entry("json", given -> Strict.strictObject(octets(given, "text"))),
            Map.entry("canonical-json",
                    given -> facts("canonical", Strict.encode(Strict.canonical(Strict.strictObject(octets(given, "text")))))),
            Map.entry("content-digest",
                    given -> unless(Strict.digest(octets(given, "body")).equals(text(given, "digest")), "wrong_binding")),
            Map.entry("target-digest", Vectors::targetDigest),
            Map.entry("kid", Vectors::kid),
            Map.entry("key", Vectors::key),
            Map.entry("authorization", Vectors::authorization),
            Map.entry("join", Vectors::join),
            Map.entry("refusal", Vectors::refusal),
            Map.entry("request", given -> request(given).claims()),
            Map.entry("transaction", given -> request(given).transaction().claims()),
            Map.entry("registry-keys", Vectors::registryKeys),
            Map.entry("key-set", given -> document(Documents.KEY_SET, given)),
            Map.entry("changes", given -> document(Documents.CHANGES, given)),
            Map.entry("policy", given -> document(Documents.POLICY, given)),
            Map.entry("domain", given -> document(Documents.DOMAIN, given)),
            Map.entry("inclusion", Vectors::inclusion),
            Map.entry("consistency", Vectors::consistency),
            Map.entry("checkpoint", Vectors::checkpoint)));

    private Vectors() {}

    /** What an accepted case proves, or a Refused. */
    private interface Judge {
        ObjectNode facts(JsonNode given) throws IOException;
    }

    /** Runs every kind that this peer knows, and gives the exit code. */
    static int run(Path folder) throws IOException {
        int passed = 0;
        int failed = 0;
        for (var judge : JUDGES.entrySet()) {
            JsonNode file = JSON.readTree(folder.resolve(judge.getKey() + ".json").toFile());
            for (JsonNode one : file.get("cases")) {
                String told = told(judge.getValue(), file, one);
                if (told.isEmpty()) {
                    passed++;
                } else {
                    failed++;
                    System.err.println(judge.getKey() + "/" + text(one, "id") + ": " + told);
                }
            }
        }
        System.out.println(passed + " cases passed, " + failed + " failed");
        return Math.min(failed, 1);
    }

    /** Empty where the verdict is the expected one. */
    private static String told(Judge judge, JsonNode file, JsonNode one) throws IOException {
        ObjectNode given = Strict.object();
        given.set("keys", file.get("keys"));
        given.setAll((ObjectNode) file.get("defaults"));
        given.setAll((ObjectNode) one.get("input"));
        ObjectNode found = Strict.object();
        String code = "accepted";
        try {
            found = judge.facts(given);
        } catch (Refused error) {
            code = error.code;
        }
        if (!code.equals(text(one, "expect"))) {
            return code + ", expected " + text(one, "expect");
        }
        List<String> wrong = new ArrayList<>();
        for (var claim : one.path("claims").properties()) {
            if (!Arrays.equals(Strict.canonical(claim.getValue()), Strict.canonical(found.path(claim.getKey())))) {
                wrong.add(claim.getKey() + " is " + found.get(claim.getKey()));
            }
        }
        return String.join(", ", wrong);
    }

    private static String text(JsonNode given, String member) {
        return given.get(member).asText();
    }

    private static byte[] octets(JsonNode given, String member) {
        return Strict.decode(text(given, member));
    }

    private static ObjectNode facts(String... pairs) {
        ObjectNode found = Strict.object();
        for (int at = 0; at < pairs.length; at += 2) {
            found.put(pairs[at], pairs[at + 1]);
        }
        return found;
    }

    private static ObjectNode unless(boolean right, String code) {
        if (!right) {
            throw new Refused(code, "");
        }
        return facts();
    }

    private static ObjectNode targetDigest(JsonNode given) {
        String target = text(given, "target");
        boolean right = target.chars().allMatch(one -> one > ' ' && one < 127);
        return unless(right && Strict.digest(Strict.utf8(target)).equals(text(given, "digest")), "wrong_binding");
    }

    private static ObjectNode kid(JsonNode given) {
        Strict.Kid found = Strict.Kid.split(text(given, "kid"));
        return facts("service_id", found.owner(), "thumbprint", found.thumbprint());
    }

    private static ObjectNode key(JsonNode given) {
        Key key = Key.read(given.get("jwk"));
        String kid = "acme.internal/client-service/" + key.thumbprint();
        String spki = Strict.encode(key.publicKey().getEncoded());
        return facts("alg", key.alg(), "thumbprint", key.thumbprint(), "keyId", kid, "publicKey", spki);
    }

    private static ObjectNode authorization(JsonNode given) {
        JsonNode value = given.get("authorization");
        return facts("token", Strict.bearerToken(value.isNull() ? List.of() : List.of(value.textValue())));
    }

    private static ObjectNode join(JsonNode given) {
        Strict.JoinToken token = Strict.JoinToken.parse(text(given, "join_token"));
        byte[] mac = Strict.utf8(token.mac(text(given, "proof")));
        unless(MessageDigest.isEqual(mac, Strict.utf8(text(given, "mac"))), "join_refused");
        return facts("id", token.id(), "pin", token.pin());
    }

    private static ObjectNode refusal(JsonNode given) {
        Verifier.Problem problem = Verifier.Problem.of(text(given, "code"));
        ObjectNode found = Strict.object().put("status", problem.status());
        found.set("headers", JSON.valueToTree(problem.headers()));
        return found;
    }

    private static Verifier.Peer request(JsonNode given) throws IOException {
        long now = given.get("now").longValue();
        Verifier.ReplayGuard replay = new Verifier.ReplayGuard();
        given.get("seen").forEach(pair -> replay.claim(pair.get(0).asText(), pair.get(1).asText(), now + 600, now));
        Map<String, Set<String>> allow = new HashMap<>();
        given.get("allow").properties().forEach(caller -> {
            Set<String> scopes = new HashSet<>();
            caller.getValue().forEach(scope -> scopes.add(scope.textValue()));
            allow.put(caller.getKey(), scopes);
        });
        Map<String, String> headers = new HashMap<>();
        given.get("headers").properties().forEach(each -> headers.put(each.getKey(), each.getValue().textValue()));
        Verifier verifier = new Verifier(new Listed(given), text(given, "audience"), allow, replay, () -> now);
        String scope = given.get("scope").textValue();
        var request = new Verifier.Request(
                text(given, "method"), text(given, "target"), headers, () -> octets(given, "body"), scope);
        return verifier.verify(text(given, "token"), request);
    }

    /** Believes the keys that a file lists. */
    private record Listed(JsonNode given) implements Verifier.Trust {
        @Override
        public String domain() {
            return text(given, "domain");
        }

        @Override
        public JsonNode policy(String id) {
            return given.get("policy");
        }

        @Override
        public JsonNode settings() {
            return given;
        }

        @Override
        public ListedKey key(String kid) {
            for (JsonNode members : given.get("keys")) {
                if (text(members, "kid").equals(kid)) {
                    unless(!text(members, "state").equals("revoked"), "revoked_key");
                    unless(!text(members, "state").equals("unavailable"), "trust_unavailable");
                    return ListedKey.of(Key.read(members.get("jwk")), members);
                }
            }
            throw new Refused("unknown_key", kid);
        }
    }

    private static ObjectNode registryKeys(JsonNode given) {
        var root = Documents.Root.read(text(given, "document"), text(given, "pin"), given.get("now").longValue());
        ObjectNode found = facts("domain", root.domain()).put("version", root.version());
        ArrayNode kids = found.putArray("signing_keys");
        root.signers().keySet().forEach(kids::add);
        return found;
    }

    private static ObjectNode document(Kind kind, JsonNode given) throws IOException {
        String proof = "{\"proof\":" + given.get("consistency") + "}";
        Registry registry = new Registry("", text(given, "pin"),
                (url, headers) -> url.contains("/ledger/proof") ? proof : text(given, "registry_keys"),
                () -> given.get("now").longValue());
        for (JsonNode before : given.get("seen")) {
            Strict.Jws parsed = Strict.Jws.parse(before.textValue(), 8 << 20);
            String subject = text(Strict.strictObject(parsed.payload()), "sub");
            for (Kind known : List.of(Documents.KEY_SET, Documents.CHANGES, Documents.POLICY, Documents.DOMAIN)) {
                if (known.typ().equals(parsed.typ())) {
                    registry.read(known, before.textValue(), subject, 0);
                }
            }
        }
        ObjectNode claims = registry.read(kind, text(given, "document"), text(given, "subject"), registry.seen()).claims();
        return kind == Documents.KEY_SET ? shown(claims) : claims;
    }

    private static ObjectNode shown(ObjectNode claims) {
        ObjectNode found = claims.deepCopy();
        for (String member : List.of("keys", "revoked")) {
            ArrayNode kids = found.putArray(member);
            claims.get(member).forEach(key -> kids.add(key.get("kid")));
        }
        return found;
    }

    private static ObjectNode inclusion(JsonNode given) {
        List<byte[]> proof = Documents.ofDocument(() -> Ledger.proof(given.get("proof")));
        var tree = new Ledger.Checkpoint(given.get("size").longValue(), octets(given, "root"));
        Ledger.checkInclusion(Ledger.leafHash(octets(given, "entry")), given.get("index").longValue(), tree, proof);
        return facts();
    }

    private static ObjectNode consistency(JsonNode given) {
        var older = new Ledger.Checkpoint(given.get("old").longValue(), octets(given, "old_root"));
        var newer = new Ledger.Checkpoint(given.get("new").longValue(), octets(given, "new_root"));
        Ledger.checkConsistency(older, newer, Ledger.proof(given.get("proof")));
        return facts();
    }

    private static ObjectNode checkpoint(JsonNode given) {
        List<Ledger.SigningKey> keys = new ArrayList<>();
        given.get("keys").forEach(jwk -> keys.add(Ledger.SigningKey.read(jwk)));
        var head = Ledger.checkpoint(text(given, "note"), text(given, "origin"), keys);
        return facts("root", Strict.encode(head.root())).put("size", head.size());
    }
}
