%% Records that the channel shares with the modules that work only for it.

%% About how many bytes of deliveries are returned at once. Only then does the connection check the
%% bytes that wait for the client. A few sends of this size are as fast as one large send.
-define(SLICE, 1048576).

%% The options of a client's CONNECT. A client that sent no CONNECT has the defaults
%% (docs/protocol.md, section 2).
-record(options, {
    verbose = true :: boolean(),
    pedantic = true :: boolean(),
    echo = true :: boolean(),
    no_responders = false :: boolean(),
    headers = false :: boolean(),
    protocol = 0 :: 0 | 1
}).

%% The rights that the gateway's own login gives. The defaults, without such a login, restrict
%% nothing.
-record(grant, {
    permissions = none :: none | nats_gateway_permissions:permissions(),
    %% the permissions in the form of the login
    rules :: undefined | nats_gateway_permissions:rules(),
    max_payload = infinity :: infinity | non_neg_integer(),
    max_subscriptions = infinity :: infinity | non_neg_integer(),
    %% the end of the login in milliseconds of monotonic time, and the reason that then ends the
    %% connection
    deadline = infinity :: infinity | {integer(), atom()}
}).

%% The facts on which an answer to a publish depends.
-record(answering, {
    options :: #options{},
    mountpoint :: binary(),
    subscriptions :: nats_gateway_subscriptions:subscriptions(),
    traffic :: nats_gateway_traffic:traffic()
}).

%% The result of looking up the sids of deliveries.
-record(fan_out, {
    messages :: [#message{}],
    bytes :: non_neg_integer(),
    %% a message counts once for each sid that it goes to
    count :: non_neg_integer(),
    %% keys that no sid uses any more
    unused :: [nats_gateway_host:key()],
    %% deliveries for another member of the group, latest first
    declined :: [{nats_gateway_host:key(), Origin :: term()}],
    %% deliveries for a later slice
    rest :: [#delivery{}],
    subscriptions :: nats_gateway_subscriptions:subscriptions()
}).
