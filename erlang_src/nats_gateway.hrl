%% The values that cross from one room to another. `nats_gateway_nif' makes the operations and takes
%% the frames, a host takes publishes and makes deliveries: so each field has one name everywhere.

%% What `nats_gateway_nif:decode/2' has to know of a client.
-record(decoder, {
    max_control_line :: pos_integer(),
    max_payload :: non_neg_integer(),
    %% `connect_only': any first byte of an operation other than C or c is an
    %% `authorization_violation' (docs/protocol.md section 1)
    phase :: connect_only | open,
    headers = false :: boolean(),
    mountpoint = <<>> :: binary()
}).

%% PUB, or HPUB where there is a header block (an HPUB with #hdr = 0 has none).
-record(pub, {
    subject :: binary(),
    topic :: nats_gateway_nif:topic(),
    reply_to :: undefined | binary(),
    %% `invalid' where no topic stands for exactly this reply subject; the host then carries the
    %% reply subject itself
    reply_topic :: undefined | nats_gateway_nif:topic(),
    headers :: undefined | binary(),
    payload :: binary()
}).

-record(sub, {
    subject :: binary(),
    %% with the mountpoint; `invalid' where no filter stands for the subject
    filter :: binary() | invalid,
    queue_group :: undefined | binary(),
    %% the queue group as MQTT can name it
    share_name :: undefined | binary(),
    sid :: binary()
}).

-record(unsub, {
    sid :: binary(),
    %% 0: at once
    max = 0 :: non_neg_integer()
}).

%% A message of the broker for one of this client's subscriptions there.
-record(delivery, {
    key :: nats_gateway_host:key(),
    %% with the mountpoint
    topic :: binary(),
    reply :: nats_gateway_nif:reply(),
    headers :: nats_gateway_nif:headers(),
    payload :: binary(),
    %% The same for all copies of a message that come for keys with a share name, if the broker tells
    %% which are. A host that can give one to another member of the group adds what it needs for that,
    %% as it wants it in `decline/2'.
    id :: undefined | binary() | {binary(), Origin :: term()}
}).

%% One MSG, or HMSG where there are headers, for each of the sids.
-record(message, {
    topic :: binary(),
    sids :: [binary()],
    reply :: nats_gateway_nif:reply(),
    headers :: nats_gateway_nif:headers(),
    payload :: binary()
}).
