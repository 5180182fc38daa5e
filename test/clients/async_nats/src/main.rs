//! Unmodified async-nats: `async-nats-clients SCENARIO JSON`. Exit status 0 means the scenario saw what it expects.

mod kv;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, ServerError, Subscriber};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::{join_all, try_join_all};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::unconstrained;
use tokio::time::timeout;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const DEADLINE: Duration = Duration::from_secs(10);
const RECONNECT_DEADLINE: Duration = Duration::from_secs(10);

// --- Helpers ---------------------------------------------------------------------------------------------------------

/// What the test session handed over.
struct Given {
    json: Value,
    url: String,
    subject: String,
}

impl Given {
    fn text(&self, name: &str) -> String {
        self.json[name].as_str().unwrap_or_default().to_owned()
    }

    fn options(&self) -> ConnectOptions {
        let options = self.tls(ConnectOptions::new().max_reconnects(1).subscription_capacity(100_000));
        let given = |name: &str| self.json[name].as_str().map(str::to_owned);
        if let Some(user) = given("user") {
            options.user_and_password(user, self.text("password"))
        } else if let Some(token) = given("token") {
            options.token(token)
        } else if let Some(seed) = given("seed") {
            options.nkey(seed)
        } else if let Some(creds) = given("creds") {
            let text = std::fs::read_to_string(creds).expect("a file");
            options.credentials(&text).expect("a .creds file")
        } else {
            options
        }
    }

    fn tls(&self, options: ConnectOptions) -> ConnectOptions {
        let tls = &self.json["tls"];
        let Some(cafile) = tls["cafile"].as_str() else {
            return options;
        };
        let options = options.add_root_certificates(cafile.into());
        if self.url.starts_with("ws") {
            return options;
        }
        let options = options.require_tls(true);
        let options = if tls["first"] == json!(true) { options.tls_first() } else { options };
        match (tls["certfile"].as_str(), tls["keyfile"].as_str()) {
            (Some(certfile), Some(keyfile)) => options.add_client_certificate(certfile.into(), keyfile.into()),
            _ => options,
        }
    }

    async fn connect(&self) -> Result<Client, Failure> {
        within("connect", self.options().connect(&self.url)).await?.map_err(Into::into)
    }

    async fn connect_watched(&self, options: ConnectOptions) -> Result<(Client, Events), Failure> {
        let (sender, events) = unbounded_channel();
        let options = options.event_callback(move |event| {
            let _ = sender.send(event);
            async {}
        });
        let client = within("connect", options.connect(&self.url)).await??;
        let mut events = Events(events);
        events.until("connected", DEADLINE, |event| *event == Event::Connected).await?;
        Ok((client, events))
    }
}

struct Events(UnboundedReceiver<Event>);

impl Events {
    async fn until(&mut self, what: &str, deadline: Duration, is: impl Fn(&Event) -> bool) -> Result<Event, Failure> {
        let found = async {
            while let Some(event) = self.0.recv().await {
                if is(&event) {
                    return Ok(event);
                }
            }
            Err(Failure::from(format!("no {what}: the client is gone")))
        };
        timeout(deadline, found).await.map_err(|_| format!("{what}: not within {deadline:?}"))?
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(DEADLINE, future).await.map_err(|_| format!("{what}: not within {DEADLINE:?}").into())
}

/// Waits until the server has processed what this client sent: a message to itself comes back.
async fn barrier(client: &Client) -> Outcome {
    let inbox = client.new_inbox();
    let mut own = client.subscribe(inbox.clone()).await?;
    client.publish(inbox, "".into()).await?;
    within("a message to itself", own.next()).await?.ok_or("the subscription ended")?;
    own.unsubscribe().await?;
    Ok(())
}

/// The same for a client that does not hear itself: nobody answers, and that is said after the SUBs were processed.
async fn barrier_without_echo(given: &Given, client: &Client) -> Outcome {
    let request = client.request(format!("{}-nobody", given.subject), "".into());
    let error = within("no responders", request).await?.expect_err("an answer");
    assert_eq!(error.kind(), RequestErrorKind::NoResponders);
    Ok(())
}

/// The same where somebody may answer everything: another client writes until that arrives.
async fn barrier_by_other(given: &Given, client: &Client) -> Outcome {
    let other = given.connect().await?;
    let inbox = client.new_inbox();
    let mut own = client.subscribe(inbox.clone()).await?;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let knock = async {
        loop {
            pause.tick().await;
            tokio::select! {
                biased;
                message = own.next() => return message.map(drop).ok_or("the subscription ended".into()),
                published = other.publish(inbox.clone(), "".into()) => published?,
            }
        }
    };
    within::<Outcome>("a message from another client", knock).await??;
    own.unsubscribe().await?;
    Ok(())
}

async fn take(subscriber: &mut Subscriber, count: usize) -> Result<Vec<Message>, Failure> {
    let mut messages = Vec::new();
    let collect = async {
        while messages.len() < count {
            messages.push(subscriber.next().await.ok_or("the subscription ended")?);
        }
        Ok::<_, Failure>(())
    };
    let done = timeout(DEADLINE, collect).await;
    done.map_err(|_| format!("{} of {count} messages within {DEADLINE:?}", messages.len()))??;
    Ok(messages)
}

/// What has arrived and was not taken yet.
async fn waiting(subscriber: &mut Subscriber) -> Vec<Message> {
    // Once the fence has passed, all that is to come is in the channel.
    let mut messages = Vec::new();
    while let Some(Some(message)) = unconstrained(subscriber.next()).now_or_never() {
        messages.push(message);
    }
    messages
}

/// Nothing more comes: what one publisher sends arrives in order, so its last message ends the wait.
struct Fence {
    publisher: Client,
    subject: String,
    subscribers: Vec<Subscriber>,
}

impl Fence {
    async fn around(given: &Given, publisher: &Client, receivers: &[&Client]) -> Result<Self, Failure> {
        let subject = format!("{}-fence", given.subject);
        let mut subscribers = Vec::new();
        for receiver in receivers {
            subscribers.push(receiver.subscribe(subject.clone()).await?);
            barrier(receiver).await?;
        }
        Ok(Self { publisher: publisher.clone(), subject, subscribers })
    }

    async fn passed(&mut self) -> Outcome {
        self.publisher.publish(self.subject.clone(), "".into()).await?;
        for subscriber in &mut self.subscribers {
            take(subscriber, 1).await?;
        }
        Ok(())
    }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(text).collect()
}

fn sorted(mut numbers: Vec<String>) -> Vec<String> {
    numbers.sort_by_key(|number| number.parse::<usize>().expect("a number"));
    numbers
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn answer_requests(client: Client, mut requests: Subscriber, answer: impl Fn(&Message) -> String + Send + 'static) {
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply.clone() {
                client.publish(reply, answer(&request).into()).await.expect("publish an answer");
            }
        }
    });
}

fn say(event: &str, mut fields: Value) {
    fields["event"] = event.into();
    println!("{fields}");
}

async fn heard(lines: &mut Lines<BufReader<Stdin>>) -> Result<Value, Failure> {
    let line = lines.next_line().await?.ok_or("standard input ended")?;
    Ok(serde_json::from_str(&line)?)
}

// --- Scenarios -------------------------------------------------------------------------------------------------------

async fn messages(given: &Given) -> Outcome {
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let mut orders = receiver.subscribe(format!("{}.orders", given.subject)).await?;
    barrier(&receiver).await?;
    let mut payloads: Vec<Vec<u8>> = numbers(500).into_iter().map(String::into_bytes).collect();
    payloads.extend([vec![], (0..=255).collect()]);
    for payload in &payloads {
        publisher.publish(format!("{}.orders", given.subject), payload.clone().into()).await?;
    }
    let received = take(&mut orders, payloads.len()).await?;
    assert_eq!(received.iter().map(|message| message.payload.to_vec()).collect::<Vec<_>>(), payloads);
    assert!(received.iter().all(|message| message.reply.is_none() && message.headers.is_none()));
    Ok(())
}

async fn wildcards(given: &Given) -> Outcome {
    let tails = ["a", "a.b", "a.c", "b.b", "a.b.c", "a.b.c.d"];
    let matches = BTreeMap::from([
        ("*", vec!["a"]),
        ("*.b", vec!["a.b", "b.b"]),
        ("a.>", vec!["a.b", "a.c", "a.b.c", "a.b.c.d"]),
        ("*.b.>", vec!["a.b.c", "a.b.c.d"]),
        (">", tails.to_vec()),
        ("a.b", vec!["a.b"]),
        ("a*", vec![]),
    ]);
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let mut subscribers = BTreeMap::new();
    for pattern in matches.keys() {
        subscribers.insert(*pattern, receiver.subscribe(format!("{}.{pattern}", given.subject)).await?);
    }
    let mut fence = Fence::around(given, &publisher, &[&receiver]).await?;
    for tail in tails {
        publisher.publish(format!("{}.{tail}", given.subject), tail.into()).await?;
    }
    publisher.publish(given.subject.clone(), "the parent of >".into()).await?;
    fence.passed().await?;
    for (pattern, expected) in matches {
        let received = waiting(subscribers.get_mut(pattern).expect("subscribed")).await;
        assert_eq!(texts(&received), expected, "{pattern}");
        for message in &received {
            assert_eq!(message.subject.as_str(), format!("{}.{}", given.subject, text(message)));
        }
    }
    Ok(())
}

async fn queue_groups(given: &Given) -> Outcome {
    let publisher = given.connect().await?;
    let receivers = try_join_all((0..3).map(|_| given.connect())).await?;
    let subject = format!("{}.*", given.subject);
    let mut workers = Vec::new();
    for receiver in &receivers {
        workers.push(receiver.queue_subscribe(subject.clone(), "workers".into()).await?);
    }
    let mut auditors = Vec::new();
    for _ in 0..2 {
        auditors.push(receivers[0].queue_subscribe(subject.clone(), "auditors".into()).await?);
    }
    let mut everything = receivers[1].subscribe(subject.clone()).await?;
    let mut fence = Fence::around(given, &publisher, &receivers.iter().collect::<Vec<_>>()).await?;
    let sent = numbers(300);
    for number in &sent {
        publisher.publish(format!("{}.job", given.subject), number.clone().into()).await?;
    }
    fence.passed().await?;
    for (name, members) in [("workers", &mut workers), ("auditors", &mut auditors)] {
        let shares = join_all(members.iter_mut().map(waiting)).await;
        assert_eq!(sorted(shares.iter().flat_map(|share| texts(share)).collect()), sent, "each to one of the {name}");
        if name == "workers" {
            assert!(shares.iter().all(|share| !share.is_empty()), "every one of the {name} has a share");
        }
    }
    assert_eq!(texts(&waiting(&mut everything).await), sent);
    Ok(())
}

async fn requests(given: &Given) -> Outcome {
    let (service, client) = (given.connect().await?, given.connect().await?);
    let questions = service.subscribe(format!("{}.*", given.subject)).await?;
    barrier(&service).await?;
    answer_requests(service, questions, |request| text(request).to_uppercase());
    let sent: Vec<String> = numbers(100).iter().map(|number| format!("question {number}")).collect();
    let asked = sent
        .iter()
        .enumerate()
        .map(|(n, question)| client.request(format!("{}.{n}", given.subject), question.clone().into()));
    let answers = within("100 answers", try_join_all(asked)).await??;
    assert_eq!(texts(&answers), sent.iter().map(|question| question.to_uppercase()).collect::<Vec<_>>());
    Ok(())
}

async fn no_responders(given: &Given) -> Outcome {
    let client = given.connect().await?;
    for _ in 0..3 {
        let started = Instant::now();
        let request = async_nats::Request::new().payload("?".into()).timeout(Some(Duration::from_secs(30)));
        let error = client.send_request(format!("{}.nobody", given.subject), request).await.expect_err("an answer");
        assert_eq!(error.kind(), RequestErrorKind::NoResponders);
        assert!(started.elapsed() < Duration::from_secs(3), "only after {:?}", started.elapsed());
    }
    Ok(())
}

async fn headers(given: &Given) -> Outcome {
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let mut subscriber = receiver.subscribe(given.subject.clone()).await?;
    barrier(&receiver).await?;
    let mut sent = HeaderMap::new();
    for value in ["one", "two", "two", "three"] {
        sent.append("X-Multi", value);
    }
    for (name, value) in [
        ("x-multi", "lower"),
        ("Content-Type", "application/json"),
        ("Colons", "a:b: c"),
        ("Words", "Grüße, 日本"),
        ("Empty", ""),
    ] {
        sent.append(name, value);
    }
    publisher.publish_with_headers(given.subject.clone(), sent.clone(), "with headers".into()).await?;
    publisher.publish(given.subject.clone(), "without".into()).await?;
    publisher.publish_with_headers(given.subject.clone(), sent.clone(), "".into()).await?;
    let received = take(&mut subscriber, 3).await?;
    assert_eq!(texts(&received), ["with headers", "without", ""]);
    assert_eq!(received[0].headers.as_ref(), Some(&sent));
    assert_eq!(received[1].headers, None);
    assert_eq!(received[2].headers.as_ref(), Some(&sent));
    Ok(())
}

/// What is on its way when it drains, async-nats itself may lose: it drops its subscriptions when anything comes in
/// after the UNSUB, and does not wait for the PONG. The other clients' tests drain under load.
async fn drain(given: &Given) -> Outcome {
    let (publisher, staying) = (given.connect().await?, given.connect().await?);
    let (leaving, mut events) = given.connect_watched(given.options()).await?;
    let mut kept = staying.queue_subscribe(given.subject.clone(), "q".into()).await?;
    let mut left = leaving.queue_subscribe(given.subject.clone(), "q".into()).await?;
    barrier(&leaving).await?;
    let sent = numbers(2000);
    let (before, after) = sent.split_at(sent.len() / 2);

    let mut fence = Fence::around(given, &publisher, &[&staying, &leaving]).await?;
    for number in before {
        publisher.publish(given.subject.clone(), number.clone().into()).await?;
    }
    fence.passed().await?;
    leaving.drain().await?;
    let mut share = Vec::new();
    let rest = async {
        while let Some(message) = left.next().await {
            share.push(message);
        }
    };
    within("the drained subscription ends", rest).await?;
    events.until("closed", DEADLINE, |event| *event == Event::Closed).await?;
    assert!(!share.is_empty());
    let mut arrived = [texts(&share), texts(&waiting(&mut kept).await)].concat();
    arrived.sort_by_key(|number| number.parse::<u32>().ok());
    assert_eq!(arrived, before, "lost, or twice");

    let mut fence = Fence::around(given, &publisher, &[&staying]).await?;
    for number in after {
        publisher.publish(given.subject.clone(), number.clone().into()).await?;
    }
    fence.passed().await?;
    assert_eq!(texts(&waiting(&mut kept).await), after);
    Ok(())
}

async fn drain_subscription(given: &Given) -> Outcome {
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let mut subscriber = receiver.subscribe(given.subject.clone()).await?;
    let mut fence = Fence::around(given, &publisher, &[&receiver]).await?;
    publisher.publish(given.subject.clone(), "before".into()).await?;
    fence.passed().await?;
    subscriber.drain().await?;
    barrier(&receiver).await?;
    publisher.publish(given.subject.clone(), "after".into()).await?;
    fence.passed().await?;
    let mut received = Vec::new();
    while let Some(message) = within("the drained subscription ends", subscriber.next()).await? {
        received.push(message);
    }
    assert_eq!(texts(&received), ["before"]);
    Ok(())
}

async fn unsubscribe_max(given: &Given) -> Outcome {
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let mut limited = receiver.subscribe(given.subject.clone()).await?;
    let mut unlimited = receiver.subscribe(given.subject.clone()).await?;
    limited.unsubscribe_after(5).await?;
    let mut fence = Fence::around(given, &publisher, &[&receiver]).await?;
    let before = received_by(&receiver);
    let sent = numbers(12);
    for number in &sent {
        publisher.publish(given.subject.clone(), number.clone().into()).await?;
    }
    fence.passed().await?;
    assert_eq!(received_by(&receiver) - before, 5 + 12 + 1, "messages over the wire");
    assert_eq!(texts(&take(&mut limited, 5).await?), sent[..5]);
    assert!(within("the subscription ends after its last message", limited.next()).await?.is_none());
    assert_eq!(texts(&waiting(&mut unlimited).await), sent);
    Ok(())
}

fn received_by(client: &Client) -> u64 {
    client.statistics().in_messages.load(std::sync::atomic::Ordering::Relaxed)
}

async fn no_echo(given: &Given) -> Outcome {
    let silent = within("connect", given.options().no_echo().connect(&given.url)).await??;
    let other = given.connect().await?;
    let mut own = silent.subscribe(given.subject.clone()).await?;
    let mut own_fence = silent.subscribe(format!("{}-fence", given.subject)).await?;
    barrier_without_echo(given, &silent).await?;
    let mut others = other.subscribe(given.subject.clone()).await?;
    barrier(&other).await?;
    silent.publish(given.subject.clone(), "from the silent one".into()).await?;
    assert_eq!(texts(&take(&mut others, 1).await?), ["from the silent one"]);
    other.publish(given.subject.clone(), "from the other".into()).await?;
    other.publish(format!("{}-fence", given.subject), "".into()).await?;
    take(&mut own_fence, 1).await?;
    assert_eq!(texts(&waiting(&mut own).await), ["from the other"]);
    Ok(())
}

async fn largest_payload(given: &Given) -> Outcome {
    let (publisher, receiver) = (given.connect().await?, given.connect().await?);
    let size = publisher.server_info().max_payload;
    assert_eq!(given.json["maxPayload"], size);
    let mut subscriber = receiver.subscribe(given.subject.clone()).await?;
    barrier(&receiver).await?;
    let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    publisher.publish(given.subject.clone(), payload.clone().into()).await?;
    publisher.publish(given.subject.clone(), "next".into()).await?;
    let received = take(&mut subscriber, 2).await?;
    assert!(received[0].payload == payload, "{} bytes arrived", received[0].payload.len());
    assert_eq!(text(&received[1]), "next");
    let error = publisher.publish(given.subject.clone(), vec![0; size + 1].into()).await.expect_err("accepted");
    assert_eq!(error.kind(), PublishErrorKind::MaxPayloadExceeded);
    barrier(&publisher).await
}

async fn reconnect(given: &Given) -> Outcome {
    let options = || given.options().max_reconnects(None).reconnect_delay_callback(|_| Duration::from_millis(100));
    let mut clients = Vec::new();
    let mut subscribers = Vec::new();
    for _ in 0..2 {
        let (client, events) = given.connect_watched(options()).await?;
        subscribers.push(client.subscribe(format!("{}.*", given.subject)).await?);
        clients.push((client, events));
    }
    let service = &clients[0].0;
    answer_requests(service.clone(), service.subscribe(format!("{}-service", given.subject)).await?, |_| {
        "answer".into()
    });
    exchange(given, &clients, &mut subscribers).await?;
    say("ready", json!({}));
    for (_, events) in &mut clients {
        events.until("disconnected", RECONNECT_DEADLINE, |event| *event == Event::Disconnected).await?;
    }
    say("lost", json!({}));
    for (_, events) in &mut clients {
        events.until("connected", RECONNECT_DEADLINE, |event| *event == Event::Connected).await?;
    }
    exchange(given, &clients, &mut subscribers).await?;
    say("back", json!({}));
    Ok(())
}

async fn exchange(given: &Given, clients: &[(Client, Events)], subscribers: &mut [Subscriber]) -> Outcome {
    for (client, _) in clients {
        barrier(client).await?;
    }
    for (n, (client, _)) in clients.iter().enumerate() {
        client.publish(format!("{}.x", given.subject), format!("from {n}").into()).await?;
    }
    for subscriber in subscribers {
        let mut received = texts(&take(subscriber, 2).await?);
        received.sort();
        assert_eq!(received, ["from 0", "from 1"]);
    }
    let answer = within("answer", clients[1].0.request(format!("{}-service", given.subject), "?".into())).await??;
    assert_eq!(text(&answer), "answer");
    Ok(())
}

async fn login(given: &Given) -> Outcome {
    let client = given.connect().await?;
    let mut subscriber = client.subscribe(given.subject.clone()).await?;
    client.publish(given.subject.clone(), "welcome".into()).await?;
    assert_eq!(texts(&take(&mut subscriber, 1).await?), ["welcome"]);
    Ok(())
}

async fn bad_login(given: &Given) -> Outcome {
    let error = within("connect", given.options().connect(&given.url)).await?.expect_err("logged in");
    assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation);
    Ok(())
}

async fn denied_subscribe(given: &Given) -> Outcome {
    let (client, mut events) = given.connect_watched(given.options()).await?;
    let denied = format!("{}.{}", given.text("denied"), given.subject);
    let violation = |event: &Event| matches!(event, Event::ServerError(_));
    let _plain = client.subscribe(denied.clone()).await?;
    let event = events.until("a permissions violation", DEADLINE, violation).await?;
    let said = format!(r#"Permissions Violation for Subscription to "{denied}""#);
    assert_eq!(lower(event), Some(said.to_lowercase()));
    let _member = client.queue_subscribe(format!("{denied}.>"), "q".into()).await?;
    let event = events.until("a permissions violation", DEADLINE, violation).await?;
    let said = format!(r#"Permissions Violation for Subscription to "{denied}.>" using queue "q""#);
    assert_eq!(lower(event), Some(said.to_lowercase()));
    barrier(&client).await
}

fn lower(event: Event) -> Option<String> {
    match event {
        Event::ServerError(ServerError::Other(text)) => Some(text.trim_matches('\'').to_lowercase()),
        _ => None,
    }
}

/// Reports what arrives and publishes what it is told to.
async fn tap(given: &Given) -> Outcome {
    let (client, mut events) = given.connect_watched(given.options().no_echo()).await?;
    let patterns = given.json["subjects"].as_array().cloned().unwrap_or_default();
    let mut subscribers = Vec::new();
    for pattern in &patterns {
        subscribers.push(client.subscribe(pattern.as_str().unwrap_or_default().to_owned()).await?);
    }
    barrier_by_other(given, &client).await?;
    tokio::spawn(async move {
        while let Some(event) = events.0.recv().await {
            say("closed", json!({"error": event.to_string()}));
        }
    });
    say("ready", json!({}));
    let report = async {
        futures_util::stream::select_all(subscribers)
            // What `>` sees of the barrier.
            .filter(|message| std::future::ready(!message.subject.starts_with("_INBOX.")))
            .for_each(|message| async move {
                let headers: Vec<_> = message
                    .headers
                    .iter()
                    .flat_map(|headers| headers.iter())
                    .flat_map(|(name, values)| {
                        values.iter().map(move |value| json!([name.to_string(), value.as_str()]))
                    })
                    .collect();
                say(
                    "message",
                    json!({
                        "subject": message.subject.as_str(),
                        "reply": message.reply.as_deref(),
                        "headers": headers,
                        "payload": BASE64.encode(&message.payload),
                    }),
                );
            })
            .await;
        Err(Failure::from("the subscriptions ended"))
    };
    let obey = async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            let line = heard(&mut lines).await?;
            if line["do"] == "stop" {
                return Ok(());
            }
            let subject = line["subject"].as_str().unwrap_or_default().to_owned();
            let payload = BASE64.decode(line["payload"].as_str().unwrap_or_default())?;
            client.publish(subject, payload.into()).await?;
            client.flush().await?;
            say("published", json!({}));
        }
    };
    tokio::select! { outcome = report => outcome, outcome = obey => outcome }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let scenario = arguments.next().ok_or("no scenario")?;
    let json: Value = serde_json::from_str(&arguments.next().ok_or("no JSON")?)?;
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    let (url, subject) = (text("url"), text("subject"));
    let given = Given { json, url, subject };
    let outcome = match scenario.as_str() {
        "messages" => messages(&given).await,
        "wildcards" => wildcards(&given).await,
        "queue_groups" => queue_groups(&given).await,
        "requests" => requests(&given).await,
        "no_responders" => no_responders(&given).await,
        "headers" => headers(&given).await,
        "drain" => drain(&given).await,
        "drain_subscription" => drain_subscription(&given).await,
        "unsubscribe_max" => unsubscribe_max(&given).await,
        "no_echo" => no_echo(&given).await,
        "largest_payload" => largest_payload(&given).await,
        "reconnect" => reconnect(&given).await,
        "login" => login(&given).await,
        "bad_login" => bad_login(&given).await,
        "denied_subscribe" => denied_subscribe(&given).await,
        "kv" => kv::kv(&given).await,
        "tap" => tap(&given).await,
        _ => Err(format!("no scenario {scenario}").into()),
    };
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(1);
    }
    // A reader of standard input may still be blocked in a thread of the runtime.
    std::process::exit(0);
}
