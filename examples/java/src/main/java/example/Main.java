package example;

import com.fasterxml.jackson.databind.node.ObjectNode;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Instant;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Executors;

/** A service and a client, as examples/minimal has them in Python. */
public final class Main {
    private static final int MAX_BODY = 1 << 20;
    private static final int THREADS = 256;
    private static final String USAGE = """
            usage: serve PORT [AUDIENCE URL] | call AUDIENCE METHOD URL [BODY] | sign AUDIENCE METHOD TARGET [BODY] | rotate
                   | vectors FOLDER
            needs PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, and PEERSEAL_JOIN_TOKEN or PEERSEAL_REGISTRY_PIN; keys are in \
            PEERSEAL_KEY_DIR""";
    /** How many words each command and its arguments are. */
    private static final Map<String, Set<Integer>> COUNTS = Map.of(
            "serve", Set.of(2, 4), "call", Set.of(4, 5), "sign", Set.of(4, 5), "rotate", Set.of(1), "vectors", Set.of(2));

    private Main() {}

    public static void main(String[] arguments) {
        String command = arguments.length > 0 ? arguments[0] : "";
        if (!COUNTS.getOrDefault(command, Set.of()).contains(arguments.length)) {
            wrongUsage("the command, or the number of its arguments");
        }
        try {
            run(command, arguments);
        } catch (IOException | RuntimeException error) {
            System.err.println(error);
            System.exit(1);
        }
    }

    private static void wrongUsage(String reason) {
        System.err.println("wrong usage: " + reason + "\n" + USAGE);
        System.exit(2);
    }

    private static void run(String command, String[] arguments) throws IOException {
        byte[] body = Strict.utf8(arguments.length > 4 ? arguments[4] : "");
        switch (command) {
            case "vectors" -> System.exit(Vectors.run(Path.of(arguments[1])));
            case "serve" -> {
                Identity us = joined();
                Next next = transaction -> call(us, arguments[2], "GET", arguments[3], new byte[0], transaction);
                serve(us, Integer.parseInt(arguments[1]), arguments.length < 4 ? null : next);
            }
            case "call" -> System.out.println(call(joined(), arguments[1], arguments[2], arguments[3], body, null));
            case "sign" -> {
                Map<String, String> headers = body.length == 0 ? Map.of() : Map.of("content-type", "application/json");
                System.out.println(joined().sign(arguments[1], arguments[2], arguments[3], body, headers, null));
            }
            default -> System.out.println(joined().rotate().kid);
        }
    }

    private static Identity joined() throws IOException {
        Map<String, String> settings = System.getenv();
        String joining = settings.get("PEERSEAL_JOIN_TOKEN");
        String given = settings.get("PEERSEAL_REGISTRY_PIN");
        boolean named = settings.keySet().containsAll(Set.of("PEERSEAL_SERVICE", "PEERSEAL_REGISTRY_URL"));
        if (!named || (joining == null && given == null)) {
            wrongUsage("a variable is not set");
        }
        String pin = given == null ? Strict.JoinToken.parse(joining).pin() : given;
        String url = settings.get("PEERSEAL_REGISTRY_URL").replaceAll("/$", "");
        Registry registry = new Registry(url, pin, Identity::get, () -> Instant.now().getEpochSecond());
        Path folder = Path.of(settings.getOrDefault("PEERSEAL_KEY_DIR", "keys")).toAbsolutePath();
        return Identity.join(registry, settings.get("PEERSEAL_SERVICE"), folder, joining);
    }

    /** The status and the text of an answer. */
    private static String call(Identity us, String audience, String method, String url, byte[] body, String transaction)
            throws IOException {
        HttpResponse<String> answer = us.call(audience, method, url, body, transaction);
        return answer.statusCode() + " " + answer.body();
    }

    /** What the next service says in the transaction with that token, which may be null. */
    private interface Next {
        String ask(String transaction) throws IOException;
    }

    /** Serves at that port; {@code next} is null where no other service is asked. A client that is silent in the middle of
     * a request, or that reads nothing, holds a thread until one of the server's two limits, in seconds. */
    private static void serve(Identity us, int port, Next next) throws IOException {
        System.setProperty("sun.net.httpserver.maxReqTime", "10");
        System.setProperty("sun.net.httpserver.maxRspTime", "60");
        Map<String, Set<String>> allow = Map.of(us.domain + "/caller", Set.of("greetings:read"));
        Verifier verifier = new Verifier(us.registry, us.id, allow, new Verifier.ReplayGuard(), us.registry::now);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newFixedThreadPool(THREADS));
        server.createContext("/", exchange -> answer(exchange, verifier, next));
        server.start();
        System.out.println("Listening at http://127.0.0.1:" + port);
    }

    /** Lets only verified requests through. */
    private static void answer(HttpExchange exchange, Verifier verifier, Next next) throws IOException {
        try (exchange) {
            try {
                byte[][] content = new byte[1][];
                Verifier.Body body = () -> content[0] = readBody(exchange);
                String target = exchange.getRequestURI().toString(); // as in the request line
                var request = new Verifier.Request(
                        exchange.getRequestMethod(), target, headersOf(exchange), body, "greetings:read");
                List<String> values = exchange.getRequestHeaders().getOrDefault("Authorization", List.of());
                Verifier.Peer caller = verifier.verify(Strict.bearerToken(values), request);
                ObjectNode told = greeting(caller, exchange, content[0]);
                if (next != null) {
                    told.put("next", answerOf(next, caller.transaction()));
                }
                respond(exchange, 200, Map.of("content-type", "application/json"), Strict.canonical(told));
            } catch (Refused | IOException error) {
                System.err.println("refused " + exchange.getRequestMethod() + ": " + error.getMessage());
                String code = error instanceof Refused refused ? refused.code : "trust_unavailable";
                Verifier.Problem problem = Verifier.Problem.of(code);
                respond(exchange, problem.status(), problem.headers(), problem.body());
            }
        }
    }

    private static String answerOf(Next next, Transaction transaction) {
        try {
            return next.ask(transaction == null ? null : transaction.token());
        } catch (IOException error) {
            throw new Refused("next_unavailable", error.toString());
        }
    }

    /** The one route: a greeting, which service asked for it, and for which user. */
    private static ObjectNode greeting(Verifier.Peer caller, HttpExchange exchange, byte[] content) {
        String path = exchange.getRequestURI().getPath();
        String hello = content.length > 0
                ? new String(content, StandardCharsets.UTF_8)
                : path.substring(path.lastIndexOf('/') + 1);
        ObjectNode told = Strict.object().put("hello", hello).put("caller", caller.service());
        return caller.transaction() == null ? told : told.put("user", caller.transaction().user());
    }

    private static byte[] readBody(HttpExchange exchange) {
        byte[] content;
        try {
            content = exchange.getRequestBody().readNBytes(MAX_BODY + 1);
        } catch (IOException error) {
            throw new Refused("content_unreadable", error.toString());
        }
        if (content.length > MAX_BODY) {
            throw new Refused("content_too_large", "more than " + MAX_BODY + " bytes");
        }
        return content;
    }

    private static Map<String, String> headersOf(HttpExchange exchange) {
        Map<String, String> headers = new HashMap<>();
        exchange.getRequestHeaders().forEach(
                (name, values) -> headers.put(name.toLowerCase(Locale.ROOT), String.join(", ", values)));
        return headers;
    }

    private static void respond(HttpExchange exchange, int status, Map<String, String> headers, byte[] body)
            throws IOException {
        headers.forEach(exchange.getResponseHeaders()::set);
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
    }
}
