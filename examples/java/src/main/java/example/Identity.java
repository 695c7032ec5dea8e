package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JOSEObjectType;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSHeader;
import com.nimbusds.jose.JWSObject;
import com.nimbusds.jose.Payload;
import com.nimbusds.jose.crypto.ECDSASigner;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.gen.ECKeyGenerator;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileAttribute;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.SecureRandom;
import java.text.ParseException;
import java.time.Duration;
import java.util.Map;

/** Who this service is: its key, its registration, and the tokens that it signs (docs/protocol.md: Registration, Request token). */
final class Identity {
    private static final Duration TIMEOUT = Duration.ofSeconds(5);
    private static final Map<String, String> JSON_TYPE = Map.of("content-type", "application/json");
    private static final SecureRandom RANDOM = new SecureRandom();
    /** Follows no redirect: an answer from another place is not the one that was asked for. */
    private static final HttpClient HTTP = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1)
            .followRedirects(HttpClient.Redirect.NEVER).connectTimeout(TIMEOUT).build();

    final String domain;
    final String id;
    final Registry registry;
    final String kid;
    private final String service;
    private final Path path; // of the private key
    private final ECKey key;

    private Identity(Registry registry, String service, Path path, ECKey key) throws IOException {
        this.registry = registry;
        this.service = service;
        this.path = path;
        this.key = key;
        domain = registry.domain();
        id = domain + "/" + service;
        kid = id + "/" + Key.read(publicJwk()).thumbprint();
    }

    /** Loads or makes the key in that folder, and registers it. The join token may be null once it is registered: a key
     * that is registered already is registered again without harm. */
    static Identity join(Registry registry, String service, Path folder, String joinToken) throws IOException {
        Path path = folder.resolve(service + ".jwk");
        Identity us = new Identity(registry, service, path, loadOrMake(path));
        String proof = us.proof();
        ObjectNode body = Strict.object().put("proof", proof);
        if (joinToken != null) {
            Strict.JoinToken token = Strict.JoinToken.parse(joinToken);
            body.putObject("join").put("id", token.id()).put("mac", token.mac(proof));
        }
        us.register(Strict.canonical(body), Map.of());
        registry.signWith((method, target) -> "Bearer " + us.sign("registry", method, target, new byte[0], Map.of(), null));
        return us;
    }

    /** Registers another key, for which the present one vouches, and keeps it in place of that. A key is good for 7 days:
     * do this once a day, and restart the service some time after. */
    Identity rotate() throws IOException {
        Identity next = new Identity(registry, service, path, newKey());
        byte[] body = Strict.canonical(Strict.object().put("proof", next.proof()));
        register(body, Map.of("authorization", "Bearer " + sign("registry", "POST", keysPath(), body, JSON_TYPE, null)));
        Path fresh = path.resolveSibling(path.getFileName() + ".new");
        Files.deleteIfExists(fresh); // of a rotation that was cut short
        save(fresh, next.key);
        Files.move(fresh, path, StandardCopyOption.ATOMIC_MOVE);
        return next;
    }

    private String keysPath() {
        return "/v1/services/" + service + "/keys";
    }

    private void register(byte[] body, Map<String, String> headers) throws IOException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(registry.url + keysPath())).timeout(TIMEOUT)
                .POST(BodyPublishers.ofByteArray(body));
        JSON_TYPE.forEach(request::header);
        headers.forEach(request::header);
        HttpResponse<String> answer = send(request.build());
        if (answer.statusCode() != 200 && answer.statusCode() != 201) {
            throw new IOException("not registered: " + answer.statusCode() + " " + answer.body());
        }
    }

    /** The token for one attempt of one request: sign again for each retry. The token binds the headers, and the transaction
     * token that goes along, if that is not null. */
    String sign(String audience, String method, String target, byte[] body, Map<String, String> headers, String transaction) {
        long now = registry.now();
        ObjectNode claims = Strict.object().put("iss", id).put("sub", id).put("iat", now).put("nbf", now).put("exp", now + 60);
        claims.put("aud", audience.contains("/") ? audience : domain + "/" + audience).put("jti", newJti());
        claims.put("method", method).put("target_digest", Strict.digest(Strict.utf8(target)));
        claims.put("content_digest", Strict.digest(body));
        ObjectNode bound = claims.putObject("headers");
        headers.forEach(bound::put);
        if (transaction != null) {
            claims.put("tth", Transaction.hash(transaction));
        }
        return jws("peerseal-request+jwt", claims);
    }

    /** One signed call, in a transaction unless its token is null. */
    HttpResponse<String> call(String audience, String method, String url, byte[] body, String transaction)
            throws IOException {
        URI address = URI.create(url.replace(" ", "%20"));
        String path = address.getRawPath().isEmpty() ? "/" : address.getRawPath();
        String target = address.getRawQuery() == null ? path : path + "?" + address.getRawQuery();
        Map<String, String> headers = body.length == 0 ? Map.of() : JSON_TYPE;
        HttpRequest.Builder request = HttpRequest.newBuilder(address).timeout(TIMEOUT.multipliedBy(4))
                .method(method, body.length == 0 ? BodyPublishers.noBody() : BodyPublishers.ofByteArray(body))
                .header("authorization", "Bearer " + sign(audience, method, target, body, headers, transaction));
        headers.forEach(request::header);
        if (transaction != null) {
            request.header(Transaction.HEADER, transaction);
        }
        return send(request.build());
    }

    /** Fetches a registry's document. */
    static String get(String url, Map<String, String> headers) throws IOException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).timeout(TIMEOUT);
        headers.forEach(request::header);
        HttpResponse<String> answer = send(request.build());
        if (answer.statusCode() == 404) {
            throw new Registry.NotFound(url);
        }
        if (answer.statusCode() != 200) {
            throw new IOException(url + ": " + answer.statusCode());
        }
        return answer.body();
    }

    private static HttpResponse<String> send(HttpRequest request) throws IOException {
        try {
            return HTTP.send(request, BodyHandlers.ofString());
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new IOException(error);
        }
    }

    private JsonNode publicJwk() {
        return Strict.object().put("kty", "EC").put("crv", "P-256")
                .put("x", key.getX().toString()).put("y", key.getY().toString());
    }

    /** Shows that we hold the key: its holder asks to register it. */
    private String proof() {
        long now = registry.now();
        ObjectNode claims = Strict.object().put("iss", id).put("aud", domain + "/registry").put("iat", now);
        claims.put("exp", now + 60).put("jti", newJti()).set("jwk", publicJwk());
        return jws("peerseal-proof+jwt", claims);
    }

    private String jws(String typ, ObjectNode claims) {
        JWSHeader header = new JWSHeader.Builder(JWSAlgorithm.ES256).keyID(kid).type(new JOSEObjectType(typ)).build();
        JWSObject made = new JWSObject(header, new Payload(Strict.canonical(claims)));
        try {
            made.sign(new ECDSASigner(key));
        } catch (JOSEException error) {
            throw new IllegalStateException(error); // our own key
        }
        return made.serialize();
    }

    private static String newJti() {
        byte[] octets = new byte[16];
        RANDOM.nextBytes(octets);
        return Strict.encode(octets);
    }

    private static FileAttribute<?> mode(String text) {
        return PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString(text));
    }

    private static ECKey loadOrMake(Path path) throws IOException {
        try {
            if (Files.exists(path)) {
                return ECKey.parse(Files.readString(path));
            }
        } catch (ParseException error) {
            throw new IOException(path + ": no EC key", error);
        }
        ECKey made = newKey();
        Files.createDirectories(path.getParent(), mode("rwx------"));
        save(path, made);
        return made;
    }

    private static ECKey newKey() {
        try {
            return new ECKeyGenerator(Curve.P_256).generate();
        } catch (JOSEException error) {
            throw new IllegalStateException(error); // every Java has P-256
        }
    }

    private static void save(Path path, ECKey key) throws IOException {
        Files.createFile(path, mode("rw-------"));
        Files.writeString(path, key.toJSONString());
    }
}
