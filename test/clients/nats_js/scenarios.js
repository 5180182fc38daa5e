// Unmodified nats.js: `node scenarios.js PACKAGE SCENARIO JSON`. Exit status 0 means the scenario saw what it expects.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const readline = require("node:readline");

const [packageName, scenario, json] = process.argv.slice(2);
const nats = require(packageName);
const { url, subject, ...given } = JSON.parse(json);
const overWebSocket = url.startsWith("ws");
// Older Node has none; a browser's is the same to the client.
if (overWebSocket) globalThis.WebSocket ??= require("ws");
const open = overWebSocket && nats.wsconnect ? nats.wsconnect : nats.connect;

const DEADLINE = 10_000;
const RECONNECT_DEADLINE = 10_000;

// --- Both generations of the package ---------------------------------------------------------------------------------

// nats 2 has codes, nats 3 has classes; a request's error may wrap the one that says why.
function kind(error) {
  const names = {
    503: "no responders",
    NoResponders: "no responders",
    AUTHORIZATION_VIOLATION: "authorization",
    AuthorizationError: "authorization",
    PERMISSIONS_VIOLATION: "permissions",
    PermissionViolationError: "permissions",
    MAX_PAYLOAD_EXCEEDED: "payload",
    InvalidArgumentError: "payload",
  };
  for (let cause = error; cause; cause = cause.cause ?? cause.chainedError) {
    const name = names[cause.code] ?? names[cause.name];
    if (name) return name;
  }
  return `${error?.name} ${error?.code} ${error?.message}`;
}

function statusError(status) {
  return status.error ?? Object.assign(new Error(String(status.data)), { code: status.data });
}

// The third generation has a package of its own for buckets.
async function openBucket(nc, bucket) {
  if (packageName === "nats") return nc.jetstream().views.kv(bucket, { bindOnly: true });
  const { Kvm } = require("@nats-io/kv");
  return new Kvm(nc).open(bucket);
}

async function collected(iterator) {
  const entries = [];
  await within("the end", (async () => {
    for await (const entry of iterator) entries.push(entry);
  })());
  return entries;
}

function watching(watcher) {
  const iterator = watcher[Symbol.asyncIterator]();
  return {
    stop: () => watcher.stop(),
    next: async () => {
      const { value } = await within("an update", iterator.next());
      const text = value.value.length ? value.string() : "";
      return [value.key, value.operation, text, value.revision, value.delta];
    },
  };
}

// --- Helpers ---------------------------------------------------------------------------------------------------------

const connections = [];

function tls() {
  if (!given.tls) return {};
  const { cafile: caFile, certfile: certFile, keyfile: keyFile, first: handshakeFirst } = given.tls;
  return { tls: { caFile, certFile, keyFile, handshakeFirst } };
}

// A name and password, a token, the seed of an NKey, or a `.creds` file.
function credentials() {
  const { user, password: pass, token, seed, creds } = given;
  if (seed) return { authenticator: nats.nkeyAuthenticator(new TextEncoder().encode(seed)) };
  if (creds) return { authenticator: nats.credsAuthenticator(fs.readFileSync(creds)) };
  return token ? { token } : { user, pass };
}

async function connect(options = {}) {
  const nc = await within("connect", open({ servers: url, reconnect: false, ...tls(), ...options }));
  connections.push(nc);
  nc.seen = [];
  nc.waiters = [];
  (async () => {
    for await (const status of nc.status()) {
      nc.seen.push(status);
      nc.waiters.forEach((check) => check());
    }
  })();
  return nc;
}

function status(nc, type, deadline = DEADLINE) {
  const found = new Promise((resolve) => {
    const check = () => {
      const at = nc.seen.findIndex((status) => status.type === type);
      if (at >= 0) resolve(nc.seen.splice(at, 1)[0]);
    };
    nc.waiters.push(check);
    check();
  });
  return within(`status ${type}`, found, deadline);
}

async function within(what, promise, deadline = DEADLINE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${deadline} ms`)), deadline);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

// Collects what arrives; `take` waits for a number of messages.
class Inbox {
  constructor(nc, subject, options = {}) {
    this.messages = [];
    this.errors = [];
    this.waiters = [];
    this.subject = subject;
    this.subscription = nc.subscribe(subject, {
      ...options,
      callback: (error, message) => {
        if (error) this.errors.push(error);
        else this.messages.push(message);
        this.waiters.forEach((check) => check());
      },
    });
  }

  static async open(nc, subject, options) {
    const inbox = new Inbox(nc, subject, options);
    await within(`PONG after SUB ${subject}`, nc.flush());
    return inbox;
  }

  async take(count, deadline = DEADLINE) {
    await this.until(`${count} messages on ${this.subject}`, () => this.messages.length >= count, deadline);
    return this.messages.splice(0, count);
  }

  async error() {
    await this.until(`an error on ${this.subject}`, () => this.errors.length > 0);
    return this.errors.shift();
  }

  async until(what, condition, deadline = DEADLINE) {
    const reached = new Promise((resolve) => {
      const check = () => condition() && resolve();
      this.waiters.push(check);
      check();
    });
    await within(what, reached, deadline).catch((error) => {
      throw new Error(`${error.message}; ${this.messages.length} messages there`);
    });
  }

  texts() {
    return this.messages.splice(0).map(text);
  }
}

// Nothing more comes: what one publisher sends arrives in order, so its last message ends the wait.
async function fence(publisher, ...receivers) {
  const inboxes = [];
  for (const nc of receivers) inboxes.push(await Inbox.open(nc, `${subject}-fence`));
  return async () => {
    publisher.publish(`${subject}-fence`);
    for (const inbox of inboxes) await inbox.take(1);
  };
}

const encode = (string) => new TextEncoder().encode(string);
const text = (message) => new TextDecoder().decode(message.data);
const numbers = (count) => Array.from({ length: count }, (_, number) => String(number));
const sorted = (strings) => [...strings].sort((one, other) => Number(one) - Number(other));

function say(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

const lines = [];
const lineWaiters = [];

function listen() {
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const waiter = lineWaiters.shift();
    if (waiter) waiter(JSON.parse(line));
    else lines.push(JSON.parse(line));
  });
}

function heard() {
  return lines.length ? Promise.resolve(lines.shift()) : new Promise((resolve) => lineWaiters.push(resolve));
}

// --- Scenarios -------------------------------------------------------------------------------------------------------

const scenarios = {
  async messages() {
    const [publisher, receiver] = [await connect(), await connect()];
    const inbox = await Inbox.open(receiver, `${subject}.orders`);
    const payloads = [...numbers(500).map(encode), new Uint8Array(0), Uint8Array.from({ length: 256 }, (_, n) => n)];
    payloads.forEach((payload) => publisher.publish(`${subject}.orders`, payload));
    const messages = await inbox.take(payloads.length);
    assert.deepEqual(messages.map((message) => [...message.data]), payloads.map((payload) => [...payload]));
    assert.ok(messages.every((message) => message.subject === `${subject}.orders` && !message.reply));
  },

  async wildcards() {
    const tails = ["a", "a.b", "a.c", "b.b", "a.b.c", "a.b.c.d"];
    const matches = {
      "*": ["a"],
      "*.b": ["a.b", "b.b"],
      "a.>": ["a.b", "a.c", "a.b.c", "a.b.c.d"],
      "*.b.>": ["a.b.c", "a.b.c.d"],
      ">": tails,
      "a.b": ["a.b"],
      "a*": [],
    };
    const [publisher, receiver] = [await connect(), await connect()];
    const inboxes = {};
    for (const pattern in matches) inboxes[pattern] = await Inbox.open(receiver, `${subject}.${pattern}`);
    const passed = await fence(publisher, receiver);
    tails.forEach((tail) => publisher.publish(`${subject}.${tail}`, encode(tail)));
    publisher.publish(subject, "the parent of >");
    await passed();
    for (const pattern in matches) {
      const messages = inboxes[pattern].messages;
      assert.deepEqual(messages.map(text), matches[pattern], pattern);
      assert.ok(messages.every((message) => message.subject === `${subject}.${text(message)}`));
    }
  },

  async queueGroups() {
    const publisher = await connect();
    const receivers = [await connect(), await connect(), await connect()];
    const workers = [];
    for (const nc of receivers) workers.push(await Inbox.open(nc, `${subject}.*`, { queue: "workers" }));
    const auditors = [
      await Inbox.open(receivers[0], `${subject}.*`, { queue: "auditors" }),
      await Inbox.open(receivers[0], `${subject}.*`, { queue: "auditors" }),
    ];
    const everything = await Inbox.open(receivers[1], `${subject}.*`);
    const passed = await fence(publisher, ...receivers);
    const sent = numbers(300);
    sent.forEach((number) => publisher.publish(`${subject}.job`, encode(number)));
    await passed();
    const shares = workers.map((inbox) => inbox.texts());
    assert.deepEqual(sorted(shares.flat()), sent, "each message to one worker");
    assert.ok(shares.every((share) => share.length > 0), `shares: ${shares.map((share) => share.length)}`);
    assert.deepEqual(sorted(auditors.flatMap((inbox) => inbox.texts())), sent, "each message to one auditor");
    assert.deepEqual(everything.texts(), sent);
  },

  async requests() {
    const [service, client] = [await connect(), await connect()];
    service.subscribe(`${subject}.*`, { callback: (_, message) => message.respond(encode(text(message).toUpperCase())) });
    await within("PONG", service.flush());
    const questions = numbers(100).map((number) => `question ${number}`);
    const answers = await Promise.all(
      questions.map((question, n) => client.request(`${subject}.${n}`, encode(question), { timeout: DEADLINE })),
    );
    assert.deepEqual(answers.map(text), questions.map((question) => question.toUpperCase()));
    const alone = await client.request(`${subject}.x`, encode("own inbox"), { timeout: DEADLINE, noMux: true });
    assert.equal(text(alone), "OWN INBOX");
  },

  async requestMany() {
    const client = await connect();
    for (const name of ["a", "b", "c"]) {
      const service = await connect();
      service.subscribe(subject, { callback: (_, message) => message.respond(encode(name)) });
      await within("PONG", service.flush());
    }
    const options = { strategy: "count", maxMessages: 3, maxWait: DEADLINE };
    const answers = [];
    for await (const answer of await client.requestMany(subject, "?", options)) answers.push(text(answer));
    assert.deepEqual(answers.sort(), ["a", "b", "c"]);
  },

  async context() {
    const nc = await connect();
    const { server, data } = await within("the context", nc.context());
    assert.equal(server.id, nc.info.server_id);
    assert.deepEqual(data, { user: "", account: "$G" });
  },

  async noResponders() {
    const nc = await connect();
    for (const noMux of [false, true, false]) {
      const started = Date.now();
      const error = await nc.request(`${subject}.nobody`, "?", { timeout: 30_000, noMux }).then(assert.fail, (e) => e);
      assert.equal(kind(error), "no responders");
      assert.ok(Date.now() - started < 3_000, `only after ${Date.now() - started} ms`);
    }
    const collect = async () => {
      const options = { strategy: "count", maxMessages: 3, maxWait: 30_000 };
      for await (const answer of await nc.requestMany(`${subject}.nobody`, "?", options)) assert.fail(text(answer));
    };
    const error = await within("requestMany sees no responders", collect(), 3_000).then(assert.fail, (e) => e);
    assert.equal(kind(error), "no responders");
  },

  async headers() {
    const [publisher, receiver] = [await connect(), await connect()];
    const inbox = await Inbox.open(receiver, subject);
    const sent = nats.headers();
    sent.append("X-Zulu", "last name first");
    sent.append("x-multi", "lower");
    for (const value of ["one", "two", "two", "three"]) sent.append("X-Multi", value);
    sent.append("Content-Type", "application/json");
    sent.append("Colons", "a:b: c");
    sent.append("Words", "Grüße, 日本");
    publisher.publish(subject, "with headers", { headers: sent });
    publisher.publish(subject, "without");
    publisher.publish(subject, undefined, { headers: sent });
    const [full, bare, empty] = await inbox.take(3);
    for (const message of [full, empty]) {
      assert.deepEqual([...message.headers], [...sent], "names and values, in order");
      assert.deepEqual(message.headers.values("X-Multi"), ["one", "two", "two", "three"]);
      assert.deepEqual(message.headers.values("x-multi"), ["lower"]);
    }
    assert.equal(text(full), "with headers");
    assert.equal(bare.headers, undefined);
    assert.equal(empty.data.length, 0);
  },

  async drain() {
    const [publisher, leaving, staying] = [await connect(), await connect(), await connect()];
    const shares = [await Inbox.open(leaving, subject, { queue: "q" }), await Inbox.open(staying, subject, { queue: "q" })];
    const passed = await fence(publisher, staying);
    const sent = numbers(2000);
    const publish = async () => {
      for (const number of sent) {
        publisher.publish(subject, encode(number));
        if (number % 20 === 0) await publisher.flush();
      }
    };
    const publishing = publish();
    await shares[0].until("an eighth of the messages", () => shares[0].messages.length >= sent.length / 8);
    await within("drain of the connection", leaving.drain());
    assert.ok(leaving.isClosed());
    await within("all messages are published", publishing, 20_000);
    await passed();
    const received = shares.map((inbox) => inbox.texts());
    assert.ok(received.every((share) => share.length > 0));
    const arrived = received.flat();
    const lost = sent.filter((number) => !arrived.includes(number));
    assert.equal(lost.length, 0, `${lost.length} lost: ${lost.slice(0, 5)}; shares: ${received.map((share) => share.length)}`);
    assert.equal(arrived.length, sent.length, "a message came twice");
  },

  async drainSubscription() {
    const [publisher, receiver] = [await connect(), await connect()];
    const inbox = await Inbox.open(receiver, subject);
    const passed = await fence(publisher, receiver);
    publisher.publish(subject, "before");
    await passed();
    await within("drain of the subscription", inbox.subscription.drain());
    publisher.publish(subject, "after");
    await passed();
    assert.deepEqual(inbox.texts(), ["before"]);
  },

  async unsubscribeMax() {
    const [publisher, receiver] = [await connect(), await connect()];
    const limited = await Inbox.open(receiver, subject, { max: 5 });
    const unlimited = await Inbox.open(receiver, subject);
    const later = await Inbox.open(receiver, subject);
    later.subscription.unsubscribe(7);
    const passed = await fence(publisher, receiver);
    const before = receiver.stats().inMsgs;
    const sent = numbers(12);
    sent.forEach((number) => publisher.publish(subject, encode(number)));
    await passed();
    assert.deepEqual(limited.texts(), sent.slice(0, 5));
    assert.deepEqual(later.texts(), sent.slice(0, 7));
    assert.deepEqual(unlimited.texts(), sent);
    // The client counts what came over the wire, also for a subscription it has forgotten.
    assert.equal(receiver.stats().inMsgs - before, 5 + 7 + 12 + 1);
  },

  async noEcho() {
    const [silent, other] = [await connect({ noEcho: true }), await connect()];
    const [own, others] = [await Inbox.open(silent, subject), await Inbox.open(other, subject)];
    const passed = await fence(other, silent);
    silent.publish(subject, "from the silent one");
    assert.deepEqual((await others.take(1)).map(text), ["from the silent one"]);
    other.publish(subject, "from the other");
    await passed();
    assert.deepEqual(own.texts(), ["from the other"]);
  },

  async largestPayload() {
    const [publisher, receiver] = [await connect(), await connect()];
    const inbox = await Inbox.open(receiver, subject);
    const size = publisher.info.max_payload;
    assert.equal(size, given.maxPayload);
    const payload = Uint8Array.from({ length: size }, (_, n) => n % 251);
    publisher.publish(subject, payload);
    publisher.publish(subject, "next");
    const [large, small] = await inbox.take(2, 20_000);
    assert.ok(Buffer.from(large.data).equals(Buffer.from(payload)));
    assert.equal(text(small), "next");
    const tooLarge = () => publisher.publish(subject, new Uint8Array(size + 1));
    assert.throws(tooLarge, (error) => kind(error) === "payload");
    await within("PONG", publisher.flush());
  },

  async payloadOverTheLimit() {
    const nc = await connect();
    nc.protocol.info.max_payload *= 2; // A client that does not look at INFO.
    nc.publish(subject, new Uint8Array(given.maxPayload + 1));
    // The error is lost when the socket is reset under the payload; closed it is in any case.
    const error = await within("the server closes the connection", nc.closed());
    if (error) assert.match(`${error.message} ${error.chainedError?.message}`, /maximum payload violation|ECONNRESET|EPIPE/i);
    assert.ok(nc.isClosed());
  },

  async reconnect() {
    listen();
    const options = { reconnect: true, maxReconnectAttempts: -1, reconnectTimeWait: 100 };
    const clients = [await connect(options), await connect(options)];
    const inboxes = [];
    for (const nc of clients) inboxes.push(await Inbox.open(nc, `${subject}.*`));
    clients[0].subscribe(`${subject}-service`, { callback: (_, message) => message.respond("answer") });
    const exchange = async () => {
      for (const nc of clients) await within("PONG", nc.flush());
      inboxes.forEach((inbox) => inbox.texts());
      for (const nc of clients) nc.publish(`${subject}.x`, `from ${clients.indexOf(nc)}`);
      for (const inbox of inboxes) assert.deepEqual((await inbox.take(2)).map(text).sort(), ["from 0", "from 1"]);
      assert.equal(text(await clients[1].request(`${subject}-service`, "?", { timeout: DEADLINE })), "answer");
    };
    await exchange();
    say("ready");
    for (const nc of clients) await status(nc, "disconnect", RECONNECT_DEADLINE);
    say("lost");
    for (const nc of clients) await status(nc, "reconnect", RECONNECT_DEADLINE);
    await exchange();
    say("back");
  },

  async login() {
    const nc = await connect(credentials());
    const inbox = await Inbox.open(nc, subject);
    nc.publish(subject, "welcome");
    assert.deepEqual((await inbox.take(1)).map(text), ["welcome"]);
  },

  async badLogin() {
    const error = await connect(credentials()).then(() => assert.fail("logged in"), (e) => e);
    assert.equal(kind(error), "authorization");
  },

  async deniedSubscribe() {
    const nc = await connect({ user: given.user, pass: given.password });
    const plain = new Inbox(nc, `${given.denied}.${subject}`);
    const plainError = await plain.error();
    assert.equal(kind(plainError), "permissions");
    assert.ok(plainError.message.includes(`"${given.denied}.${subject}"`), plainError.message);
    const member = new Inbox(nc, `${given.denied}.${subject}.>`, { queue: "q" });
    assert.equal(kind(await member.error()), "permissions");
    const inbox = await Inbox.open(nc, subject);
    nc.publish(subject, "still connected");
    assert.deepEqual((await inbox.take(1)).map(text), ["still connected"]);
  },

  async deniedPublish() {
    const nc = await connect({ user: given.user, pass: given.password, verbose: true });
    nc.publish(`${given.denied}.${subject}`, "secret");
    assert.equal(kind(statusError(await status(nc, "error"))), "permissions");
    const inbox = await Inbox.open(nc, subject);
    nc.publish(subject, "still connected");
    assert.deepEqual((await inbox.take(1)).map(text), ["still connected"]);
  },

  // What it can do with an empty bucket.
  async kv() {
    const nc = await connect();
    const kv = await openBucket(nc, given.bucket);
    const first = await kv.put("a.b", "one");
    const entry = await kv.get("a.b");
    assert.deepEqual([entry.string(), entry.revision], ["one", first]);
    const second = await kv.update("a.b", "two", first);
    assert.ok(second > first);
    await assert.rejects(kv.update("a.b", "lost", first), /wrong last sequence/);
    await assert.rejects(kv.create("a.b", "lost"), /wrong last sequence/);
    const third = await kv.create("c", "1");
    assert.deepEqual(await collected(await kv.keys()), ["a.b", "c"]);

    const all = watching(await kv.watch());
    assert.deepEqual(await all.next(), ["a.b", "PUT", "two", second, 1]);
    assert.deepEqual(await all.next(), ["c", "PUT", "1", third, 0]);
    const live = await kv.put("d", "live");
    assert.deepEqual(await all.next(), ["d", "PUT", "live", live, 0]);
    await kv.delete("c");
    assert.deepEqual((await all.next()).slice(0, 3), ["c", "DEL", ""]);
    await kv.purge("d");
    assert.deepEqual((await all.next()).slice(0, 3), ["d", "PURGE", ""]);
    all.stop();

    const updates = watching(await kv.watch({ key: "*", include: "updates", ignoreDeletes: true, headers_only: true }));
    const fourth = await kv.create("c", "again");
    await kv.delete("c");
    await kv.put("x.y", "of another filter");
    const fifth = await kv.put("e", "value");
    assert.deepEqual(await updates.next(), ["c", "PUT", "", fourth, 0]);
    assert.deepEqual((await updates.next()).slice(0, 4), ["e", "PUT", "", fifth]);
    updates.stop();

    assert.equal(await kv.get("c"), null);
    const history = await collected(await kv.history({ key: "a.b" }));
    assert.deepEqual(history.map((e) => e.revision), [second]);
    assert.equal((await kv.get("a.b", { revision: second })).string(), "two");
    const status = await kv.status();
    assert.deepEqual([status.bucket, status.values, status.history], [given.bucket, 3, 1]);
    await kv.purgeDeletes(0);
    await assert.rejects(kv.destroy(), /cannot be removed/);
    for (const key of ["a.b", "e", "x.y"]) await kv.delete(key);
    assert.deepEqual(await collected(await kv.keys()), []);
  },

  // Reports what arrives and publishes what it is told to.
  async tap() {
    listen();
    const nc = await connect({ noEcho: true });
    for (const pattern of given.subjects) {
      nc.subscribe(pattern, {
        callback: (error, message) => {
          if (error) throw error;
          const headers = message.headers ? [...message.headers].flatMap(([k, values]) => values.map((v) => [k, v])) : [];
          const payload = Buffer.from(message.data).toString("base64");
          say("message", { subject: message.subject, reply: message.reply || null, headers, payload });
        },
      });
    }
    await within("PONG", nc.flush());
    nc.closed().then((error) => say("closed", { error: String(error) }));
    say("ready");
    for (;;) {
      const line = await heard();
      if (line.do === "stop") return;
      nc.publish(line.subject, Buffer.from(line.payload, "base64"));
      await within("PONG", nc.flush());
      say("published");
    }
  },
};

async function main() {
  await scenarios[scenario]();
  for (const nc of connections) await within("close", nc.close());
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error?.stack ?? error);
    process.exit(1);
  },
);
