package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.X509EncodedKeySpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.function.BiConsumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The transparency log: checkpoints, inclusion and consistency proofs (docs/protocol.md: Ledger; RFC 9162 section 2.1). */
final class Ledger {
    private static final Pattern BODY = Pattern.compile("([^\\n]+)\\n(0|[1-9][0-9]{0,17})\\n([A-Za-z0-9+/]{43}=)\\n");
    private static final Pattern SIGNATURE = Pattern.compile("— ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})");
    private static final byte[] ED25519_SPKI = HexFormat.of().parseHex("302a300506032b6570032100"); // RFC 8410 section 4

    private Ledger() {}

    /** The ledger's head. */
    record Checkpoint(long size, byte[] root) {}

    /** A key that signs checkpoints: its 32 bytes, and Java's object. */
    record SigningKey(byte[] octets, PublicKey key) {
        static SigningKey read(JsonNode jwk) {
            boolean right = jwk.path("kty").asText().equals("OKP") && jwk.path("crv").asText().equals("Ed25519");
            byte[] octets = Strict.decode(jwk.path("x").asText());
            try {
                if (right && octets.length == 32) {
                    var encoded = new X509EncodedKeySpec(Strict.concat(ED25519_SPKI, octets));
                    return new SigningKey(octets, KeyFactory.getInstance("Ed25519").generatePublic(encoded));
                }
            } catch (GeneralSecurityException error) {
                // not a point of the curve
            }
            throw new Refused("malformed_token", "not an Ed25519 key");
        }

        boolean signed(byte[] text, byte[] signature) {
            try {
                Signature check = Signature.getInstance("Ed25519");
                check.initVerify(key);
                check.update(text);
                return check.verify(signature);
            } catch (GeneralSecurityException error) {
                return false;
            }
        }
    }

    static byte[] leafHash(byte[] entry) {
        return Strict.sha256(new byte[] {0}, entry);
    }

    private static byte[] nodeHash(byte[] left, byte[] right) {
        return Strict.sha256(new byte[] {1}, left, right);
    }

    /** The hashes of a proof. */
    static List<byte[]> proof(JsonNode value) {
        List<byte[]> proof = new ArrayList<>();
        for (JsonNode part : value) {
            proof.add(Strict.decode(part.isTextual() ? part.textValue() : "!"));
        }
        if (!value.isArray() || proof.size() > 64 || proof.stream().anyMatch(part -> part.length != 32)) {
            throw new Refused("malformed_token", "not a proof");
        }
        return proof;
    }

    /** A head that one of the ledger's keys signed. */
    static Checkpoint checkpoint(String note, String origin, List<SigningKey> keys) {
        Refused wrong = new Refused("document_bad_checkpoint", "not a checkpoint of " + origin);
        int end = note.indexOf("\n\n");
        if (end < 0 || note.length() > 16384 || !note.endsWith("\n") || end + 2 >= note.length()) {
            throw wrong;
        }
        String text = note.substring(0, end + 1);
        Matcher body = BODY.matcher(text);
        if (!body.matches() || !body.group(1).equals(origin)) {
            throw wrong;
        }
        byte[] root = base64(body.group(3), wrong);
        Map<String, byte[]> signatures = signatures(note.substring(end + 2, note.length() - 1), origin, wrong);
        for (SigningKey key : keys) {
            byte[] id = Arrays.copyOf(Strict.sha256(Strict.utf8(origin + "\n\u0001"), key.octets()), 4);
            byte[] signature = signatures.get(Strict.encode(id));
            if (signature != null && !key.signed(Strict.utf8(text), signature)) {
                throw wrong;
            }
            if (signature != null) {
                return new Checkpoint(Long.parseLong(body.group(2)), root);
            }
        }
        throw new Refused("document_unknown_signer", "no key of the ledger signed the checkpoint");
    }

    /** Those under that name, by key id. */
    private static Map<String, byte[]> signatures(String lines, String name, Refused wrong) {
        String[] each = lines.split("\n", -1);
        Map<String, byte[]> found = new HashMap<>();
        for (String line : each) {
            Matcher signed = SIGNATURE.matcher(line);
            if (!signed.matches() || each.length > 64) {
                throw wrong;
            }
            if (signed.group(1).equals(name)) {
                byte[] value = base64(signed.group(2), wrong);
                found.put(Strict.encode(Arrays.copyOf(value, 4)), Arrays.copyOfRange(value, Math.min(4, value.length), value.length));
            }
        }
        return found;
    }

    private static byte[] base64(String text, Refused wrong) {
        try {
            byte[] octets = Base64.getDecoder().decode(text);
            if (Base64.getEncoder().encodeToString(octets).equals(text)) {
                return octets;
            }
        } catch (IllegalArgumentException error) {
            // not base64 at all
        }
        throw wrong;
    }

    /** The leaf is at that index in the tree. */
    static void checkInclusion(byte[] leaf, long index, Checkpoint tree, List<byte[]> proof) {
        byte[][] found = {leaf};
        boolean whole = climb(index, tree.size() - 1, proof, (part, left) ->
                found[0] = left ? nodeHash(part, found[0]) : nodeHash(found[0], part));
        if (!whole || !Arrays.equals(found[0], tree.root())) {
            throw new Refused("document_not_in_ledger", "the proof does not lead to the root");
        }
    }

    /** The newer tree begins with the older one. */
    static void checkConsistency(Checkpoint older, Checkpoint newer, List<byte[]> proof) {
        Refused wrong = new Refused("document_inconsistent", "two histories of one ledger");
        if (older.size() == 0 || older.size() == newer.size()) {
            if (!proof.isEmpty() || (older.size() > 0 && !Arrays.equals(older.root(), newer.root()))) {
                throw wrong;
            }
            return;
        }
        List<byte[]> parts = new ArrayList<>(proof);
        if (Long.bitCount(older.size()) == 1) { // then the old root is a node of the new tree
            parts.add(0, older.root());
        }
        if (older.size() > newer.size() || parts.isEmpty()) {
            throw wrong;
        }
        byte[][] hashes = {parts.get(0), parts.get(0)}; // of the older and the newer tree
        int skipped = Long.numberOfTrailingZeros(older.size());
        long last = (newer.size() - 1) >> skipped;
        boolean whole = climb((older.size() - 1) >> skipped, last, parts.subList(1, parts.size()), (part, left) -> {
            hashes[0] = left ? nodeHash(part, hashes[0]) : hashes[0];
            hashes[1] = left ? nodeHash(part, hashes[1]) : nodeHash(hashes[1], part);
        });
        if (!whole || !Arrays.equals(hashes[0], older.root()) || !Arrays.equals(hashes[1], newer.root())) {
            throw wrong;
        }
    }

    /** From a node of a level whose last node is {@code last} up to the root; false for a proof of the wrong length. */
    private static boolean climb(long number, long last, List<byte[]> proof, BiConsumer<byte[], Boolean> step) {
        if (number < 0 || number > last) {
            return false;
        }
        for (byte[] part : proof) {
            if (last == 0) {
                return false;
            }
            boolean left = (number & 1) == 1 || number == last;
            step.accept(part, left);
            while (left && number != 0 && (number & 1) == 0) {
                number >>= 1;
                last >>= 1;
            }
            number >>= 1;
            last >>= 1;
        }
        return last == 0;
    }

    /** The entry that admitted a key of a key set is in the ledger. */
    static void checkAdmission(Documents.ListedKey listed, String service, Checkpoint head) {
        ObjectNode entry = Strict.object().put("seq", listed.index() + 1).put("time", listed.activeFrom());
        entry.put("type", "key_admitted").put("service", service).put("kid", listed.kid());
        entry.set("by", listed.members().get("by"));
        entry.set("evidence", listed.members().get("evidence"));
        ObjectNode data = entry.putObject("data").put("alg", listed.key().alg());
        data.put("active_from", listed.activeFrom()).put("expires_at", listed.expiresAt()).set("jwk", listed.key().jwk());
        checkInclusion(leafHash(Strict.canonical(entry)), listed.index(), head, proof(listed.members().get("proof")));
        boolean ended = listed.activeUntil() != listed.expiresAt();
        if (listed.activeUntil() > listed.expiresAt() || (listed.state().equals("active") && ended)) {
            throw new Refused("document_not_in_ledger", "the key was admitted for another time");
        }
    }
}
