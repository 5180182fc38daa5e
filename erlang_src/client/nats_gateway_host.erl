%% The broker behind the gateway, as the channel sees it.
%%
%% A host lives inside the connection process of its client. The channel has at most one request
%% in flight: a callback that answers `{wait, State}' is completed later by the matching event
%% from `handle_info/2', and until then the channel makes no further request (deliveries and
%% rejections may arrive at any time).
%%
%% No callback waits for a slow broker, and none works for long: the client's end, its timers and
%% what others ask of it have to be seen meanwhile. A host that is behind keeps the work that is left,
%% and says so in `ready/1', which the channel asks before each PUB (a run of them is one), SUB and
%% UNSUB. As long as it is to wait, the connection takes no input: it stays in the socket, and holds
%% the client back. So what a host keeps is its own bound and one operation more.
-module(nats_gateway_host).

-export([is_too_deep/2]).
-export([topic/1]).
-export([unmount/2]).

-include("nats_gateway.hrl").

-export_type([client/0, identity/0, key/0, rejection/0, refusal/0]).
-export_type([event/0, close_reason/0, channel/0, statistics/0]).

-type client() :: #{
    %% CONNECT fields, merged over all CONNECTs; empty when none was sent
    connect := #{atom() => term()},
    %% unique among the connections of this node (INFO's client_id)
    client_id := pos_integer(),
    transport := tcp | ssl | ws | wss,
    listener := atom() | binary(),
    peername := {inet:ip_address(), inet:port_number()},
    sockname := {inet:ip_address(), inet:port_number()},
    peercert := nossl | nats_gateway_certificate:peercert(),
    %% what its certificate says instead of CONNECT
    certified => #{user := binary()},
    %% what INFO tells of the transport
    server_info => #{atom() => true},
    %% what INFO asks to be signed, where the settings have a login by signature
    nonce => undefined | binary(),
    %% of the HTTP request that opened its WebSocket
    cookies => #{jwt => binary()},
    %% who the client is, where a login of the gateway's own has accepted it: the broker's own
    %% is not to be asked
    login => identity(),
    %% what is known before the login of the largest payload that the broker takes
    max_payload => non_neg_integer(),
    config := nats_gateway_config:config()
}.

%% Without its rules, which are the channel's.
-type identity() :: #{method := atom(), username := binary(), atom() => term()}.

%% One broker subscription: a mounted topic filter, in a shared group or not.
-type key() :: {ShareName :: undefined | binary(), Filter :: binary()}.

-type rejection() :: denied | no_responders.

%% Of a subscription. `subscriptions_exceeded': the broker has no room for another one.
-type refusal() :: denied | too_many_tokens | invalid_subject | subscriptions_exceeded.

%% What the client is told is the channel's business: `authorization_violation' and
%% `user_authentication_expired' have a text, the others close in the way on which every client
%% reconnects.
-type close_reason() ::
    authorization_violation
    | user_authentication_expired
    | kicked
    | upstream_lost
    %% of a client that is not to stay after it was denied this
    | {denied, Subject :: binary()}
    | {error, term()}.

-type event() ::
    {deliver, [#delivery{}]}
    %% messages for this client that it can't be sent
    | {undeliverable, Count :: pos_integer()}
    %% completions of `{wait, State}'
    | {connected, session()}
    | {refused, close_reason()}
    | {published, [{Index :: pos_integer(), rejection()}]}
    | {subscribed, ok | refusal()}
    | {subscribed_again, [{key(), refusal()}]}
    | ready
    | barrier
    %% what became of requests that were answered `ok' before the broker had decided
    | {publish_rejected, Subject :: binary(), ReplyTo :: undefined | binary(), rejection()}
    | {subscribe_rejected, key(), refusal()}
    %% what matches a key with a share name comes for it from now on
    | {joined, key()}
    %% nothing more comes for a key that was unsubscribed before
    | {unsubscribed, key()}
    %% somebody else has subscribed or unsubscribed this client
    | {added, key()}
    | {removed, key()}
    %% something for `handle_call/3' that nobody waits for
    | {call, Request :: term()}
    | {close, close_reason()}.

%% What a host may want to know of its client's channel: whether the login allows a subscription to
%% this key, and which sids have it, in order.
-type channel() :: #{
    may_subscribe := fun((key()) -> boolean()),
    sids := fun((key()) -> [nats_gateway_subscriptions:sid()])
}.

%% Of the whole connection: octets and turns of the socket, where it is there still, and what the
%% channel counts. `operations': those since the last report.
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

%% What login fixed for this connection.
-type session() :: #{
    mountpoint := binary(),
    clientid := binary(),
    username => undefined | binary(),
    %% bytes of header and payload that the broker takes for sure
    max_payload => non_neg_integer(),
    %% milliseconds after which the login of the broker has expired
    expires => non_neg_integer()
}.
-export_type([session/0]).

%% At accept, before INFO: whether the broker is there at all, and what is known of it. A client that
%% has not logged in is to cost the broker nothing.
-callback prepare(client()) -> {ok, client()} | {error, close_reason()}.

%% Log in and register. Called again, after `disconnect/2', when a later CONNECT changes the
%% credentials; the channel then subscribes anew.
-callback connect(client()) ->
    {ok, session(), State :: term()} | {wait, State :: term()} | {error, close_reason()}.

%% Whether the host takes another operation now; `{wait, State}' is completed by `ready'.
-callback ready(State) -> ok | {wait, State} when State :: term().

%% Hand messages to the broker in order. Topic `invalid' goes to nobody.
%% `confirm': the client is told of each message (verbose), so every rejection must be known when
%% this completes; QoS 1. Otherwise QoS 0, and rejections may follow as events.
%% `no_responders': the client wants to know of requests that nobody took.
-callback publish([#pub{}], Options, State) ->
    {ok, [{Index :: pos_integer(), rejection()}], State}
    | {wait, State}
    | {stop, close_reason(), State}
when
    Options :: #{confirm := boolean(), no_responders := boolean()}, State :: term().

%% Once per key. `confirm' as above, with `{subscribed, ok | refusal()}'. `sid': the first one.
-callback subscribe(key(), Options, State) ->
    {ok, State}
    | {refusal(), State}
    | {wait, State}
    | {stop, close_reason() | permission_denied, State}
when
    Options :: #{
        confirm := boolean(), no_local := boolean(), sid => nats_gateway_subscriptions:sid()
    },
    State :: term().

%% All keys of this client at once: those that are subscribed get other options, where these mean
%% anything for them, and after another login all are subscribed. Complete when the broker has
%% decided, with those that it has refused.
-callback subscribe_again([key()], Options, State) ->
    {ok, [{key(), refusal()}], State}
    | {wait, State}
    | {stop, close_reason() | permission_denied, State}
when
    Options :: #{confirm := boolean(), no_local := boolean()}, State :: term().

%% What the broker has sent already is still delivered, until `{unsubscribed, Key}'.
-callback unsubscribe(key(), State) -> State when State :: term().

%% Deliveries for keys with a share name that were unsubscribed before these were looked at.
-callback decline([{key(), Origin :: term()}], State) -> State when State :: term().

%% Complete when the broker has seen all that was handed over before, and what it delivered to
%% this connection because of that has come out of `handle_info/2'. `all': also whatever else it
%% has delivered to this connection by now.
-callback barrier(own | all, State) -> {ok, State} | {wait, State} when State :: term().

%% Any message of the connection process that is not the client socket's.
-callback handle_info(Message :: term(), State) -> {[event()], State} | ignore when State :: term().

%% The same for many messages, in order. A host that has it may get them a moment later.
-callback handle_messages([Message :: term()], State) -> {[event()], State} when State :: term().

-callback disconnect(Reason :: term(), State :: term()) -> ok.

%% Before `disconnect/2': what the connection still had for `handle_messages/2'.
-callback undelivered([Message :: term()], State) -> State when State :: term().

%% A call to the connection process, by whoever manages the clients of this host.
-callback handle_call(Request :: term(), channel(), State) ->
    {Reply :: term(), [event()], State}
when
    State :: term().

%% What there is to count, soon after something happened and every few seconds while there is traffic.
-callback report(statistics(), State) -> State when State :: term().

-optional_callbacks([prepare/1, decline/2, handle_messages/2, undelivered/2, handle_call/3, report/2]).

%% Whether a topic or filter has more levels than a broker takes.
-spec is_too_deep(binary(), Max :: pos_integer() | infinity) -> boolean().
is_too_deep(Name, Max) when byte_size(Name) < Max -> false;
is_too_deep(Name, Max) -> length(binary:matches(Name, <<"/">>)) >= Max.

%% The name of a topic that is not `invalid', and the correlation data that comes with it.
-spec topic(nats_gateway_nif:topic()) ->
    {Name :: binary(), CorrelationData :: undefined | binary()}.
topic({Name, CorrelationData}) -> {Name, CorrelationData};
topic(Name) -> {Name, undefined}.

%% A topic or filter without the mountpoint. One that is outside of it is taken as a whole.
-spec unmount(binary(), Mountpoint :: binary()) -> binary().
unmount(Name, Mountpoint) ->
    Size = byte_size(Mountpoint),
    case Name of
        <<Mountpoint:Size/binary, Rest/binary>> -> Rest;
        _ -> Name
    end.
