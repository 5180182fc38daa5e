%% The values that go from one room to another. `nats_gateway_nif' makes the operations and takes
%% the frames; a host takes publishes and makes deliveries. So each field has one name everywhere.

%% What `nats_gateway_nif:decode/2' needs to know of a client.
-record(decoder, {
    max_control_line :: pos_integer(),
    max_payload :: non_neg_integer(),
    %% `connect_only': any first byte of an operation other than C or c is an
    %% `authorization_violation' (docs/protocol.md section 1)
    phase :: connect_only | open,
    headers = false :: boolean(),
    mountpoint = <<>> :: binary(),
    mappings = {<<>>, <<>>} :: nats_gateway_nif:mappings()
}).

%% A PUB, or an HPUB if there is a header block (an HPUB with #hdr = 0 has none). The subject is the
%% one that a rule has mapped it to; it is empty if the rule loses the message.
-record(pub, {
    subject :: binary(),
    topic :: nats_gateway_nif:topic(),
    reply_to :: undefined | binary(),
    %% `invalid' if no topic stands for exactly this reply subject; then the host carries the reply
    %% subject itself
    reply_topic :: undefined | nats_gateway_nif:topic(),
    headers :: undefined | binary(),
    payload :: binary()
}).

-record(sub, {
    subject :: binary(),
    %% with the mountpoint; `invalid' if no filter stands for the subject. A rule may have mapped it
    filter :: binary() | invalid,
    queue_group :: undefined | binary(),
    %% the queue group in a form that MQTT can name
    share_name :: undefined | binary(),
    sid :: binary(),
    %% if a rule has mapped the subject: how the subjects of messages are mapped back
    inverse = undefined :: undefined | binary()
}).

-record(unsub, {
    sid :: binary(),
    %% 0 means at once
    max = 0 :: non_neg_integer()
}).

%% A message from the broker for one of this client's subscriptions there.
-record(delivery, {
    key :: nats_gateway_host:key(),
    %% with the mountpoint
    topic :: binary(),
    reply :: nats_gateway_nif:reply(),
    headers :: nats_gateway_nif:headers(),
    payload :: binary(),
    %% The same for all copies of a message that come for keys with a share name, if the broker
    %% tells which copies belong together. A host that can give a copy to another member of the
    %% group adds what it needs for that, and gets it back in `decline/2'.
    id :: undefined | binary() | {binary(), Origin :: term()}
}).

%% One MSG for each of the sids, or one HMSG if there are headers.
-record(message, {
    topic :: binary(),
    sids :: [binary()],
    reply :: nats_gateway_nif:reply(),
    headers :: nats_gateway_nif:headers(),
    payload :: binary()
}).

%% The properties of a PUBLISH that the headers of a publish ask for, and the other headers.
-record(properties, {
    retain :: boolean(),
    qos :: undefined | 0..2,
    %% seconds
    expiry :: undefined | 1..16#FFFFFFFF,
    payload_format :: undefined | 0..1,
    %% without the mountpoint
    response_topic :: undefined | binary(),
    headers :: undefined | binary()
}).
