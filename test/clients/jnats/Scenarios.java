// Unmodified jnats: `java Scenarios SCENARIO,... JSON`. Exit status 0 means that each scenario saw what it expects.

import io.nats.client.AuthenticationException;
import io.nats.client.Connection;
import io.nats.client.Dispatcher;
import io.nats.client.ErrorListener;
import io.nats.client.JetStreamApiException;
import io.nats.client.KeyValue;
import io.nats.client.KeyValueManagement;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.Subscription;
import io.nats.client.api.KeyValueEntry;
import io.nats.client.api.KeyValueWatchOption;
import io.nats.client.api.KeyValueWatcher;
import io.nats.client.impl.Headers;
import io.nats.client.impl.NatsKeyValueWatchSubscription;
import io.nats.client.impl.NatsMessage;
import io.nats.client.support.JsonParser;
import io.nats.client.support.JsonValue;
import io.nats.client.support.JsonValueUtils;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.SecureRandom;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public final class Scenarios {
    private static final Duration DEADLINE = Duration.ofSeconds(10);

    private static final Map<String, Scenario> SCENARIOS =
            Map.ofEntries(
                    Map.entry("messages", Scenarios::messages),
                    Map.entry("queue_groups", Scenarios::queueGroups),
                    Map.entry("requests", Scenarios::requests),
                    Map.entry("no_responders", Scenarios::noResponders),
                    Map.entry("headers", Scenarios::headers),
                    Map.entry("words", Scenarios::words),
                    Map.entry("drain", Scenarios::drain),
                    Map.entry("unsubscribe_max", Scenarios::unsubscribeMax),
                    Map.entry("kv", Scenarios::kv),
                    Map.entry("largest_payload", Scenarios::largestPayload),
                    Map.entry("login", Scenarios::login),
                    Map.entry("bad_login", Scenarios::badLogin),
                    Map.entry("denied_subscribe", Scenarios::deniedSubscribe));

    private final JsonValue given;
    private final String subject;

    private interface Scenario {
        void run(Scenarios scenarios) throws Exception;
    }

    /** Several in one process, because it takes longer to start than they do. */
    public static void main(String[] arguments) throws Exception {
        JsonValue given = JsonParser.parse(arguments[1]);
        for (String name : arguments[0].split(",")) {
            System.err.println(name);
            SCENARIOS.get(name).run(new Scenarios(given, name));
        }
        // Connections that are still open have threads that would go on.
        System.exit(0);
    }

    private Scenarios(JsonValue given, String name) {
        this.given = given;
        this.subject = text("subject") + name;
    }

    private void messages() throws Exception {
        Connection sender = connect();
        Connection receiver = connect();
        Subscription sub = receiver.subscribe(subject + ".>");
        receiver.flush(DEADLINE);
        for (int i = 0; i < 1000; i++) {
            sender.publish(subject + "." + i % 7, bytes(Integer.toString(i)));
        }
        for (int i = 0; i < 1000; i++) {
            Message message = next(sub);
            expect(Integer.toString(i), text(message));
            expect(subject + "." + i % 7, message.getSubject());
        }
    }

    private void queueGroups() throws Exception {
        Connection nc = connect();
        AtomicInteger taken = new AtomicInteger();
        BlockingQueue<Message> done = new LinkedBlockingQueue<>();
        for (int i = 0; i < 3; i++) {
            Connection member = connect();
            member.createDispatcher(
                            message -> {
                                taken.incrementAndGet();
                                done.add(message);
                            })
                    .subscribe(subject, "workers");
            member.flush(DEADLINE);
        }
        for (int i = 0; i < 300; i++) {
            nc.publish(subject, null);
        }
        for (int i = 0; i < 300; i++) {
            expect(true, done.poll(DEADLINE.toMillis(), TimeUnit.MILLISECONDS) != null);
        }
        nc.flush(DEADLINE);
        expect(300, taken.get());
    }

    private void requests() throws Exception {
        Connection service = connect();
        Connection client = connect();
        Dispatcher dispatcher =
                service.createDispatcher(
                        message ->
                                service.publish(message.getReplyTo(), bytes(text(message).toUpperCase())));
        dispatcher.subscribe(subject);
        service.flush(DEADLINE);
        for (int i = 0; i < 100; i++) {
            Message answer = client.request(subject, bytes("question " + i), DEADLINE);
            expect(true, answer != null);
            expect("QUESTION " + i, text(answer));
        }
    }

    /** jnats cancels the future of a request that nobody takes. */
    private void noResponders() throws Exception {
        CompletableFuture<Message> answer = connect().request(subject, new byte[0]);
        try {
            answer.get(DEADLINE.toMillis(), TimeUnit.MILLISECONDS);
            fail("there is an answer");
        } catch (CancellationException | ExecutionException expected) {
            expect(true, answer.isDone());
        }
    }

    private void headers() throws Exception {
        Connection nc = connect();
        Subscription sub = nc.subscribe(subject);
        Headers headers = new Headers();
        headers.add("X-Two", "one", "two: with a colon");
        headers.add("lower", "");
        nc.publish(NatsMessage.builder().subject(subject).headers(headers).data("payload").build());
        Message got = next(sub);
        expect(Arrays.asList("one", "two: with a colon"), got.getHeaders().get("X-Two"));
        expect(Arrays.asList(""), got.getHeaders().get("lower"));
        expect(2, got.getHeaders().size());
        expect("payload", text(got));
    }

    /** From MQTT, where values are UTF-8: its reader takes only ASCII, and must go on after them. */
    private void words() throws Exception {
        Connection nc = connect();
        Subscription sub = nc.subscribe(subject);
        for (int i = 0; i < 2; i++) {
            Message got = next(sub);
            expect(Arrays.asList("Z%C3%BCrich"), got.getHeaders().get("City"));
            expect(Arrays.asList("x"), got.getHeaders().get("Plain"));
        }
        nc.flush(DEADLINE);
    }

    private void drain() throws Exception {
        Connection nc = connect();
        AtomicInteger taken = new AtomicInteger();
        nc.createDispatcher(message -> taken.incrementAndGet()).subscribe(subject);
        for (int i = 0; i < 200; i++) {
            nc.publish(subject, null);
        }
        nc.flush(DEADLINE);
        expect(true, nc.drain(DEADLINE).get(DEADLINE.toMillis(), TimeUnit.MILLISECONDS));
        expect(200, taken.get());
    }

    private void unsubscribeMax() throws Exception {
        Connection nc = connect();
        Subscription sub = nc.subscribe(subject);
        sub.unsubscribe(2);
        for (int i = 0; i < 5; i++) {
            nc.publish(subject, bytes(Integer.toString(i)));
        }
        nc.flush(DEADLINE);
        expect("0", text(next(sub)));
        expect("1", text(next(sub)));
        expect(false, sub.isActive());
    }

    private void largestPayload() throws Exception {
        int max = JsonValueUtils.readInteger(given, "maxPayload");
        Connection nc = connect();
        expect((long) max, nc.getMaxPayload());
        Subscription sub = nc.subscribe(subject);
        nc.publish(subject, new byte[max]);
        expect(max, next(sub).getData().length);
    }

    private void login() throws Exception {
        welcome(connect());
    }

    /** jnats waits for its PONG all the same. */
    private void badLogin() throws Exception {
        try {
            Nats.connect(options().connectionTimeout(Duration.ofSeconds(5)).build());
            fail("logged in");
        } catch (AuthenticationException expected) {
            expect(true, expected.getMessage().contains("Authorization Violation"));
        }
    }

    private void deniedSubscribe() throws Exception {
        BlockingQueue<String> errors = new LinkedBlockingQueue<>();
        Connection nc =
                Nats.connect(
                        options()
                                .errorListener(
                                        new ErrorListener() {
                                            @Override
                                            public void errorOccurred(Connection connection, String error) {
                                                errors.add(error);
                                            }
                                        })
                                .build());
        String denied = text("denied") + "." + subject;
        nc.subscribe(denied, "q");
        expect(
                "Permissions Violation for Subscription to \"" + denied + "\" using queue \"q\"",
                errors.poll(DEADLINE.toMillis(), TimeUnit.MILLISECONDS));
        welcome(nc);
    }

    private void welcome(Connection nc) throws Exception {
        Subscription sub = nc.subscribe(subject);
        nc.publish(subject, bytes("welcome"));
        expect("welcome", text(next(sub)));
    }

    /** What it can do with an empty bucket. */
    private void kv() throws Exception {
        Connection nc = connect();
        String bucket = text("bucket");
        KeyValue kv = nc.keyValue(bucket);
        KeyValueManagement management = nc.keyValueManagement();
        long first = kv.put("a.b", "one");
        expect("one", kv.get("a.b").getValueAsString());
        expect(first, kv.get("a.b").getRevision());
        long second = kv.update("a.b", bytes("two"), first);
        expect(true, second > first);
        refused("wrong last sequence", () -> kv.update("a.b", bytes("lost"), first));
        refused("wrong last sequence", () -> kv.create("a.b", bytes("lost")));
        long third = kv.create("c", bytes("1"));
        expect(List.of("a.b", "c"), kv.keys());

        Watching all = new Watching();
        try (NatsKeyValueWatchSubscription ignored = kv.watchAll(all)) {
            expect("a.b PUT two " + second, all.next());
            expect("c PUT 1 " + third, all.next());
            expect("end", all.next());
            long live = kv.put("d", "live");
            expect("d PUT live " + live, all.next());
            kv.delete("c");
            expect(true, all.next().startsWith("c DELETE "));
            kv.purge("d");
            expect(true, all.next().startsWith("d PURGE "));
        }
        Watching updates = new Watching();
        try (NatsKeyValueWatchSubscription ignored =
                kv.watch(
                        "*",
                        updates,
                        KeyValueWatchOption.UPDATES_ONLY,
                        KeyValueWatchOption.IGNORE_DELETE,
                        KeyValueWatchOption.META_ONLY)) {
            long fourth = kv.create("c", bytes("again"));
            kv.delete("c");
            kv.put("x.y", "of another filter");
            long fifth = kv.put("e", "value");
            expect("end", updates.next());
            expect("c PUT null " + fourth, updates.next());
            expect("e PUT null " + fifth, updates.next());
        }

        expect(true, kv.get("c") == null);
        expect(1, kv.history("a.b").size());
        expect("two", kv.get("a.b", second).getValueAsString());
        expect(3L, kv.getStatus().getEntryCount());
        expect(true, management.getBucketNames().contains(bucket));
        kv.purgeDeletes();
        refused("cannot be removed", () -> management.delete(bucket));
        for (String key : List.of("a.b", "e", "x.y")) {
            kv.delete(key);
        }
        expect(List.of(), kv.keys());
    }

    private interface Request {
        void send() throws Exception;
    }

    private static void refused(String text, Request request) throws Exception {
        try {
            request.send();
        } catch (JetStreamApiException e) {
            expect(true, e.getMessage().contains(text));
            return;
        }
        fail("no refusal: " + text);
    }

    /** Entries as text, and the end of the values that were there. */
    private static final class Watching implements KeyValueWatcher {
        private final BlockingQueue<String> seen = new LinkedBlockingQueue<>();

        @Override
        public void watch(KeyValueEntry entry) {
            seen.add(entry.getKey() + " " + entry.getOperation() + " " + entry.getValueAsString() + " " + entry.getRevision());
        }

        @Override
        public void endOfData() {
            seen.add("end");
        }

        String next() throws Exception {
            String update = seen.poll(DEADLINE.toMillis(), TimeUnit.MILLISECONDS);
            return update == null ? "nothing" : update;
        }
    }

    private Connection connect() throws Exception {
        return Nats.connect(options().build());
    }

    private Options.Builder options() throws Exception {
        Options.Builder options =
                new Options.Builder().server(text("url")).noReconnect().connectionTimeout(DEADLINE);
        JsonValue tls = JsonValueUtils.readObject(given, "tls");
        String cafile = JsonValueUtils.readString(tls, "cafile");
        if (cafile != null) {
            options.sslContext(
                    context(
                            cafile,
                            JsonValueUtils.readString(tls, "certfile"),
                            JsonValueUtils.readString(tls, "keyfile")));
            if (JsonValueUtils.readBoolean(tls, "first")) {
                options.tlsFirst();
            }
        }
        if (text("user") != null) {
            options.userInfo(text("user"), text("password"));
        } else if (text("token") != null) {
            options.token(text("token").toCharArray());
        } else if (text("creds") != null) {
            options.authHandler(Nats.credentials(text("creds")));
        } else if (text("seed") != null) {
            options.authHandler(Nats.staticCredentials(null, text("seed").toCharArray()));
        }
        return options;
    }

    private static SSLContext context(String cafile, String certfile, String keyfile) throws Exception {
        CertificateFactory factory = CertificateFactory.getInstance("X.509");
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (InputStream file = Files.newInputStream(Path.of(cafile))) {
            trusted.setCertificateEntry("authority", factory.generateCertificate(file));
        }
        TrustManagerFactory trust =
                TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        KeyManagerFactory own = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        if (certfile != null) {
            KeyStore keys = KeyStore.getInstance(KeyStore.getDefaultType());
            keys.load(null, null);
            List<Certificate> chain = new ArrayList<>();
            try (InputStream file = Files.newInputStream(Path.of(certfile))) {
                chain.addAll(factory.generateCertificates(file));
            }
            keys.setKeyEntry("client", key(keyfile), new char[0], chain.toArray(new Certificate[0]));
            own.init(keys, new char[0]);
        } else {
            own.init(null, null);
        }
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(own.getKeyManagers(), trust.getTrustManagers(), new SecureRandom());
        return context;
    }

    private static PrivateKey key(String file) throws Exception {
        String pem = Files.readString(Path.of(file)).replaceAll("-----[A-Z ]+-----|\\s", "");
        return KeyFactory.getInstance("EC")
                .generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem)));
    }

    private String text(String key) {
        return JsonValueUtils.readString(given, key);
    }

    private static String text(Message message) {
        return new String(message.getData(), StandardCharsets.UTF_8);
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static Message next(Subscription sub) throws Exception {
        Message message = sub.nextMessage(DEADLINE);
        expect(true, message != null);
        return message;
    }

    private static void expect(Object expected, Object got) {
        if (!expected.equals(got)) {
            fail("'" + got + "' instead of '" + expected + "'");
        }
    }

    private static void fail(String problem) {
        throw new AssertionError(problem);
    }
}
