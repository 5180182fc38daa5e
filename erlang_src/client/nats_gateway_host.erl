%% The broker behind the gateway, as the channel sees it.
%%
%% A host lives inside the connection process of its client. The channel has at most one request in
%% flight. If a callback answers `{wait, State}', the matching event from `handle_info/2' completes
%% it later. Until then the channel makes no further request, but deliveries and rejections may
%% arrive at any time.
%%
%% No callback waits for a slow broker, and none works for long, because the process must also
%% notice the client's end, its timers and the requests of others. A host that is behind keeps the
%% rest of its work, and answers `wait' to `ready/1'. The channel calls `ready/1' before each PUB (a
%% run of PUBs counts as one), SUB and UNSUB. While the channel waits, the connection takes no
%% input. The input stays in the socket, which holds the client back. So a host never keeps more
%% than its own bound and one operation.
-module(nats_gateway_host).

-export([is_too_deep/2]).
-export([topic/1]).
-export([unmount/2]).

-include("nats_gateway.hrl").

-export_type([client/0, identity/0, key/0, rejection/0, refusal/0]).
-export_type([event/0, close_reason/0, channel/0, statistics/0, server_request/0]).

-type client() :: #{
    %% the fields of all CONNECTs, merged; empty before the first CONNECT
    connect := #{atom() => term()},
    %% unique among the connections of this node (INFO's client_id)
    client_id := pos_integer(),
    transport := tcp | ssl | ws | wss,
    listener := atom() | binary(),
    peername := {inet:ip_address(), inet:port_number()},
    sockname := {inet:ip_address(), inet:port_number()},
    peercert := nossl | nats_gateway_certificate:peercert(),
    %% fields of CONNECT that the client's certificate replaces
    certified => #{user := binary()},
    %% the fields of INFO about the transport
    server_info => #{atom() => true},
    %% the nonce in INFO that the client is to sign, if the settings have a login by signature
    nonce => undefined | binary(),
    %% the cookies of the HTTP request that opened the WebSocket
    cookies => #{jwt => binary()},
    %% the identity of a client that the gateway's own login has accepted; the broker's login is
    %% skipped
    login => identity(),
    %% the largest payload that the broker takes, if it is known before the login
    max_payload => non_neg_integer(),
    config := nats_gateway_config:config()
}.

%% The rules of the identity are not in it, because only the channel uses them.
-type identity() :: #{method := atom(), username := binary(), atom() => term()}.

%% One broker subscription: a mounted topic filter, in a shared group or not.
-type key() :: {ShareName :: undefined | binary(), Filter :: binary()}.

%% `property' means that a header of the publish asks for what it cannot have.
-type rejection() ::
    denied
    | no_responders
    | {property, Header :: binary(), nats_gateway_publish_properties:demand()}.

%% The refusal of a subscription. With `subscriptions_exceeded' the broker has no room for another
%% one.
-type refusal() :: denied | too_many_tokens | invalid_subject | subscriptions_exceeded.

%% The channel decides what the client is told. `authorization_violation' and
%% `user_authentication_expired' have a text. The other reasons close the connection in such a way
%% that every client reconnects.
-type close_reason() ::
    authorization_violation
    | user_authentication_expired
    | kicked
    | upstream_lost
    %% a denial of this subject ends the connection
    | {denied, Subject :: binary()}
    | {error, term()}.

-type event() ::
    {deliver, [#delivery{}]}
    %% the number of messages for this client that cannot be sent to it
    | {undeliverable, Count :: pos_integer()}
    %% completions of `{wait, State}'
    | {connected, session()}
    | {refused, close_reason()}
    | {published, [{Index :: pos_integer(), rejection()}]}
    | {subscribed, ok | refusal()}
    | {subscribed_again, [{key(), refusal()}]}
    | ready
    | barrier
    %% the broker has rejected a request that the host had answered with `ok'
    | {publish_rejected, Subject :: binary(), ReplyTo :: undefined | binary(), rejection()}
    | {subscribe_rejected, key(), refusal()}
    %% from now on the messages that match this key with a share name are delivered for it
    | {joined, key()}
    %% nothing more is delivered for this key, which was unsubscribed before
    | {unsubscribed, key()}
    %% somebody else has subscribed or unsubscribed this client
    | {added, key()}
    | {removed, key()}
    %% a request for `handle_call/3' whose reply nobody waits for
    | {call, Request :: term()}
    | {close, close_reason()}.

%% The questions that a host may ask its client's channel: whether the login allows a subscription
%% to a key, and which sids have the key, in order.
-type channel() :: #{
    may_subscribe := fun((key()) -> boolean()),
    sids := fun((key()) -> [nats_gateway_subscriptions:sid()])
}.

%% A request to servers. `name' is what follows `$SYS.REQ.SERVER.', `max' is the largest number of
%% bytes of an answer, and `by' names the client in the log.
-type server_request() :: #{
    name := binary(),
    body := binary(),
    requester := pid(),
    reply_topic := binary(),
    max := non_neg_integer(),
    by := binary()
}.

%% The counters of the whole connection. Those of the socket are missing if the socket is gone.
%% `operations' has the operations since the last report.
-type statistics() :: #{
    octets_received => non_neg_integer(),
    octets_sent => non_neg_integer(),
    reads => non_neg_integer(),
    writes => non_neg_integer(),
    subscriptions := non_neg_integer(),
    messages_received := non_neg_integer(),
    messages_sent := non_neg_integer(),
    messages_unroutable := non_neg_integer(),
    operations := [{{received | sent, Kind :: atom()}, pos_integer()}]
}.

%% The facts about this connection that the login has fixed.
-type session() :: #{
    mountpoint := binary(),
    clientid := binary(),
    username => undefined | binary(),
    %% the bytes of header and payload that the broker surely takes
    max_payload => non_neg_integer(),
    %% milliseconds after which the login of the broker has expired
    expires => non_neg_integer(),
    %% the user of CONNECT, where the broker has checked the password that the client sent with it
    proven_user => binary()
}.
-export_type([session/0]).

%% Called at accept, before INFO. The host refuses the client if there is no broker, and adds the
%% facts that it knows of the broker. It must not use the broker for that, because the client has
%% not logged in.
-callback prepare(client()) -> {ok, client()} | {error, close_reason()}.

%% Logs the client in and registers it. If a later CONNECT changes the credentials, this is called
%% again after `disconnect/2', and the channel then subscribes again.
-callback connect(client()) ->
    {ok, session(), State :: term()} | {wait, State :: term()} | {error, close_reason()}.

%% Whether the host takes another operation now. The event `ready' completes `{wait, State}'.
-callback ready(State) -> ok | {wait, State} when State :: term().

%% Hands messages to the broker in order. A message with the topic `invalid' goes to nobody. With
%% `confirm' the client is told about each message (verbose), so every rejection must be known when
%% this completes, and the QoS is 1. Without it the QoS is 0, and rejections may follow as events.
%% With `no_responders' the client is to be told of requests that nobody took.
-callback publish([#pub{}], Options, State) ->
    {ok, [{Index :: pos_integer(), rejection()}], State}
    | {wait, State}
    | {stop, close_reason(), State}
when
    Options :: #{confirm := boolean(), no_responders := boolean()}, State :: term().

%% Called once per key. `confirm' is as above, with the event `{subscribed, ok | refusal()}'. `sid'
%% is the first sid of the key; the key of an answer topic of devices has none. With `retained' =
%% `false' no retained message is wanted, whatever the settings say.
-callback subscribe(key(), Options, State) ->
    {ok, State}
    | {refusal(), State}
    | {wait, State}
    | {stop, close_reason() | permission_denied, State}
when
    Options :: #{
        confirm := boolean(),
        no_local := boolean(),
        sid => nats_gateway_subscriptions:sid(),
        retained => false
    },
    State :: term().

%% Gets all keys of this client at once. Keys that are subscribed get the other options, if these
%% have a meaning for them. After another login all keys are subscribed. This completes when the
%% broker has decided, with the keys that it has refused.
-callback subscribe_again([key()], Options, State) ->
    {ok, [{key(), refusal()}], State}
    | {wait, State}
    | {stop, close_reason() | permission_denied, State}
when
    Options :: #{confirm := boolean(), no_local := boolean()}, State :: term().

%% Messages that the broker has already sent are still delivered, until `{unsubscribed, Key}'.
-callback unsubscribe(key(), State) -> State when State :: term().

%% Gets the deliveries for keys with a share name that were unsubscribed before the deliveries were
%% handled.
-callback decline([{key(), Origin :: term()}], State) -> State when State :: term().

%% Completes when the broker has handled everything that it was given before, and `handle_info/2'
%% has returned the deliveries to this connection that this has caused. With `all' that includes
%% everything else that the broker has delivered to this connection by now.
-callback barrier(own | all, State) -> {ok, State} | {wait, State} when State :: term().

%% Gets every message to the connection process that is not from the client's socket.
-callback handle_info(Message :: term(), State) -> {[event()], State} | ignore when State :: term().

%% The same for many messages, in order. A host with this callback may get them a moment later.
-callback handle_messages([Message :: term()], State) -> {[event()], State} when State :: term().

-callback disconnect(Reason :: term(), State :: term()) -> ok.

%% Called before `disconnect/2' with the messages that the connection still had for
%% `handle_messages/2'.
-callback undelivered([Message :: term()], State) -> State when State :: term().

%% A call to the connection process, from the code that manages the clients of this host.
-callback handle_call(Request :: term(), channel(), State) ->
    {Reply :: term(), [event()], State}
when
    State :: term().

%% Gets the counters soon after something has happened, and every few seconds while there is
%% traffic.
-callback report(statistics(), State) -> State when State :: term().

%% A request of a client that may ask for what a system account may. Whoever answers, here or on
%% another node, calls `nats_gateway_connection:answer/3' with each answer.
-callback ask_server(server_request()) -> ok | no_responders.

%% A request to the key/value store, or a value for one of its keys. The login's permissions have
%% been checked. Answers come through `nats_gateway_connection:answer/4' and `feed/3'.
-callback ask_store(#pub{}, Buckets :: map(), State) -> {pass | no_responders, State} when
    State :: term().

-optional_callbacks([
    prepare/1, decline/2, handle_messages/2, undelivered/2, handle_call/3, report/2, ask_server/1, ask_store/3
]).

%% Whether a topic or filter has more levels than a broker takes.
-spec is_too_deep(binary(), Max :: pos_integer() | infinity) -> boolean().
is_too_deep(Name, Max) when byte_size(Name) < Max -> false;
is_too_deep(Name, Max) -> length(binary:matches(Name, <<"/">>)) >= Max.

%% The name of a topic that is not `invalid', and the correlation data that comes with it.
-spec topic(nats_gateway_nif:topic()) ->
    {Name :: binary(), CorrelationData :: undefined | binary()}.
topic({Name, CorrelationData}) -> {Name, CorrelationData};
topic(Name) -> {Name, undefined}.

%% The topic or filter without the mountpoint, or the whole of it if it does not begin with that.
-spec unmount(binary(), Mountpoint :: binary()) -> binary().
unmount(Name, Mountpoint) ->
    Size = byte_size(Mountpoint),
    case Name of
        <<Mountpoint:Size/binary, Rest/binary>> -> Rest;
        _ -> Name
    end.
