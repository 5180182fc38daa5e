%% What the channel and the modules that work for it alone give each other.

%% Most bytes of deliveries that are returned at once, about: so much is written before anybody looks
%% at what waits for the client. A few sends of this size are as fast as one of all.
-define(SLICE, 1048576).

%% What an answer to a publish depends on.
-record(answering, {
    verbose :: boolean(),
    pedantic :: boolean(),
    no_responders :: boolean(),
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
