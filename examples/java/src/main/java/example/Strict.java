package example;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Comparator;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** Strict reading of names and encodings, and the digests (docs/protocol.md: Names, Encodings). */
final class Strict {
    private static final String LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
    private static final String NAME = LABEL + "(?:\\." + LABEL + ")*";
    private static final Pattern SERVICE_ID = Pattern.compile("(" + NAME + ")/(" + NAME + ")");
    private static final Pattern KID = Pattern.compile("(.+)/([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])");
    private static final Pattern BEARER = Pattern.compile("[A-Za-z0-9._~+/-]+=*");

    /** Jackson, told to refuse repeated members, trailing text and deep nesting. */
    private static final ObjectMapper JSON = JsonMapper.builder(JsonFactory.builder()
                    .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                    .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(32).build())
                    .build())
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .disable(JsonWriteFeature.WRITE_HEX_UPPER_CASE)
            .build();

    private Strict() {}

    static String encode(byte[] octets) {
        return Base64.getUrlEncoder().withoutPadding().encodeToString(octets);
    }

    /** The bytes of canonical base64url. Java's decoder takes padding and trailing bits. */
    static byte[] decode(String text) {
        try {
            byte[] octets = Base64.getUrlDecoder().decode(text);
            if (encode(octets).equals(text)) {
                return octets;
            }
        } catch (IllegalArgumentException error) {
            // not base64 at all
        }
        throw new Refused("malformed_token", "not base64url");
    }

    static byte[] sha256(byte[]... parts) {
        try {
            MessageDigest sum = MessageDigest.getInstance("SHA-256");
            for (byte[] part : parts) {
                sum.update(part);
            }
            return sum.digest();
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException(error); // every Java has it
        }
    }

    /** The digest of a body's bytes, or of a request-target's, as RFC 9530 writes it. */
    static String digest(byte[] octets) {
        return "sha-256=:" + Base64.getEncoder().encodeToString(sha256(octets)) + ":";
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static ObjectNode object() {
        return JSON.createObjectNode();
    }

    /** The JSON object in these bytes, which are UTF-8: Jackson alone would guess the encoding. */
    static ObjectNode strictObject(byte[] octets) {
        try {
            String text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(octets)).toString();
            JsonNode value = JSON.readTree(text);
            checkValue(value);
            if (value instanceof ObjectNode found) {
                return found;
            }
        } catch (CharacterCodingException | JsonProcessingException error) {
            throw new Refused("malformed_token", "not strict JSON");
        }
        throw new Refused("malformed_token", "not an object");
    }

    /** No half surrogate pairs, and no numbers out of range. */
    private static void checkValue(JsonNode value) {
        boolean sound = !value.isTextual() || isWellFormed(value.textValue());
        sound &= !value.isFloatingPointNumber() || Double.isFinite(value.doubleValue());
        for (var names = value.fieldNames(); names.hasNext(); ) {
            sound &= isWellFormed(names.next());
        }
        if (!sound) {
            throw new Refused("malformed_token", "half a surrogate pair, or a number out of range");
        }
        value.forEach(Strict::checkValue);
    }

    private static boolean isWellFormed(String text) {
        return StandardCharsets.UTF_8.newEncoder().canEncode(text);
    }

    /** Names sorted by code points at every level, no white space. Jackson's bytes, other than its text, escape pairs. */
    static byte[] canonical(JsonNode value) {
        try {
            return utf8(JSON.writeValueAsString(sorted(value)));
        } catch (JsonProcessingException error) {
            throw new IllegalStateException(error); // the value came from JSON
        }
    }

    private static JsonNode sorted(JsonNode value) {
        if (value.isArray()) {
            ArrayNode list = JSON.createArrayNode();
            value.forEach(one -> list.add(sorted(one)));
            return list;
        }
        if (!value.isObject()) {
            return value;
        }
        ObjectNode members = object();
        List<String> names = new ArrayList<>();
        value.fieldNames().forEachRemaining(names::add);
        names.sort(Comparator.comparing(Strict::utf8, Arrays::compareUnsigned)); // Java's own order is by halves of pairs
        names.forEach(name -> members.set(name, sorted(value.get(name))));
        return members;
    }

    /** Trust domain and short name of a service. */
    record ServiceId(String domain, String service) {
        static ServiceId split(String id) {
            Matcher found = SERVICE_ID.matcher(id.length() > 354 ? "" : id); // a long one would take a deep stack
            if (!found.matches() || found.group(1).length() > 253 || found.group(2).length() > 100) {
                throw new Refused("invalid_name", "not a service id");
            }
            return new ServiceId(found.group(1), found.group(2));
        }
    }

    /** The service that owns a key, and the key's thumbprint. */
    record Kid(String owner, String thumbprint) {
        static Kid split(String kid) {
            Matcher found = KID.matcher(kid);
            if (!found.matches()) {
                throw new Refused("invalid_name", "not a kid");
            }
            ServiceId.split(found.group(1));
            return new Kid(found.group(1), found.group(2));
        }
    }

    /** A compact JWS, taken apart. Its signature is not checked. */
    record Jws(String alg, String kid, String typ, byte[] payload, byte[] signingInput, byte[] signature) {
        /** The header holds exactly alg, kid and typ. */
        static Jws parse(String compact, int limit) {
            String[] segments = compact.length() > limit ? new String[0] : compact.split("\\.", -1);
            if (segments.length != 3 || segments[1].isEmpty()) {
                throw new Refused("malformed_token", "too long, or not three segments");
            }
            byte[] payload = decode(segments[1]);
            byte[] signature = decode(segments[2]);
            ObjectNode header = strictObject(decode(segments[0]));
            boolean texts = header.path("alg").isTextual() && header.path("kid").isTextual() && header.path("typ").isTextual();
            if (header.size() != 3 || !texts) {
                throw new Refused("malformed_token", "the header must hold exactly alg, kid and typ");
            }
            byte[] input = utf8(segments[0] + "." + segments[1]);
            String alg = header.get("alg").textValue();
            return new Jws(alg, header.get("kid").textValue(), header.get("typ").textValue(), payload, input, signature);
        }
    }

    /** The token in the values of the Authorization header, which may come twice. */
    static String bearerToken(List<String> values) {
        String value = String.join(", ", values).strip();
        int end = value.indexOf(' ') < 0 ? value.length() : value.indexOf(' ');
        String token = value.substring(end).strip();
        if (value.contains(",")) {
            throw new Refused("malformed_token", "two values, or a comma");
        }
        if (!value.substring(0, end).equalsIgnoreCase("bearer")) {
            throw new Refused("missing_token", "no bearer token");
        }
        if (!BEARER.matcher(token).matches()) {
            throw new Refused("malformed_token", "not a token");
        }
        return token;
    }

    /** A join token's parts. The secret never leaves this process: only its MAC over a proof does. */
    record JoinToken(String id, String secret, String pin) {
        static JoinToken parse(String text) {
            String[] parts = text.strip().split("\\.", -1);
            try {
                if (parts.length == 4 && parts[0].equals("psj1") && decode(parts[1]).length == 12
                        && decode(parts[2]).length == 32 && decode(parts[3]).length == 32) {
                    return new JoinToken(parts[1], parts[2], parts[3]);
                }
            } catch (Refused error) {
                // said below: the message must not hold the token
            }
            throw new Refused("configuration", "the join token cannot be read");
        }

        String mac(String proof) {
            try {
                Mac mac = Mac.getInstance("HmacSHA256");
                mac.init(new SecretKeySpec(sha256(decode(secret)), "HmacSHA256"));
                return encode(mac.doFinal(utf8(proof)));
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error); // every Java has it
            }
        }

        @Override
        public String toString() {
            return "JoinToken[id=" + id + "]";
        }
    }

    static byte[] concat(byte[]... parts) {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        for (byte[] part : parts) {
            all.writeBytes(part);
        }
        return all.toByteArray();
    }
}
