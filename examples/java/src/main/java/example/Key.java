package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSHeader;
import com.nimbusds.jose.JWSVerifier;
import com.nimbusds.jose.crypto.ECDSAVerifier;
import com.nimbusds.jose.crypto.RSASSAVerifier;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.util.Base64URL;
import java.math.BigInteger;
import java.security.PublicKey;
import java.util.List;

/** A public key with its one algorithm. {@code jwk} holds the required members only (RFC 7638 section 3.2). */
record Key(String alg, ObjectNode jwk, String thumbprint, PublicKey publicKey, JWSVerifier verifier) {
    private static final List<String> PRIVATE = List.of("d", "p", "q", "dp", "dq", "qi", "oth", "k");

    /** A public key that a service may have. */
    static Key read(JsonNode jwk) {
        for (String member : PRIVATE) {
            if (jwk.has(member)) {
                throw new Refused("key_private_members", member);
            }
        }
        String kind = jwk.path("kty").asText() + " " + jwk.path("crv").asText();
        Key key;
        try {
            key = kind.equals("EC P-256") ? readP256(jwk) : kind.startsWith("RSA ") ? readRsa(jwk) : null;
        } catch (JOSEException error) {
            throw new Refused("key_malformed", "the library refuses it");
        }
        if (key == null) {
            throw new Refused("key_type_unsupported", kind);
        }
        if (jwk.has("alg") && !key.alg.equals(jwk.get("alg").asText())) {
            throw new Refused("key_alg_mismatch", "this type of key is for " + key.alg);
        }
        return key;
    }

    private static Key readP256(JsonNode jwk) throws JOSEException {
        byte[] x = number(jwk, "x");
        byte[] y = number(jwk, "y");
        if (x.length != 32 || y.length != 32) {
            throw new Refused("key_malformed", "x or y");
        }
        ECKey key;
        try {
            key = new ECKey.Builder(Curve.P_256, Base64URL.encode(x), Base64URL.encode(y)).build();
        } catch (IllegalStateException | IllegalArgumentException error) {
            throw new Refused("key_off_curve", "not a point of P-256");
        }
        ObjectNode members = Strict.object().put("kty", "EC").put("crv", "P-256");
        members.set("x", jwk.get("x"));
        members.set("y", jwk.get("y"));
        return new Key("ES256", members, thumbprint(members), key.toPublicKey(), new ECDSAVerifier(key));
    }

    private static Key readRsa(JsonNode jwk) throws JOSEException {
        byte[] n = number(jwk, "n");
        byte[] e = number(jwk, "e");
        if (n.length == 0 || n[0] == 0 || e.length == 0 || e[0] == 0) {
            throw new Refused("key_malformed", "n or e");
        }
        BigInteger modulus = new BigInteger(1, n);
        if (modulus.bitLength() < 2048 || modulus.bitLength() > 8192) {
            throw new Refused("key_size_unsupported", modulus.bitLength() + " bits");
        }
        if (!new BigInteger(1, e).equals(BigInteger.valueOf(65537))) {
            throw new Refused("key_exponent_unsupported", "e is not 65537");
        }
        if (!modulus.testBit(0)) {
            throw new Refused("key_even_modulus", "the modulus is even");
        }
        RSAKey key = new RSAKey.Builder(Base64URL.encode(n), Base64URL.encode(e)).build();
        ObjectNode members = Strict.object().put("kty", "RSA");
        members.set("n", jwk.get("n"));
        members.set("e", jwk.get("e"));
        return new Key("RS256", members, thumbprint(members), key.toPublicKey(), new RSASSAVerifier(key));
    }

    private static byte[] number(JsonNode jwk, String member) {
        try {
            return Strict.decode(jwk.path(member).isTextual() ? jwk.get(member).textValue() : "!");
        } catch (Refused error) {
            throw new Refused("key_malformed", member);
        }
    }

    private static String thumbprint(ObjectNode members) {
        return Strict.encode(Strict.sha256(Strict.canonical(members)));
    }

    /** Whether this key, with its own algorithm, signed the JWS. */
    boolean signed(Strict.Jws jws) {
        JWSHeader header = new JWSHeader(JWSAlgorithm.parse(alg));
        try {
            return jws.alg().equals(alg)
                    && verifier.verify(header, jws.signingInput(), Base64URL.encode(jws.signature()));
        } catch (JOSEException error) {
            return false;
        }
    }
}
