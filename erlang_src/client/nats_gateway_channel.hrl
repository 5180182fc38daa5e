%% What the channel and the modules that work for it alone give each other.

%% Most bytes of deliveries that are returned at once, about: so much is written before anybody looks
%% at what waits for the client. A few sends of this size are as fast as one of all.
-define(SLICE, 1048576).

%% What a client's CONNECT asks for; the defaults are those of a client that sent none
%% (docs/protocol.md section 2).
-record(options, {
    verbose = true :: boolean(),
    pedantic = true :: boolean(),
    echo = true :: boolean(),
    no_responders = false :: boolean(),
    headers = false :: boolean(),
    protocol = 0 :: 0 | 1
}).

%% What a login of the gateway's own allows. Without one, nothing is restricted here.
-record(grant, {
    permissions = none :: none | nats_gateway_permissions:permissions(),
    %% the same as the login states it
    rules :: undefined | nats_gateway_permissions:rules(),
    max_payload = infinity :: infinity | non_neg_integer(),
    max_subscriptions = infinity :: infinity | non_neg_integer(),
    %% when it ends: milliseconds of monotonic time, and the reason the connection ends with
    deadline = infinity :: infinity | {integer(), atom()}
}).

%% What an answer to a publish depends on.
-record(answering, {
    options :: #options{},
    mountpoint :: binary(),
    subscriptions :: nats_gateway_subscriptions:subscriptions(),
    traffic :: nats_gateway_traffic:traffic()
}).

%% What became of deliveries.
-record(fan_out, {
    messages :: [#message{}],
    bytes :: non_neg_integer(),
    %% each message as often as it goes to a sid
    count :: non_neg_integer(),
    %% keys that no sid uses any more
    unused :: [nats_gateway_host:key()],
    %% for another member of the group, latest first
    declined :: [{nats_gateway_host:key(), Origin :: term()}],
    %% deliveries that are for a later turn
    rest :: [#delivery{}],
    subscriptions :: nats_gateway_subscriptions:subscriptions()
}).
