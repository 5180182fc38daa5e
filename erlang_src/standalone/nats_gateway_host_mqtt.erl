%% The standalone host: it logs in to an upstream MQTT 5 broker, with one connection per NATS
%% client. The connection lives in the client's process.
%%
%% How NATS is put into MQTT 5:
%% - Every key is one SUBSCRIBE with its own Subscription Identifier. So each copy says which key it
%%   is for, even if filters overlap. Identifiers are not used again: a late copy for a dropped key
%%   is recognized and dropped.
%% - If the client has to know what became of a message, the message is published with QoS 1
%%   (PUBACK 0x10: nobody got it; 0x80 and above: denied).
%%
%% The other modules are nats_gateway_mqtt_client (the connection), nats_gateway_mqtt_mapping
%% (messages), nats_gateway_mqtt_keys (subscriptions) and nats_gateway_mqtt_login (names).
-module(nats_gateway_host_mqtt).

-behaviour(nats_gateway_host).

-export([prepare/1]).
-export([connect/1]).
-export([publish/3]).
-export([ready/1]).
-export([subscribe/3]).
-export([subscribe_again/3]).
-export([unsubscribe/2]).
-export([barrier/2]).
-export([handle_info/2]).
-export([disconnect/2]).
-export([ask_server/1]).
-export([ask_store/3]).
-export([max_payload/2]).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").
-include_lib("kernel/include/logger.hrl").

%% The tags of packets that the broker answers.
-type request() ::
    {confirm, Index :: pos_integer(), NoResponders :: boolean()}
    | {request, Subject :: binary(), ReplyTo :: binary()}
    | {subscribe, nats_gateway_host:key(), Id :: pos_integer(), Confirm :: boolean() | again}
    | {unsubscribe, nats_gateway_host:key(), Id :: pos_integer()}
    %% the message that the client is there
    | presence
    %% the answer to this UNSUBSCRIBE is ignored: the filter is subscribed again right after, or the
    %% probe had subscribed it
    | resubscribe.

-type item() :: {nats_gateway_mqtt_nif:packet(), request() | none}.

-type rejections() :: [{Index :: pos_integer(), nats_gateway_host:rejection()}].

%% Subscriptions that are made again: the keys that still have to be subscribed, the keys that were
%% ended meanwhile, the number of missing answers, and the refused keys.
-record(again, {
    keys :: [nats_gateway_host:key()],
    ended = #{} :: #{nats_gateway_host:key() => []},
    options :: #{confirm := boolean(), no_local := boolean()},
    asked = 0 :: non_neg_integer(),
    refused = [] :: [{nats_gateway_host:key(), nats_gateway_host:refusal()}]
}).

-type waiting() ::
    none
    | {confirm, Left :: pos_integer(), rejections()}
    | subscribe
    | #again{}.

%% The largest packet that the length field allows, with its fixed header.
-define(MAX_PACKET, 268435460).

%% What the broker accepts, and which of its answers cannot be trusted.
-record(broker, {
    max_packet = ?MAX_PACKET :: pos_integer(),
    max_qos = 2 :: 0..2,
    retain_available = true :: boolean(),
    max_levels :: infinity | pos_integer(),
    wildcards = true :: boolean(),
    shared = true :: boolean(),
    retain = true :: boolean(),
    identifiers = true :: boolean(),
    quirks = [] :: [nats_gateway_probe:quirk()]
}).

%% What stays as it was at the login.
-record(settings, {
    max_control_line :: pos_integer(),
    %% generated when the gateway starts
    secret :: binary(),
    retain_handling :: 0 | 2,
    %% whether headers set the properties of a PUBLISH, and tell those of a delivery
    publish_properties :: boolean(),
    show_properties :: boolean(),
    %% how the key/value store logs in, if there is one, and the id of this server for its answers; the
    %% function is a nats_gateway_mqtt_link:login(), with whose whole type dialyzer would cut others short
    store = none :: none | {fun(() -> map()), ServerId :: binary()},
    %% whose watchers of the store are this client's
    identity = none :: nats_gateway_kv_kept:identity()
}).

-record(host, {
    client :: undefined | nats_gateway_mqtt_client:client(),
    phase = login :: login | probe | open | closed,
    settings :: #settings{},
    upstream :: nats_gateway_upstream:upstream(),
    session :: nats_gateway_host:session(),
    broker :: #broker{},
    %% the probe of the first client that logs in, and the timeout of the probe
    probe :: undefined | {nats_gateway_probe:probe(), reference()},
    waiting = none :: waiting(),
    keys = nats_gateway_mqtt_keys:new(1) :: nats_gateway_mqtt_keys:keys(),
    %% messages that were larger than the broker's Maximum Packet Size
    dropped = 0 :: non_neg_integer(),
    %% the name under which hang-ups of the broker are kept, and the packets that must not be sent
    %% again
    hangups_key :: nats_gateway_hangups:key(),
    refused = #{} :: #{nats_gateway_hangups:packet() => true},
    presence = none :: nats_gateway_mqtt_presence:presence(),
    %% what the client does with the key/value store, from its first request on
    kv = none :: none | nats_gateway_kv_session:session()
}).

-type host() :: #host{}.

%% How long the probe waits for the broker's answers, and for messages that come after them.
-define(PROBE_MS, 2000).
-define(PROBE_LATE_MS, 300).

%% The first packet and subscription identifier that the probe does not use.
-define(AFTER_PROBE, 5).

%% Of the key/value store, for one client. Each has a connection to the broker.
-define(MAX_WATCHERS, 100).

%% The number of requests at once. It is limited so that the broker's answers come soon.
-define(MAX_ASKED, 2048).
%% The most bytes that a packet can have after its fixed header: 2^28 - 1.
-define(MAX_REMAINING_LENGTH, 268435455).

%% -------------------------------------------------------------------------------------------
%% Login

-spec prepare(nats_gateway_host:client()) ->
    {ok, nats_gateway_host:client()} | {error, upstream_lost}.
prepare(Client = #{config := #{upstream := Upstream, max_control_line := MaxControlLine}}) ->
    case nats_gateway_upstream:available(Upstream) of
        {true, Facts} -> {ok, maps:merge(Client, max_payload(Facts, MaxControlLine))};
        false -> {error, upstream_lost}
    end.

%% A part of the broker's largest packet is kept for subject and reply subject, which together fit
%% into a control line, and for what headers need besides their bytes.
-spec max_payload(Granted, MaxControlLine :: pos_integer()) -> #{max_payload => pos_integer()} when
    Granted :: #{maximum_packet_size => pos_integer(), atom() => term()}.
max_payload(#{maximum_packet_size := Max}, MaxControlLine) ->
    #{max_payload => Max - min(MaxControlLine + 64, Max div 2)};
max_payload(#{}, _) ->
    #{}.

-spec connect(nats_gateway_host:client()) ->
    {wait, host()} | {error, nats_gateway_host:close_reason()}.
connect(Client = #{config := Config}) ->
    #{upstream := Upstream, max_payload_size := MaxPayload} = Config,
    case nats_gateway_mqtt_login:credentials(Client) of
        {ok, Session, Username, Password} ->
            Key = hangups_key(Username, Client),
            {Refused, Watched} = learned(Key, Upstream),
            MaxLevels = maps:get(max_topic_levels, Upstream),
            MaxReceived = max_received(maps:get(max_packet_size, Upstream), MaxPayload),
            start(Username, Password, MaxReceived, Watched, #host{
                settings = #settings{
                    max_control_line = maps:get(max_control_line, Config),
                    secret = maps:get(secret, Config),
                    retain_handling = retain_handling(Config),
                    publish_properties = maps:get(publish_properties, Config),
                    show_properties = maps:get(show_properties, Config),
                    store = store(Session, Username, Password, MaxReceived, Config),
                    identity = nats_gateway_kv_kept:identity(Client)
                },
                upstream = Upstream,
                session = Session,
                broker = #broker{max_levels = MaxLevels},
                hangups_key = Key,
                refused = Refused,
                presence = nats_gateway_presence:messages(Client, Session, MaxLevels)
            });
        error ->
            {error, authorization_violation}
    end.

%% Another connection with the same client id would end this one.
store(#{clientid := Id}, Username, Password, MaxReceived, Config = #{kv := Buckets}) when
    is_map(Buckets)
->
    #{upstream := Upstream, server_id := ServerId} = Config,
    Login = fun() ->
        Own = binary:encode_hex(crypto:strong_rand_bytes(4)),
        #{
            upstream => Upstream,
            client_id => <<Id/binary, "-kv-", Own/binary>>,
            username => Username,
            password => Password,
            max_received => MaxReceived
        }
    end,
    {Login, ServerId};
store(_, _, _, _, _) ->
    none.

start(Username, Password, MaxReceived, Watched, Host) ->
    #host{upstream = Upstream, session = #{clientid := Id}, presence = Presence} = Host,
    #{connect_timeout := Timeout, keepalive := KeepAlive} = Upstream,
    %% CONNECT sets no limits for the broker: it would drop what is beyond them without a trace.
    Connect = #connect{
        client_id = Id,
        username = Username,
        password = Password,
        keepalive = KeepAlive,
        will = nats_gateway_mqtt_presence:will(Presence)
    },
    Deadline = erlang:monotonic_time(millisecond) + Timeout,
    case nats_gateway_upstream:open(Upstream, Timeout) of
        {ok, Socket} ->
            Started = nats_gateway_mqtt_client:start(Socket, Connect, #{
                timeout => max(0, Deadline - erlang:monotonic_time(millisecond)),
                keepalive => KeepAlive,
                max_received => MaxReceived,
                watched => Watched
            }),
            case Started of
                {ok, Client} -> {wait, Host#host{client = Client}};
                {error, _} -> {error, upstream_lost}
            end;
        {error, _} ->
            {error, upstream_lost}
    end.

max_received(default, MaxPayload) ->
    min(nats_gateway_mqtt_mapping:max_size(MaxPayload), ?MAX_REMAINING_LENGTH);
max_received(Max, _) -> Max.

hangups_key(Username, #{peername := {Address, _}, connect := Fields}) ->
    nats_gateway_hangups:key(Address, Username, maps:get(name, Fields, undefined)).

learned(Key, Upstream) ->
    case nats_gateway_upstream:learned(Key, Upstream) of
        #{refused := Refused, watch := Watched} -> {Refused, Watched};
        none -> {#{}, false}
    end.

retain_handling(#{retained_on_subscribe := true}) -> 0;
retain_handling(#{}) -> 2.

%% -------------------------------------------------------------------------------------------
%% Publish

-spec ready(host()) -> ok | {wait, host()}.
ready(Host = #host{client = Client}) ->
    case nats_gateway_mqtt_client:ready(Client) of
        ok -> ok;
        {wait, NClient} -> {wait, Host#host{client = NClient}}
    end.

-spec publish([#pub{}], Options, host()) ->
    {ok, rejections(), host()}
    | {wait, host()}
    | {stop, nats_gateway_host:close_reason(), host()}
when
    Options :: #{confirm := boolean(), no_responders := boolean()}.
publish(_, _, Host = #host{phase = closed}) ->
    {stop, upstream_lost, Host};
publish(Pubs, Options, Host) ->
    %% The codec checks each string. Only if it refuses one, each string is checked here.
    try
        publish(Pubs, trust, Options, Host)
    catch
        error:badarg ->
            Carried = [nats_gateway_mqtt_mapping:without_bad_topics(Pub) || Pub <- Pubs],
            publish(Carried, check, Options, Host)
    end.

publish(Pubs, Strings, Options = #{confirm := Confirm}, Host) ->
    {Items, Rejections, NHost} = items(Pubs, 1, Strings, Options, Host, [], []),
    Sent = send(Items, NHost),
    case confirmations(Confirm, Items) of
        0 -> {ok, Rejections, Sent};
        Left -> {wait, Sent#host{waiting = {confirm, Left, Rejections}}}
    end.

confirmations(false, _) -> 0;
confirmations(true, Items) -> length([Index || {_, {confirm, Index, _}} <- Items]).

-spec items([#pub{}], pos_integer(), trust | check, map(), host(), [item()], rejections()) ->
    {[item()], rejections(), host()}.
items([], _, _, _, Host, Items, Rejections) ->
    {lists:reverse(Items), lists:reverse(Rejections), Host};
items([Pub | Pubs], Index, Strings, Options, Host, Items, Rejections) ->
    Request = request(Pub, Index, Options),
    case item(Pub, Request, Strings, Host) of
        unroutable ->
            NRejections = unroutable(Request, Index, Rejections),
            items(Pubs, Index + 1, Strings, Options, Host, Items, NRejections);
        denied ->
            NRejections = [{Index, denied} | Rejections],
            items(Pubs, Index + 1, Strings, Options, Host, Items, NRejections);
        Refusal = {property, _, _} ->
            NRejections = [{Index, Refusal} | Rejections],
            items(Pubs, Index + 1, Strings, Options, Host, Items, NRejections);
        too_large ->
            NRejections = [{Index, denied} | Rejections],
            items(Pubs, Index + 1, Strings, Options, dropped(Host), Items, NRejections);
        Item ->
            items(Pubs, Index + 1, Strings, Options, Host, [Item | Items], Rejections)
    end.

%% The request behind a publish, if the client has to know what became of the message.
request(#pub{reply_to = ReplyTo}, Index, #{confirm := true, no_responders := NoResponders}) ->
    {confirm, Index, NoResponders andalso ReplyTo =/= undefined};
request(#pub{subject = Subject, reply_to = ReplyTo}, _, #{no_responders := true}) when
    ReplyTo =/= undefined
->
    {request, Subject, ReplyTo};
request(_, _, _) ->
    none.

unroutable({confirm, _, true}, Index, Rejections) -> [{Index, no_responders} | Rejections];
unroutable({request, _, _}, Index, Rejections) -> [{Index, no_responders} | Rejections];
unroutable(_, _, Rejections) -> Rejections.

item(#pub{topic = invalid}, _, _, _) ->
    unroutable;
item(Pub = #pub{headers = Block}, Request, Strings, Host = #host{settings = #settings{publish_properties = true}}) when
    Block =/= undefined
->
    #host{session = #{mountpoint := Mountpoint}, broker = Broker} = Host,
    #broker{max_qos = MaxQos, retain_available = RetainAvailable} = Broker,
    Limits = #{mountpoint => Mountpoint, max_qos => MaxQos, retain_available => RetainAvailable},
    case nats_gateway_publish_properties:take(Pub, Block, Limits) of
        none ->
            item(Pub, none, Request, Strings, Host);
        {Properties = #properties{qos = QoS}, NPub} ->
            item(NPub, Properties, with_quality(QoS, Pub, Request), Strings, Host);
        Refusal ->
            Refusal
    end;
item(Pub, Request, Strings, Host) ->
    item(Pub, none, Request, Strings, Host).

%% The quality of service that a header asks for decides whether the broker answers.
with_quality(undefined, _, Request) -> Request;
with_quality(0, _, _) -> none;
with_quality(_, #pub{subject = Subject, reply_to = ReplyTo}, none) -> {request, Subject, ReplyTo};
with_quality(_, _, Request) -> Request.

item(Pub = #pub{topic = Topic, headers = Block}, Properties, Request, Strings, Host) ->
    #host{broker = Broker, settings = #settings{secret = Secret}} = Host,
    #broker{max_packet = MaxPacket, max_qos = MaxQos} = Broker,
    {Name, _} = nats_gateway_host:topic(Topic),
    case is_intolerable(publish, Name, Host) of
        true ->
            denied;
        false ->
            {QoS, Tag} = quality(MaxQos, Request),
            Message = nats_gateway_mqtt_mapping:publish(Pub, QoS, Strings, Secret),
            Packet =
                case Properties of
                    none -> Message;
                    _ -> nats_gateway_mqtt_mapping:with_properties(Properties, Message)
                end,
            case nats_gateway_mqtt_mapping:fits(Packet, Block, MaxPacket) of
                true -> {Packet, Tag};
                false -> too_large
            end
    end.

%% A broker without QoS 1 does not say what became of a message.
quality(_, none) -> {0, none};
quality(0, _) -> {0, none};
quality(_, Request) -> {1, Request}.

%% Whether the broker would end the connection because of this name.
is_intolerable(Kind, Name, Host) -> is_too_deep(Name, Host) orelse is_refused(Kind, Name, Host).

is_too_deep(Name, #host{broker = #broker{max_levels = Max}}) ->
    nats_gateway_host:is_too_deep(Name, Max).

is_refused(_, _, #host{refused = Refused}) when map_size(Refused) =:= 0 -> false;
is_refused(Kind, Name, #host{refused = Refused}) ->
    is_map_key(nats_gateway_hangups:packet(Kind, Name), Refused).

dropped(Host = #host{dropped = Dropped, broker = #broker{max_packet = Max}}) ->
    Dropped =:= 0 andalso
        ?LOG_WARNING(#{msg => message_larger_than_upstream_takes, maximum_packet_size => Max}),
    Host#host{dropped = Dropped + 1}.

send(Items, Host = #host{client = Client}) ->
    Host#host{client = nats_gateway_mqtt_client:send(Items, Client)}.

%% -------------------------------------------------------------------------------------------
%% Subscribe

-spec subscribe(nats_gateway_host:key(), Options, host()) ->
    {ok | nats_gateway_host:refusal(), host()} | {wait, host()} | {stop, upstream_lost, host()}
when
    Options :: #{confirm := boolean(), no_local := boolean(), retained => false}.
subscribe(_, _, Host = #host{phase = closed}) ->
    {stop, upstream_lost, Host};
subscribe(Key, Options, Host) ->
    case available(Key, Host) of
        ok -> ask(Key, Options, continue_watchers(Key, Host));
        Refusal -> {Refusal, Host}
    end.

ask(Key, Options = #{confirm := Confirm}, Host) ->
    {Packet, Id, NHost} = subscription(Key, Options, Host),
    try send([{Packet, {subscribe, Key, Id, Confirm}}], NHost) of
        Sent when Confirm -> {wait, Sent#host{waiting = subscribe}};
        Sent -> {ok, Sent}
    catch
        %% The filter cannot be sent.
        error:badarg -> {denied, Host}
    end.

subscription(Key = {Share, _}, Options = #{confirm := Confirm, no_local := NoLocal}, Host) ->
    {Id, NHost} = subscription_id(Key, Host),
    QoS =
        case Confirm of
            true -> 1;
            false -> 0
        end,
    %% No Local on a shared subscription is a protocol error (3.8.3.1).
    Retained =
        case Options of
            #{retained := false} -> 2;
            #{} -> Host#host.settings#settings.retain_handling
        end,
    Filter = {filter(Key), QoS, NoLocal andalso Share =:= undefined, Retained},
    Announced =
        case Host#host.broker of
            #broker{identifiers = true} -> Id;
            #broker{identifiers = false} -> undefined
        end,
    {#subscribe{subscription_id = Announced, filters = [Filter]}, Id, NHost}.

-spec subscribe_again([nats_gateway_host:key()], Options, host()) ->
    {ok, [{nats_gateway_host:key(), nats_gateway_host:refusal()}], host()}
    | {wait, host()}
    | {stop, upstream_lost, host()}
when
    Options :: #{confirm := boolean(), no_local := boolean()}.
subscribe_again(_, _, Host = #host{phase = closed}) ->
    {stop, upstream_lost, Host};
subscribe_again(Keys, Options, Host) ->
    %% The first part of the keys may have none that the broker must be asked for.
    case complete(again(#again{keys = Keys, options = Options}, Host)) of
        {[{subscribed_again, Refused}], NHost} -> {ok, Refused, NHost};
        {[], NHost} -> {wait, NHost}
    end.

%% Subscribes at most as many keys at once as the broker may leave unanswered.
again(Again = #again{keys = Keys}, Host) ->
    {Now, Later} = lists:split(min(?MAX_ASKED, length(Keys)), Keys),
    {Items, NAgain, NHost} = lists:foldl(fun ask_again/2, {[], Again#again{keys = Later}, Host}, Now),
    send(lists:reverse(Items), NHost#host{waiting = NAgain}).

ask_again(Key = {Share, _}, Acc = {Items, Again = #again{ended = Ended}, Host = #host{keys = Keys}}) ->
    Known = nats_gateway_mqtt_keys:is_member(Key, Keys),
    %% A shared subscription has no option that could change.
    Settled = is_map_key(Key, Ended) orelse (Share =/= undefined andalso Known),
    case Settled orelse available(Key, Host) of
        true ->
            Acc;
        ok ->
            #again{options = Options, asked = Asked} = Again,
            {Packet, Id, NHost} = subscription(Key, Options, Host),
            %% A key that is subscribed again with other options keeps its identifier. Mosquitto
            %% changes only the QoS of an existing subscription, so the key is unsubscribed first.
            NItems = [drop(Key, resubscribe) || Known] ++ Items,
            Subscribe = {Packet, {subscribe, Key, Id, again}},
            {[Subscribe | NItems], Again#again{asked = Asked + 1}, NHost};
        Refusal ->
            #again{refused = Refused} = Again,
            {Items, Again#again{refused = [{Key, Refusal} | Refused]}, Host}
    end.

%% If the broker were asked anyway, it would end the connection.
available({undefined, <<"$share">>}, _) ->
    denied;
available({undefined, <<"$share/", _/binary>>}, _) ->
    denied;
available(Key = {_, Filter}, Host) ->
    Full = filter(Key),
    case is_too_deep(Full, Host) of
        true ->
            too_many_tokens;
        false ->
            Available =
                is_shared_available(Key, Host) andalso is_filter_available(Filter, Host) andalso
                    filter_fits(Full, Host) andalso not is_refused(subscribe, Full, Host),
            case Available of
                true -> ok;
                false -> denied
            end
    end.

is_shared_available({Share, _}, #host{broker = #broker{shared = Shared}}) ->
    Shared orelse Share =:= undefined.

is_filter_available(_, #host{broker = #broker{wildcards = true}}) -> true;
is_filter_available(Filter, _) -> not nats_gateway_filters:has_wildcard(Filter).

%% The SUBSCRIBE has at most 16 more bytes, with the longest identifier.
filter_fits(Filter, #host{broker = #broker{max_packet = Max}}) -> byte_size(Filter) + 16 =< Max.

filter({undefined, Filter}) -> Filter;
filter({Share, Filter}) -> <<"$share/", Share/binary, $/, Filter/binary>>.

subscription_id(Key = {_, Filter}, Host = #host{keys = Keys, client = Client}) ->
    case nats_gateway_mqtt_keys:add(Key, Keys) of
        {known, Id, _} ->
            {Id, Host};
        {added, Id, NKeys} ->
            NClient = nats_gateway_mqtt_client:subscribed(Filter, Client),
            {Id, Host#host{keys = NKeys, client = NClient}}
    end.

%% The identifier stays known until the broker confirms, because what it has sent before is still
%% delivered.
-spec unsubscribe(nats_gateway_host:key(), host()) -> host().
unsubscribe(_, Host = #host{phase = closed}) ->
    Host;
unsubscribe(Key, Host = #host{waiting = Again = #again{ended = Ended}}) ->
    %% A message has ended this subscription, maybe before it was subscribed again.
    leave(Key, Host#host{waiting = Again#again{ended = Ended#{Key => []}}});
unsubscribe(Key, Host) ->
    leave(Key, Host).

leave(Key = {_, Filter}, Host = #host{keys = Keys, client = Client}) ->
    case nats_gateway_mqtt_keys:leave(Key, Keys) of
        {Id, NKeys} ->
            NClient = nats_gateway_mqtt_client:unsubscribed(Filter, Client),
            Left = Host#host{keys = NKeys, client = NClient},
            send([drop(Key, {unsubscribe, Key, Id})], Left);
        error ->
            Host
    end.

drop(Key, Request) -> {#unsubscribe{filters = [filter(Key)]}, Request}.

%% The broker has refused the subscription.
forget(Key = {_, Filter}, Host = #host{keys = Keys, client = Client}) ->
    {Id, NKeys} = nats_gateway_mqtt_keys:leave(Key, Keys),
    Host#host{
        keys = nats_gateway_mqtt_keys:forget(Id, NKeys),
        client = nats_gateway_mqtt_client:unsubscribed(Filter, Client)
    }.

%% -------------------------------------------------------------------------------------------
%% Barrier

-spec barrier(own | all, host()) -> {ok, host()} | {wait, host()}.
barrier(Which, Host = #host{client = Client}) ->
    {Verdict, NClient} = nats_gateway_mqtt_client:barrier(Which, Client),
    {Verdict, Host#host{client = NClient}}.

%% -------------------------------------------------------------------------------------------
%% What the broker sends

-spec handle_info(term(), host()) -> {[nats_gateway_host:event()], host()} | ignore.
handle_info({?MODULE, Timer, timeout}, Host = #host{phase = probe, probe = {Probe, Timer}}) ->
    {Connected, NHost} = probed(Probe, Host),
    {[Connected], NHost};
handle_info({?MODULE, _, _}, _) ->
    ignore;
handle_info(Message, Host = #host{client = Client}) ->
    case nats_gateway_mqtt_client:handle_info(Message, Client) of
        {[], NClient} ->
            {[], Host#host{client = NClient}};
        {Events, NClient} ->
            {Out, NHost} = events(Events, [], [], Host#host{client = NClient}),
            {Completed, Done} = complete(NHost),
            {lists:reverse(Out, Completed), Done};
        ignore ->
            ignore
    end.

%% Deliveries (of the current run) and events for the channel are collected latest first.
events([], Deliveries, Out, Host) ->
    {run(Deliveries, Out), Host};
events([Packet = #publish{} | Events], Deliveries, Out, Host) ->
    {NDeliveries, NHost} = deliver(Packet, Deliveries, Host),
    events(Events, NDeliveries, Out, NHost);
events([Event | Events], Deliveries, Out, Host) ->
    {NOut, NHost} = event(Event, run(Deliveries, Out), Host),
    events(Events, [], NOut, NHost).

run([], Out) -> Out;
run(Deliveries, Out) -> [{deliver, lists:reverse(Deliveries)} | Out].

event({answer, Request, Reason}, Out, Host) ->
    answer(Request, Reason, Out, Host);
event(ready, Out, Host) ->
    {[ready | Out], Host};
event(barrier, Out, Host) ->
    {[barrier | Out], Host};
event({too_large, Topic, Size, Max}, Out, Host) ->
    ok = note_too_large(Topic, Size, Max, Host),
    {[{undeliverable, 1} | Out], Host};
event({connected, Properties}, Out, Host) ->
    logged_in(Out, connected(Properties, Host));
event({refused, Reason, Properties}, Out, Host) ->
    Refusal = nats_gateway_mqtt_reason:connack(Reason),
    ok = nats_gateway_census:login_refused(broker, nats_gateway_mqtt_reason:name(Reason)),
    Details = nats_gateway_mqtt_presence:refused(
        Reason, details(Reason, Properties), Host#host.presence
    ),
    ok = note_refusal(Refusal, Reason, Details, Host),
    {[{refused, Refusal} | Out], lost(Host)};
event({packet, Packet}, Out, Host = #host{phase = probe}) ->
    probe_packet(Packet, Out, Host);
%% This answer to the probe comes too late.
event({packet, _}, Out, Host) ->
    {Out, Host};
event({closed, Ending, Blame}, Out, Host) ->
    closed(Ending, Blame, Out, Host).

note_too_large(Topic, Size, Max, #host{upstream = Upstream}) ->
    nats_gateway_upstream:note(too_large, #{
        msg => message_larger_than_max_packet_size,
        topic => nats_gateway_suspects:label(Topic),
        size => Size,
        max_packet_size => Max
    }, Upstream).

%% A client's wrong password is no problem of the broker.
note_refusal(authorization_violation, Reason, Details, #host{upstream = Upstream}) ->
    Report = Details#{msg => upstream_refused_login},
    nats_gateway_upstream:note({connect, Reason}, Report, Upstream);
note_refusal(upstream_lost, Reason, Details, #host{upstream = Upstream}) ->
    nats_gateway_upstream:refused(Reason, Details, Upstream).

details(Reason, Properties) ->
    maps:merge(maps:with([reason_string], Properties), #{
        reason_code => Reason, reason => nats_gateway_mqtt_reason:name(Reason)
    }).

connected(Properties, Host = #host{session = Session, broker = Broker, upstream = Upstream}) ->
    ok = nats_gateway_upstream:accepted(maps:with([maximum_packet_size], Properties), Upstream),
    MaxPayload = max_payload(Properties, Host#host.settings#settings.max_control_line),
    Host#host{
        phase = open,
        session = maps:merge(MaxPayload, Session#{
            clientid := maps:get(
                assigned_client_identifier, Properties, maps:get(clientid, Session)
            )
        }),
        broker = Broker#broker{
            max_packet = maps:get(maximum_packet_size, Properties, ?MAX_PACKET),
            max_qos = maps:get(maximum_qos, Properties, 2),
            retain_available = maps:get(retain_available, Properties, true),
            wildcards = maps:get(wildcard_subscription_available, Properties, true),
            shared = maps:get(shared_subscription_available, Properties, true),
            retain = maps:get(retain_available, Properties, true),
            identifiers = maps:get(subscription_identifier_available, Properties, true)
        }
    }.

logged_in(Out, Host = #host{session = Session, upstream = Upstream}) ->
    case nats_gateway_upstream:probe(Upstream) of
        {known, Quirks} -> {[{connected, Session} | Out], announce(with_quirks(Quirks, Host))};
        probe -> {Out, probe(Host)}
    end.

%% -------------------------------------------------------------------------------------------
%% Probing the broker (nats_gateway_probe)

%% The first client that logs in waits a little longer.
probe(Host = #host{session = #{mountpoint := Mountpoint}, broker = Broker, client = Client}) ->
    {Packets, Probe} = nats_gateway_probe:start(Mountpoint, #{
        maximum_qos => Broker#broker.max_qos,
        wildcard_subscription_available => Broker#broker.wildcards,
        shared_subscription_available => Broker#broker.shared,
        subscription_identifier_available => Broker#broker.identifiers
    }),
    probe_for(?PROBE_MS, Probe, Host#host{
        phase = probe, client = nats_gateway_mqtt_client:hand_over(Packets, Client)
    }).

probe_for(Milliseconds, Probe, Host) ->
    Timer = make_ref(),
    _ = erlang:send_after(Milliseconds, self(), {?MODULE, Timer, timeout}),
    Host#host{probe = {Probe, Timer}}.

probe_packet(Packet, Out, Host = #host{probe = {Probe, Timer}}) ->
    case nats_gateway_probe:packet(Packet, Probe) of
        {more, NProbe} ->
            {Out, Host#host{probe = {NProbe, Timer}}};
        {late, NProbe} ->
            {Out, probe_for(?PROBE_LATE_MS, NProbe, Host)};
        {done, NProbe} ->
            {Connected, NHost} = probed(NProbe, Host),
            {[Connected | Out], NHost}
    end.

%% The identifiers of the probe's packets and subscriptions are not used again.
probed(Probe, Host = #host{session = Session, upstream = Upstream, client = Client}) ->
    Outcome = nats_gateway_probe:quirks(Probe),
    ok = nats_gateway_upstream:probed(Outcome, Upstream),
    Quirks =
        case Outcome of
            inconclusive -> [];
            _ -> Outcome
        end,
    Open = with_quirks(Quirks, Host#host{
        phase = open,
        probe = undefined,
        keys = nats_gateway_mqtt_keys:new(?AFTER_PROBE),
        client = nats_gateway_mqtt_client:take_over(?AFTER_PROBE, Client)
    }),
    Drops = [
        {#unsubscribe{filters = [Filter]}, resubscribe}
     || Filter <- nats_gateway_probe:filters(Probe)
    ],
    {{connected, Session}, announce(send(Drops, Open))}.

%% The client is there.
announce(Host = #host{presence = Presence, broker = Broker}) ->
    #broker{max_packet = MaxPacket, max_qos = MaxQos, retain = Retain} = Broker,
    Facts = #{max_packet => MaxPacket, max_qos => MaxQos, retain_available => Retain},
    case nats_gateway_mqtt_presence:connected(Presence, Facts) of
        none -> Host;
        Publish = #publish{qos = 0} -> send([{Publish, none}], Host);
        Publish -> send([{Publish, presence}], Host)
    end.

with_quirks(Quirks, Host = #host{broker = Broker, client = Client}) ->
    NHost = Host#host{broker = Broker#broker{quirks = Quirks}},
    case lists:member(pong_overtakes, Quirks) of
        true -> NHost#host{client = nats_gateway_mqtt_client:pace_echoes(Client)};
        false -> NHost
    end.

%% -------------------------------------------------------------------------------------------
%% Deliveries

deliver(Packet, Deliveries, Host = #host{settings = #settings{show_properties = false}}) ->
    copies(Packet, Deliveries, Host);
deliver(Packet, Deliveries, Host) ->
    {Copies, NHost} = copies(Packet, [], Host),
    Facts = nats_gateway_mqtt_mapping:facts(Packet),
    Shown = [
        Copy#delivery{headers = nats_gateway_publish_properties:show(Facts, Headers)}
     || Copy = #delivery{headers = Headers} <- Copies
    ],
    {Shown ++ Deliveries, NHost}.

copies(Packet, Deliveries, Host = #host{keys = Keys, broker = Broker, settings = Settings}) ->
    #settings{secret = Secret} = Settings,
    case {Packet, Broker} of
        {#publish{subscription_ids = [Id]}, #broker{quirks = []}} ->
            case nats_gateway_mqtt_keys:key(Id, Keys) of
                undefined ->
                    {Deliveries, Host};
                Key ->
                    Delivery = nats_gateway_mqtt_mapping:delivery(Packet, Key, Secret),
                    {[Delivery | Deliveries], Host}
            end;
        {#publish{topic = Topic, subscription_ids = Ids}, #broker{quirks = Quirks}} ->
            {Receivers, NKeys} = nats_gateway_mqtt_keys:receivers(Ids, Topic, Quirks, Keys),
            {copies(Receivers, Packet, Secret, Deliveries), Host#host{keys = NKeys}}
    end.

copies([], _, _, Deliveries) ->
    Deliveries;
copies([Key | Keys], Packet, Secret, Deliveries) ->
    Delivery = nats_gateway_mqtt_mapping:delivery(Packet, Key, Secret),
    Copies = [Delivery#delivery{key = Other} || Other <- Keys],
    lists:reverse(Copies, [Delivery | Deliveries]).

%% -------------------------------------------------------------------------------------------
%% Answers

answer({confirm, Index, NoResponders}, Reason, Out, Host) ->
    confirmed(rejection(Reason, NoResponders, Index, Host), Out, Host);
answer({request, Subject, ReplyTo}, Reason, Out, Host) ->
    case rejection(Reason, true, 0, Host) of
        [] -> {Out, Host};
        [{_, Rejection}] -> {[{publish_rejected, Subject, ReplyTo, Rejection} | Out], Host}
    end;
answer({subscribe, Key, Id, Confirm}, Reason, Out, Host) ->
    ok = note(subscribe, Reason, Host),
    subscribed(nats_gateway_mqtt_reason:suback(Reason), Key, Id, Confirm, Out, Host);
answer({unsubscribe, Key, Id}, _, Out, Host = #host{keys = Keys}) ->
    {[{unsubscribed, Key} | Out], Host#host{keys = nats_gateway_mqtt_keys:forget(Id, Keys)}};
answer(presence, Reason, Out, Host = #host{presence = Presence}) ->
    ok = nats_gateway_mqtt_presence:answered(Reason, Presence),
    {Out, Host};
answer(resubscribe, _, Out, Host) ->
    {Out, Host}.

rejection(Reason, NoResponders, Index, Host = #host{broker = #broker{quirks = Quirks}}) ->
    ok = note(publish, Reason, Host),
    Lies = lists:member(puback_lies, Quirks),
    case nats_gateway_mqtt_reason:puback(Reason) of
        ok -> [];
        no_responders when not NoResponders -> [];
        no_responders when Lies -> [];
        Rejection -> [{Index, Rejection}]
    end.

%% nats-server has no text that explains most refusals, so the log does.
note(Packet, Reason, #host{upstream = Upstream}) ->
    case nats_gateway_mqtt_reason:is_noted(Reason) of
        true ->
            nats_gateway_upstream:note({Packet, Reason}, #{
                msg => upstream_refused_packet,
                packet => Packet,
                reason_code => Reason,
                reason => nats_gateway_mqtt_reason:name(Reason)
            }, Upstream);
        false ->
            ok
    end.

confirmed(Rejection, Out, Host = #host{waiting = {confirm, Left, Rejections}}) ->
    NRejections = Rejection ++ Rejections,
    case Left of
        1 ->
            {[{published, lists:sort(NRejections)} | Out], Host#host{waiting = none}};
        _ ->
            {Out, Host#host{waiting = {confirm, Left - 1, NRejections}}}
    end.

subscribed(Answer, Key, Id, Confirm, Out, Host = #host{keys = Keys}) ->
    Current = nats_gateway_mqtt_keys:is_current(Key, Id, Keys),
    Granted = Answer =:= ok,
    NHost =
        case Current andalso not Granted of
            true -> forget(Key, Host);
            false -> Host
        end,
    NOut = joined(Current andalso Granted, Key, Out),
    subscribe_answered(Confirm, Answer, Current, Key, NOut, NHost).

subscribe_answered(true, Answer, _, _, Out, Host) ->
    {[{subscribed, Answer} | Out], Host#host{waiting = none}};
subscribe_answered(again, Answer, Current, Key, Out, Host = #host{waiting = Again}) ->
    #again{asked = Asked, refused = Refused} = Again,
    NRefused = [{Key, Answer} || Current, Answer =/= ok] ++ Refused,
    {Out, Host#host{waiting = Again#again{asked = Asked - 1, refused = NRefused}}};
subscribe_answered(false, Answer, true, Key, Out, Host) when Answer =/= ok ->
    {[{subscribe_rejected, Key, Answer} | Out], Host};
subscribe_answered(false, _, _, _, Out, Host) ->
    {Out, Host}.

joined(true, Key = {Share, _}, Out) when Share =/= undefined -> [{joined, Key} | Out];
joined(_, _, Out) -> Out.

%% Subscribes the next keys of the subscriptions that are made again, or reports that all are done.
complete(Host = #host{waiting = #again{keys = [], asked = 0, refused = Refused}}) ->
    {[{subscribed_again, Refused}], Host#host{waiting = none}};
complete(Host = #host{waiting = Again = #again{asked = 0}}) ->
    complete(again(Again, Host));
complete(Host) ->
    {[], Host}.

-spec ask_server(nats_gateway_host:server_request()) -> ok | no_responders.
ask_server(Request) -> nats_gateway_monitor_system:ask(Request).

%% -------------------------------------------------------------------------------------------
%% The key/value store

%% The broker decides which rights the client has.
-spec ask_store(#pub{}, nats_gateway_kv_bucket:buckets(), host()) -> {pass | no_responders, host()}.
ask_store(Pub = #pub{reply_to = ReplyTo, reply_topic = ReplyTopic}, Buckets, Host) when
    Host#host.settings#settings.store =/= none, is_binary(ReplyTopic) orelse ReplyTo =:= undefined
->
    #pub{subject = Subject, headers = Headers, payload = Payload} = Pub,
    #host{session = #{mountpoint := Mountpoint}} = Host,
    {Action, _} = nats_gateway_kv_request:read(Subject, Headers, Payload, Mountpoint, Buckets),
    pass_to_store(Action, ReplyTopic, Host);
ask_store(_, _, Host) ->
    {no_responders, Host}.

%% The watchers of an earlier connection, where the client has subscribed to the same subject again.
continue_watchers({undefined, Topic}, Host = #host{settings = #settings{identity = Identity}}) when
    Identity =/= none
->
    lists:foldl(
        fun(Watcher, Inner) ->
            {pass, NInner} = pass_to_store({claim, Watcher}, undefined, Inner),
            NInner
        end,
        Host,
        nats_gateway_kv_kept:find(Identity, Topic)
    );
continue_watchers(_, Host) ->
    Host.

pass_to_store({answer, no_responders}, _, Host) ->
    {no_responders, Host};
pass_to_store(Action, ReplyTopic, Host = #host{kv = none}) ->
    #host{settings = Settings, broker = #broker{max_packet = MaxPacket}} = Host,
    #settings{store = {Login, ServerId}, secret = Secret, identity = Identity} = Settings,
    Session = nats_gateway_kv_session:new(#{
        client => self(),
        identity => Identity,
        store => nats_gateway_mqtt_kv:new(Login, #{secret => Secret, max_packet => MaxPacket}),
        leader => ServerId,
        max_consumers => ?MAX_WATCHERS
    }),
    pass_to_store(Action, ReplyTopic, Host#host{kv = Session});
pass_to_store(Action, ReplyTopic, Host = #host{kv = Session}) ->
    case nats_gateway_kv_session:submit(Action, ReplyTopic, Session) of
        ok -> {pass, Host};
        gone -> pass_to_store(Action, ReplyTopic, Host#host{kv = none})
    end.

%% -------------------------------------------------------------------------------------------
%% The end

-spec disconnect(term(), host()) -> ok.
disconnect(Reason, Host = #host{client = Client, presence = Presence, kv = Kv}) ->
    _ = Kv =/= none andalso end_store(Reason, Kv, Host),
    nats_gateway_mqtt_client:stop(nats_gateway_mqtt_presence:disconnect_reason(Presence), Client).

end_store(login_again, Kv, _) ->
    nats_gateway_kv_session:stop(Kv);
end_store(_, Kv, #host{keys = Keys}) ->
    nats_gateway_kv_session:leave(nats_gateway_mqtt_keys:plain_filters(Keys), Kv).

closed(Ending, _, Out, Host = #host{phase = login, upstream = Upstream}) ->
    ok = log_no_login(Ending, Upstream),
    {[{refused, upstream_lost} | Out], lost_unless_fault(Ending, Host)};
%% The probe may have caused the end, so the next client does not probe.
closed(Ending, Blame, Out, Host = #host{phase = probe, upstream = Upstream}) ->
    ok = log(Ending),
    ok = report_hangup(Blame, Host),
    ok = nats_gateway_upstream:probed(hung_up, Upstream),
    {[{refused, upstream_lost} | Out], lost(Host)};
closed(Ending, Blame, Out, Host = #host{phase = open}) ->
    ok = log(Ending),
    ok = report_hangup(Blame, Host),
    {[{close, close_reason(Ending)} | Out], lost_unless_fault(Ending, Host)}.

close_reason({disconnect, Reason, _}) -> nats_gateway_mqtt_reason:disconnect(Reason);
close_reason(_) -> upstream_lost.

log_no_login({fault, old_version}, Upstream) ->
    Details = #{reason => <<"it does not speak MQTT 5">>},
    nats_gateway_upstream:refused(old_version, Details, Upstream);
log_no_login({fault, Reason}, Upstream) ->
    nats_gateway_upstream:refused(Reason, #{reason => Reason}, Upstream);
log_no_login(Ending, Upstream) when Ending =:= no_answer; Ending =:= closed ->
    nats_gateway_upstream:refused(Ending, #{reason => Ending}, Upstream);
log_no_login(_, _) ->
    ok.

log({disconnect, Reason, Properties}) ->
    ?LOG_INFO((details(Reason, Properties))#{msg => upstream_disconnect});
log({fault, Reason}) ->
    ?LOG_WARNING(#{msg => upstream_protocol_error, reason => Reason});
log(does_not_read) ->
    ?LOG_WARNING(#{msg => upstream_does_not_read});
log(_) ->
    ok.

report_hangup(none, _) ->
    ok;
report_hangup({Evidence, Suspect}, #host{hangups_key = Key, upstream = Upstream}) ->
    nats_gateway_upstream:hung_up(Key, Evidence, Suspect, Upstream).

%% A broker that breaks the protocol is reachable.
lost_unless_fault({fault, _}, Host) -> ended(Host);
lost_unless_fault(_, Host) -> lost(Host).

lost(Host = #host{upstream = Upstream}) ->
    ok = nats_gateway_upstream:lost(Upstream),
    ended(Host).

ended(Host) -> Host#host{phase = closed, probe = undefined, waiting = none}.
