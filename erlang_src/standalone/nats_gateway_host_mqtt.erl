%% The standalone host: logs in to an upstream MQTT 5 broker, one connection per NATS client,
%% living in the process of the client.
%%
%% How NATS is put into MQTT 5:
%% - Every key is a SUBSCRIBE of its own with a Subscription Identifier of its own, so that each
%%   copy says which key it is for, also where filters overlap. Identifiers are not used again:
%%   what comes late for a dropped one is recognized and dropped.
%% - Where the fate of a message must be known it is published with QoS 1 (PUBACK 0x10: nobody;
%%   0x80 and above: denied).
%% The rest is in nats_gateway_mqtt_mapping (messages) and nats_gateway_mqtt_login (names).
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

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").
-include_lib("kernel/include/logger.hrl").

%% Answers to come, by packet identifier.
-type request() ::
    {confirm, Index :: pos_integer(), NoResponders :: boolean()}
    | {request, Subject :: binary(), ReplyTo :: binary()}
    | {subscribe, nats_gateway_host:key(), Id :: pos_integer(), Confirm :: boolean() | again}
    | {unsubscribe, nats_gateway_host:key(), Id :: pos_integer()}
    %% it is subscribed anew right after
    | resubscribe.

%% A packet whose identifier is given when it is sent.
-type item() :: {nats_gateway_mqtt_nif:packet(), request() | none}.

%% Subscriptions that are made again: those to come, but for those that were ended meanwhile, the answers
%% that are missing, those refused.
-record(again, {
    keys :: [nats_gateway_host:key()],
    ended = #{} :: #{nats_gateway_host:key() => []},
    options :: #{confirm := boolean(), no_local := boolean()},
    asked = 0 :: non_neg_integer(),
    refused = [] :: [{nats_gateway_host:key(), nats_gateway_host:refusal()}]
}).

-type waiting() ::
    none
    | {confirm, Left :: pos_integer(), [{pos_integer(), nats_gateway_host:rejection()}]}
    %% until the broker has taken more of what it was given
    | ready
    | subscribe
    | #again{}
    %% until the queue is empty
    | barrier
    %% until that many PINGRESP have come and no answer is missing, and then so many times again;
    %% `moment': the next PINGREQ has to wait for a moment
    | {barrier, Pings :: pos_integer() | moment, Again :: 0 | 1}.

%% What the length of a packet can say, and the fixed header with it.
-define(MAX_PACKET, 268435460).
%% More than a packet has besides its payload and headers.
-define(REST_OF_PACKET, 262144).

-record(host, {
    socket :: undefined | nats_gateway_transport:socket(),
    upstream :: nats_gateway_upstream:upstream(),
    max_control_line :: pos_integer(),
    phase = login :: login | probe | open | closed,
    session :: nats_gateway_host:session(),
    %% of this gateway, since its start
    secret :: binary(),
    %% of the login timeout or the next keepalive tick
    timer :: undefined | reference(),
    keepalive :: pos_integer(),
    input :: nats_gateway_mqtt_input:input(),
    %% what the broker takes
    quota = 65535 :: non_neg_integer(),
    max_sent = ?MAX_PACKET :: pos_integer(),
    max_qos = 1 :: 0 | 1,
    wildcards = true :: boolean(),
    shared = true :: boolean(),
    identifiers = true :: boolean(),
    %% where the broker is not to be trusted
    probe :: undefined | nats_gateway_probe:probe(),
    quirks = [] :: [nats_gateway_probe:quirk()],
    %% of groups, for copies that do not say for which one they are
    turn = 0 :: non_neg_integer(),
    max_levels :: infinity | pos_integer(),
    retain_handling :: 0 | 2,
    %% requests without an answer, and what waits behind the broker's Receive Maximum
    requests = #{} :: #{1..65535 => request()},
    next_packet_id = 1 :: 1..65535,
    queue = queue:new() :: queue:queue(item()),
    %% in the socket
    backlog = nats_gateway_backlog:new() :: nats_gateway_backlog:backlog(),
    looking = false :: false | reference(),
    %% nothing can be sent any more; the end comes as a message
    broken = false :: boolean(),
    waiting = none :: waiting(),
    %% subscriptions by key and by identifier
    keys = #{} :: #{nats_gateway_host:key() => pos_integer()},
    ids = #{} :: #{pos_integer() => nats_gateway_host:key()},
    next_id = 1 :: pos_integer(),
    %% anything to be processed was sent since the last barrier
    unflushed = false :: boolean(),
    %% where the broker cannot take much of what comes back to its client
    echoes = none :: none | nats_gateway_echoes:echoes(),
    pings_sent = 0 :: non_neg_integer(),
    pings_answered = 0 :: non_neg_integer(),
    %% since the last keepalive tick; `probed': that tick already waited for a PINGRESP
    sent = false :: boolean(),
    heard = false :: boolean(),
    probed = false :: boolean(),
    %% messages that were larger than the broker's Maximum Packet Size
    dropped = 0 :: non_neg_integer(),
    %% who it is that a broker hangs up on, what is not to be sent again for it, and what may be the
    %% cause if the broker hangs up now
    hangups_key :: nats_gateway_hangups:key(),
    refused = #{} :: #{nats_gateway_hangups:packet() => true},
    suspects = none :: suspects()
}).

%% A topic, and how it is called in the log.
-type suspect() :: {nats_gateway_hangups:packet(), Topic :: binary()}.

%% Mostly it is only known whether there is but one since the last barrier. For a client that was
%% hung up on, each topic is marked by the PINGREQ behind it, until that is answered.
-type suspects() ::
    none
    | {one, suspect()}
    | many
    | {watched, Cleared :: #{nats_gateway_hangups:packet() => true},
        queue:queue({Pings :: pos_integer(), suspect()})}.

-type host() :: #host{}.

%% How long a closing connection may take to hand over what is under way.
-define(LINGER, 5000).

%% For the answers of a broker that is tried out, and for messages that come after them.
-define(PROBE_MS, 2000).
-define(PROBE_LATE_MS, 300).

-define(SEGMENT, 1460).

%% Topics of a watched client that were found to be harmless.
-define(MAX_CLEARED, 1000).
%% Bytes of a topic in the log.
-define(LOGGED_TOPIC, 128).

%% Of 65535 packet identifiers: so that a free one is soon found, so that a broker's answers to all of
%% them come soon, and so that they are encoded within the time of one NIF call.
-define(MAX_REQUESTS, 4096).
%% What may wait in the socket before the client's input does. A broker that reads takes it between two
%% looks.
-define(MAX_BACKLOG, 1048576).
%% Between two looks at the socket: while the client waits for it, and to see whether it moves at all.
-define(LOOK_SOON_MS, 5).
-define(LOOK_MS, 1000).
%% For EMQX, to see that there is nothing to read (nats_gateway_echoes).
-define(PING_AGAIN_MS, 2).
%% Of 2^28 - 1.
-define(MAX_ID, 268435455).

%% Reason codes.
-define(MALFORMED_PACKET, 16#81).
-define(PROTOCOL_ERROR, 16#82).
-define(PACKET_TOO_LARGE, 16#95).

%% -------------------------------------------------------------------------------------------
%% Login

-spec prepare(nats_gateway_host:client()) ->
    {ok, nats_gateway_host:client()} | {error, upstream_lost}.
prepare(Client = #{config := #{upstream := Upstream, max_control_line := MaxControlLine}}) ->
    case nats_gateway_upstream:available(Upstream) of
        {true, Facts} -> {ok, maps:merge(Client, max_payload(Facts, MaxControlLine))};
        false -> {error, upstream_lost}
    end.

%% Of the broker's packets something is left for subject and reply subject, which together fit into
%% a control line, and for what headers need besides their bytes.
max_payload(#{maximum_packet_size := Max}, MaxControlLine) ->
    #{max_payload => Max - min(MaxControlLine + 64, Max div 2)};
max_payload(#{}, _) ->
    #{}.

-spec connect(nats_gateway_host:client()) ->
    {wait, host()} | {error, nats_gateway_host:close_reason()}.
connect(Client = #{config := Config}) ->
    #{upstream := Upstream, max_payload_size := MaxPayload} = Config,
    #{connect_timeout := Timeout, keepalive := KeepAlive, max_topic_levels := MaxLevels} = Upstream,
    case nats_gateway_mqtt_login:credentials(Client) of
        {ok, Session, Username, Password} ->
            Key = hangups_key(Username, Client),
            {Refused, Suspects} = learned(Key, Upstream),
            MaxReceived = max_received(maps:get(max_packet_size, Upstream), MaxPayload),
            Host = #host{
                upstream = Upstream,
                max_control_line = maps:get(max_control_line, Config),
                session = Session,
                secret = maps:get(secret, Config),
                keepalive = KeepAlive,
                input = nats_gateway_mqtt_input:new(MaxReceived),
                max_levels = MaxLevels,
                retain_handling = retain_handling(Config),
                hangups_key = Key,
                refused = Refused,
                suspects = Suspects
            },
            #{clientid := ClientId} = Session,
            %% What the broker was told that it may not send would be lost without a trace.
            Connect = {connect, ClientId, Username, Password, KeepAlive, undefined, undefined},
            Deadline = erlang:monotonic_time(millisecond) + Timeout,
            case introduce(Upstream, Timeout, nats_gateway_mqtt_nif:encode([Connect])) of
                {ok, Socket} ->
                    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
                    {wait, start_timer(Left, Host#host{socket = Socket})};
                {error, _} ->
                    {error, upstream_lost}
            end;
        error ->
            {error, authorization_violation}
    end.

%% Headers are part of a NATS payload; as properties they take up to four times as much
%% (percent-encoded, and once more readable).
max_received(default, MaxPayload) -> min(4 * MaxPayload + ?REST_OF_PACKET, ?MAX_ID);
max_received(Max, _) -> Max.

hangups_key(Username, #{peername := {Address, _}, connect := Fields}) ->
    nats_gateway_hangups:key(Address, Username, maps:get(name, Fields, undefined)).

learned(Key, Upstream) ->
    case nats_gateway_upstream:learned(Key, Upstream) of
        #{refused := Refused, watch := true} -> {Refused, {watched, #{}, queue:new()}};
        #{refused := Refused} -> {Refused, none};
        none -> {#{}, none}
    end.

introduce(Upstream, Timeout, Connect) ->
    case nats_gateway_upstream:open(Upstream, Timeout) of
        {ok, Socket} -> send_connect(Socket, Connect);
        {error, Reason} -> {error, Reason}
    end.

send_connect(Socket, Connect) ->
    case nats_gateway_transport:send(Socket, Connect) of
        ok ->
            case nats_gateway_transport:activate(Socket) of
                ok -> {ok, Socket};
                Error -> abort(Socket, Error)
            end;
        Error ->
            abort(Socket, Error)
    end.

retain_handling(#{retained_on_subscribe := true}) -> 0;
retain_handling(#{}) -> 2.

%% -------------------------------------------------------------------------------------------
%% Publish

%% Behind is a broker that has not answered so many requests that others wait, or that does not read.
-spec ready(host()) -> ok | {wait, host()}.
ready(Host = #host{backlog = Backlog}) ->
    case is_ready(?MAX_BACKLOG, Host) of
        true ->
            ok;
        false ->
            Waiting = Host#host{waiting = ready},
            case nats_gateway_backlog:bytes(Backlog) > ?MAX_BACKLOG of
                true -> {wait, look_in(?LOOK_SOON_MS, Waiting)};
                false -> {wait, Waiting}
            end
    end.

is_ready(MaxBacklog, #host{queue = Queue, backlog = Backlog, phase = Phase}) ->
    Phase =:= closed orelse
        (queue:is_empty(Queue) andalso nats_gateway_backlog:bytes(Backlog) =< MaxBacklog).

%% After that there is room for many: not for one more with each answer.
is_ready_again(Host = #host{requests = Requests}) ->
    map_size(Requests) =< ?MAX_REQUESTS div 2 andalso is_ready(?MAX_BACKLOG div 2, Host).

-spec publish([#pub{}], Options, host()) ->
    {ok, [{pos_integer(), nats_gateway_host:rejection()}], host()}
    | {wait, host()}
    | {stop, nats_gateway_host:close_reason(), host()}
when
    Options :: #{confirm := boolean(), no_responders := boolean()}.
publish(_, _, Host = #host{phase = closed}) ->
    {stop, upstream_lost, Host};
publish(Pubs, Options, Host) ->
    %% Strings are looked at once, by the codec; only where it refuses one, each is looked at here.
    try
        publish(Pubs, Options, trust, Host)
    catch
        error:badarg -> publish(Pubs, Options, check, Host)
    end.

publish(Pubs, Options = #{confirm := Confirm}, Strings, Host) ->
    {Items, Rejections, NHost} = items(Pubs, 1, Options, Strings, Host, [], []),
    Sent = dispatch_suspects(publish, Items, NHost),
    case confirmations(Confirm, Items) of
        0 -> {ok, Rejections, Sent};
        Left -> {wait, Sent#host{waiting = {confirm, Left, Rejections}}}
    end.

confirmations(false, _) -> 0;
confirmations(true, Items) -> length([Index || {_, {confirm, Index, _}} <- Items]).

-spec items([#pub{}], pos_integer(), map(), trust | check, host(), [item()], [
    {pos_integer(), nats_gateway_host:rejection()}
]) -> {[item()], [{pos_integer(), nats_gateway_host:rejection()}], host()}.
items([], _, _, _, Host, Items, Rejections) ->
    {lists:reverse(Items), lists:reverse(Rejections), Host};
items([Pub | Pubs], Index, Options, Strings, Host, Items, Rejections) ->
    #{confirm := Confirm, no_responders := NoResponders} = Options,
    #host{max_qos = MaxQos, max_sent = MaxSent} = Host,
    #pub{subject = Subject, topic = Topic, reply_to = ReplyTo, headers = Block} = Pub,
    Ask = NoResponders andalso ReplyTo =/= undefined,
    case routable(Topic, Strings, Host) of
        unroutable when Ask ->
            NRejections = [{Index, no_responders} | Rejections],
            items(Pubs, Index + 1, Options, Strings, Host, Items, NRejections);
        unroutable ->
            items(Pubs, Index + 1, Options, Strings, Host, Items, Rejections);
        denied ->
            NRejections = [{Index, denied} | Rejections],
            items(Pubs, Index + 1, Options, Strings, Host, Items, NRejections);
        ok ->
            Request =
                if
                    MaxQos =:= 0 -> none;
                    Confirm -> {confirm, Index, Ask};
                    Ask -> {request, Subject, ReplyTo};
                    true -> none
                end,
            QoS =
                case Request of
                    none -> 0;
                    _ -> 1
                end,
            Packet = nats_gateway_mqtt_mapping:publish(Pub, QoS, Strings, Host#host.secret),
            case nats_gateway_mqtt_mapping:fits(Packet, Block, MaxSent) of
                true ->
                    NItems = [{Packet, Request} | Items],
                    items(Pubs, Index + 1, Options, Strings, Host, NItems, Rejections);
                false ->
                    NRejections = [{Index, denied} | Rejections],
                    items(Pubs, Index + 1, Options, Strings, dropped(Host), Items, NRejections)
            end
    end.

routable(Topic, Strings, Host) ->
    case nats_gateway_mqtt_mapping:is_unroutable(Topic, Strings) of
        true -> unroutable;
        false -> tolerable(publish, nats_gateway_mqtt_mapping:name(Topic), Host)
    end.

%% What the broker would end the connection for.
tolerable(Kind, Name, Host) ->
    case is_too_deep(Name, Host) orelse is_refused(Kind, Name, Host) of
        true -> denied;
        false -> ok
    end.

is_too_deep(Name, #host{max_levels = Max}) -> nats_gateway_host:is_too_deep(Name, Max).

is_refused(_, _, #host{refused = Refused}) when map_size(Refused) =:= 0 -> false;
is_refused(Kind, Name, #host{refused = Refused}) ->
    is_map_key(nats_gateway_hangups:packet(Kind, Name), Refused).

dropped(Host = #host{dropped = Dropped, max_sent = Max}) ->
    Dropped =:= 0 andalso
        ?LOG_WARNING(#{msg => message_larger_than_upstream_takes, maximum_packet_size => Max}),
    Host#host{dropped = Dropped + 1}.

%% -------------------------------------------------------------------------------------------
%% Subscribe

-spec subscribe(nats_gateway_host:key(), Options, host()) ->
    {ok | nats_gateway_host:refusal(), host()} | {wait, host()} | {stop, upstream_lost, host()}
when
    Options :: #{confirm := boolean(), no_local := boolean()}.
subscribe(_, _, Host = #host{phase = closed}) ->
    {stop, upstream_lost, Host};
subscribe(Key, Options, Host) ->
    case available(Key, Host) of
        ok -> ask(Key, Options, Host);
        Refusal -> {Refusal, Host}
    end.

ask(Key, Options = #{confirm := Confirm}, Host) ->
    {Packet, Id, NHost} = subscription(Key, Options, Host),
    try dispatch_suspects(subscribe, [{Packet, {subscribe, Key, Id, Confirm}}], NHost) of
        Sent when Confirm -> {wait, Sent#host{waiting = subscribe}};
        Sent -> {ok, Sent}
    catch
        %% No filter that could be sent.
        error:badarg -> {denied, Host}
    end.

subscription(Key = {Share, _}, #{confirm := Confirm, no_local := NoLocal}, Host) ->
    {Id, NHost} = subscription_id(Key, Host),
    QoS =
        case Confirm of
            true -> 1;
            false -> 0
        end,
    %% No Local on a shared subscription is a protocol error (3.8.3.1).
    Filter = {
        filter(Key), QoS, NoLocal andalso Share =:= undefined, Host#host.retain_handling
    },
    Announced =
        case Host#host.identifiers of
            true -> Id;
            false -> undefined
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
    %% Of many keys there may be none in the first part that the broker has to be asked for.
    case complete(again(#again{keys = Keys, options = Options}, Host)) of
        {[{subscribed_again, Refused}], NHost} -> {ok, Refused, NHost};
        {[], NHost} -> {wait, NHost}
    end.

%% No more at once than the broker may leave without an answer.
again(Again = #again{keys = Keys}, Host) ->
    {Now, Later} = lists:split(min(?MAX_REQUESTS div 2, length(Keys)), Keys),
    {Items, NAgain, NHost} = lists:foldl(fun ask_again/2, {[], Again#again{keys = Later}, Host}, Now),
    dispatch_suspects(subscribe, lists:reverse(Items), NHost#host{waiting = NAgain}).

ask_again(Key, {Items, Again = #again{ended = Ended}, Host}) when is_map_key(Key, Ended) ->
    {Items, Again, Host};
%% A shared subscription has no option that could change.
ask_again(Key = {Share, _}, {Items, Again, Host = #host{keys = Keys}}) when
    Share =/= undefined, is_map_key(Key, Keys)
->
    {Items, Again, Host};
ask_again(Key, {Items, Again = #again{options = Options, asked = Asked, refused = Refused}, Host}) ->
    case available(Key, Host) of
        ok ->
            {Packet, Id, NHost} = subscription(Key, Options, Host),
            Subscribe = {Packet, {subscribe, Key, Id, again}},
            {[Subscribe | instead(Key, Host, Items)], Again#again{asked = Asked + 1}, NHost};
        Refusal ->
            {Items, Again#again{refused = [{Key, Refusal} | Refused]}, Host}
    end.

%% To ask all the same would end the connection.
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

is_shared_available({Share, _}, #host{shared = Shared}) -> Shared orelse Share =:= undefined.

is_filter_available(_, #host{wildcards = true}) -> true;
is_filter_available(Filter, _) -> binary:match(Filter, [<<"+">>, <<"#">>]) =:= nomatch.

%% The packet that it is in has at most 16 bytes more, with the longest identifier.
filter_fits(Filter, #host{max_sent = Max}) -> byte_size(Filter) + 16 =< Max.

filter({undefined, Filter}) -> Filter;
filter({Share, Filter}) -> <<"$share/", Share/binary, $/, Filter/binary>>.

%% A key that is subscribed again, with other options, keeps its identifier. Mosquitto changes
%% only the QoS of a subscription that it has, so it must not have it.
instead(Key, #host{keys = Keys}, Items) when is_map_key(Key, Keys) ->
    [drop(Key, resubscribe) | Items];
instead(_, _, Items) -> Items.

subscription_id(Key, Host = #host{keys = Keys, ids = Ids, next_id = Next}) ->
    case Keys of
        #{Key := Id} ->
            {Id, Host};
        #{} ->
            Id = free(Next, Ids, ?MAX_ID),
            {Id, Host#host{
                keys = Keys#{Key => Id},
                ids = Ids#{Id => Key},
                next_id = following(Id, ?MAX_ID),
                echoes = subscribed_echoes(Key, Host)
            }}
    end.

subscribed_echoes(_, #host{echoes = none}) -> none;
subscribed_echoes({_, Filter}, #host{echoes = Echoes}) ->
    nats_gateway_echoes:subscribed(Filter, Echoes).

unsubscribed_echoes(_, #host{echoes = none}) -> none;
unsubscribed_echoes({_, Filter}, #host{echoes = Echoes}) ->
    nats_gateway_echoes:unsubscribed(Filter, Echoes).

%% The identifier is known until the broker confirms: what it has sent before is still delivered.
-spec unsubscribe(nats_gateway_host:key(), host()) -> host().
unsubscribe(_, Host = #host{phase = closed}) ->
    Host;
unsubscribe(Key, Host = #host{waiting = Again = #again{ended = Ended}}) ->
    %% A message has ended it, maybe before its turn.
    leave(Key, Host#host{waiting = Again#again{ended = Ended#{Key => []}}});
unsubscribe(Key, Host) ->
    leave(Key, Host).

leave(Key, Host = #host{keys = Keys}) ->
    case maps:take(Key, Keys) of
        {Id, NKeys} ->
            dispatch([drop(Key, {unsubscribe, Key, Id})], Host#host{
                keys = NKeys, echoes = unsubscribed_echoes(Key, Host)
            });
        error ->
            Host
    end.

drop(Key, Request) -> {#unsubscribe{filters = [filter(Key)]}, Request}.

forget(Key, Id, Host = #host{keys = Keys, ids = Ids}) ->
    Host#host{
        keys = maps:remove(Key, Keys),
        ids = maps:remove(Id, Ids),
        echoes = unsubscribed_echoes(Key, Host)
    }.

%% -------------------------------------------------------------------------------------------
%% Barrier

%% The broker handles the packets of a connection in order, so all was seen when a PINGREQ that
%% was sent last is answered.
-spec barrier(own | all, host()) -> {ok, host()} | {wait, host()}.
barrier(_, Host = #host{phase = closed}) ->
    {wait, Host};
barrier(own, Host = #host{unflushed = false, requests = Requests}) when map_size(Requests) =:= 0 ->
    {ok, Host};
barrier(_, Host = #host{queue = Queue}) ->
    case queue:is_empty(Queue) of
        true -> {wait, fence(answers_again(Host), Host)};
        false -> {wait, Host#host{waiting = barrier}}
    end.

%% A broker that has answered has put the messages into the client's queue at least: they come before
%% the next answer. EMQX 6 looks at the queue only when there is nothing to read, so the next PINGREQ
%% waits for a moment if there may be any (nats_gateway_echoes).
answers_again(#host{quirks = Quirks}) ->
    case lists:member(pong_overtakes, Quirks) of
        true -> 1;
        false -> 0
    end.

fence(Again, Host) ->
    NHost = #host{pings_sent = Pings} = ping(Host#host{unflushed = false}),
    NHost#host{waiting = {barrier, Pings, Again}}.

ping(Host) -> send(nats_gateway_mqtt_nif:encode([pingreq]), pinged(Host)).

pinged(Host = #host{pings_sent = Pings, echoes = none}) ->
    Host#host{pings_sent = Pings + 1};
pinged(Host = #host{pings_sent = Pings, echoes = Echoes}) ->
    Host#host{pings_sent = Pings + 1, echoes = nats_gateway_echoes:pinged(Pings + 1, Echoes)}.

%% -------------------------------------------------------------------------------------------
%% What the broker may hang up on (nats_gateway_hangups)

dispatch_suspects(Kind, Items, Host = #host{suspects = {watched, _, _}}) ->
    ok = check(Items),
    watch(Kind, Items, Host);
dispatch_suspects(Kind, Items, Host = #host{suspects = Suspects}) ->
    case dispatch(Items, Host) of
        %% What the broker does not get is no reason for its end.
        Broken = #host{broken = true} -> Broken;
        Sent -> Sent#host{suspects = suspects(Suspects, Kind, Items)}
    end.

suspects(Suspects, _, []) -> Suspects;
suspects(none, publish, [{Packet, _}]) -> {one, suspect(publish, Packet)};
suspects(none, subscribe, [{Packet, _}]) -> {one, suspect(subscribe, Packet)};
suspects(_, _, _) -> many.

suspect(Kind, Packet) ->
    Name = topic_of(Packet),
    {nats_gateway_hangups:packet(Kind, Name), label(Name)}.

packet({Packet, _}) -> Packet.

topic_of(#publish{topic = Name}) -> Name;
topic_of(#subscribe{filters = [{Filter, _, _, _}]}) -> Filter;
topic_of(#unsubscribe{filters = [Filter]}) -> Filter.

label(Name) ->
    case unicode:characters_to_binary(binary:part(Name, 0, min(?LOGGED_TOPIC, byte_size(Name)))) of
        {_, Whole, _} -> Whole;
        Whole -> binary:copy(Whole)
    end.

%% Where something waits to be sent, a PINGREQ would overtake it and say nothing.
watch(_, [], Host) ->
    Host;
watch(Kind, [Item | Items], Host = #host{suspects = {watched, Cleared, _}}) ->
    Suspect = {Packet, _} = suspect(Kind, packet(Item)),
    case dispatch([Item], Host) of
        Broken = #host{broken = true} ->
            Broken;
        Sent = #host{queue = Queue} ->
            case is_map_key(Packet, Cleared) orelse not queue:is_empty(Queue) of
                true -> watch(Kind, Items, Sent);
                false -> watch(Kind, Items, mark(Suspect, ping(Sent)))
            end
    end.

mark(Suspect, Host = #host{suspects = {watched, Cleared, Marks}, pings_sent = Pings}) ->
    Host#host{suspects = {watched, Cleared, queue:in({Pings, Suspect}, Marks)}}.

ping_answered(Host = #host{pings_answered = Answered, echoes = none}) ->
    cleared(Host#host{pings_answered = Answered + 1});
ping_answered(Host = #host{pings_answered = Answered, echoes = Echoes}) ->
    {Next, NEchoes} = nats_gateway_echoes:answered(Answered + 1, Echoes),
    NHost = cleared(Host#host{pings_answered = Answered + 1, echoes = NEchoes}),
    case Next of
        ok ->
            NHost;
        ping_soon ->
            ping_soon(NHost)
    end.

ping_soon(Host = #host{socket = Socket}) ->
    _ = erlang:send_after(?PING_AGAIN_MS, self(), {?MODULE, Socket, ping_again}),
    Host.

%% What waits for it: a barrier, messages, or both.
ping_again(Host = #host{waiting = {barrier, moment, _}, echoes = Echoes}) ->
    {_, NEchoes} = nats_gateway_echoes:ping_again(Echoes),
    fence(0, Host#host{echoes = NEchoes});
ping_again(Host = #host{echoes = Echoes}) ->
    case nats_gateway_echoes:ping_again(Echoes) of
        {ok, _} -> Host;
        {ping, NEchoes} -> ping(Host#host{echoes = NEchoes})
    end.

%% A PINGRESP: what was sent before its PINGREQ is harmless.
cleared(Host = #host{suspects = {watched, Cleared, Marks}, pings_answered = Answered}) ->
    {NCleared, Left} = cleared(Answered, Cleared, Marks),
    case map_size(NCleared) > ?MAX_CLEARED of
        true -> Host#host{suspects = many};
        false -> Host#host{suspects = {watched, NCleared, Left}}
    end;
cleared(Host) ->
    Host.

cleared(Answered, Cleared, Marks) ->
    case queue:peek(Marks) of
        {value, {Pings, {Packet, _}}} when Pings =< Answered ->
            cleared(Answered, Cleared#{Packet => true}, queue:drop(Marks));
        _ ->
            {Cleared, Marks}
    end.

%% The broker has ended the connection, and says whether because of a packet.
report_hangup(Evidence, Host = #host{suspects = Suspects}) ->
    #host{hangups_key = Key, upstream = Upstream} = Host,
    ok =
        case Suspects of
            {one, Suspect} -> nats_gateway_upstream:hung_up(Key, Evidence, Suspect, Upstream);
            many -> nats_gateway_upstream:hung_up(Key, Evidence, unknown, Upstream);
            {watched, _, Marks} ->
                case queue:peek(Marks) of
                    {value, {_, Suspect}} when Evidence =:= closed ->
                        nats_gateway_upstream:hung_up(Key, closed_again, Suspect, Upstream);
                    {value, {_, Suspect}} ->
                        nats_gateway_upstream:hung_up(Key, Evidence, Suspect, Upstream);
                    empty ->
                        ok
                end;
            none ->
                ok
        end,
    Host#host{suspects = none}.

%% -------------------------------------------------------------------------------------------
%% Sending

%% In order: what follows something that has to wait, waits too.
dispatch(Items, Host = #host{queue = Queue}) ->
    case queue:is_empty(Queue) of
        true ->
            {Packets, Rest, NHost} = take(Items, [], Host),
            ok = check(Rest),
            transmit(Packets, NHost#host{queue = queue:from_list(Rest)});
        false ->
            ok = check(Items),
            Host#host{queue = lists:foldl(fun queue:in/2, Queue, Items)}
    end.

%% What is queued must not be found to be impossible later.
check([]) ->
    ok;
check(Items) ->
    _ = nats_gateway_mqtt_nif:encode([numbered(Packet, 1) || {Packet, _} <- Items]),
    ok.

%% The packets that may go now, latest first.
take([{Packet, none} | Items], Packets, Host = #host{echoes = none}) ->
    take(Items, [Packet | Packets], Host);
take([{Packet, Request} | Rest] = Items, Packets, Host) ->
    case may_send(Request, Host) andalso echo(Packet, Host) of
        false ->
            {Packets, Items, Host};
        {wait, Waiting} ->
            {Packets, Items, Waiting};
        {ping, Waiting} ->
            {[pingreq | Packets], Items, pinged(Waiting)};
        {send, Echoing} ->
            {Id, NHost} = number(Request, Echoing),
            take(Rest, [numbered(Packet, Id) | Packets], NHost)
    end;
take([], Packets, Host) ->
    {Packets, [], Host}.

%% The same of the queue.
take_queued(Packets, Host = #host{queue = Queue}) ->
    case queue:out(Queue) of
        {{value, Item}, Rest} ->
            case take([Item], Packets, Host) of
                {NPackets, [], NHost} -> take_queued(NPackets, NHost#host{queue = Rest});
                {NPackets, _, NHost} -> {NPackets, NHost}
            end;
        {empty, _} ->
            {Packets, Host}
    end.

%% Whether there is room for what comes back of a message.
echo(#publish{topic = Topic}, Host = #host{echoes = Echoes}) when
    Echoes =/= none
->
    {Verdict, NEchoes} = nats_gateway_echoes:publish(Topic, Echoes),
    {Verdict, Host#host{echoes = NEchoes}};
echo(_, Host) ->
    {send, Host}.

may_send(none, _) -> true;
may_send(Request, #host{quota = Quota, requests = Requests}) ->
    map_size(Requests) < ?MAX_REQUESTS andalso (Quota > 0 orelse not is_publish(Request)).

is_publish({confirm, _, _}) -> true;
is_publish({request, _, _}) -> true;
is_publish(_) -> false.

number(none, Host) ->
    {none, Host};
number(Request, Host = #host{requests = Requests, next_packet_id = Next, quota = Quota}) ->
    Id = free(Next, Requests, 65535),
    NQuota =
        case is_publish(Request) of
            true -> Quota - 1;
            false -> Quota
        end,
    {Id, Host#host{
        requests = Requests#{Id => Request}, next_packet_id = following(Id, 65535), quota = NQuota
    }}.

free(Id, Taken, Max) when is_map_key(Id, Taken) -> free(following(Id, Max), Taken, Max);
free(Id, _, _) -> Id.

following(Max, Max) -> 1;
following(Id, _) -> Id + 1.

numbered(Packet, none) -> Packet;
numbered(Packet = #publish{qos = 0}, _) -> Packet;
numbered(Packet = #publish{}, Id) -> Packet#publish{packet_id = Id};
numbered(Packet = #subscribe{}, Id) -> Packet#subscribe{packet_id = Id};
numbered(Packet = #unsubscribe{}, Id) -> Packet#unsubscribe{packet_id = Id}.

transmit([], Host) ->
    Host;
transmit(Packets, Host) ->
    send(nats_gateway_mqtt_nif:encode(lists:reverse(Packets)), Host#host{unflushed = true}).

%% A socket that takes nothing any more has ended, but what the broker has said before that may be in
%% the mailbox still: an answer, a message, why it hangs up. So the end has its turn behind that.
send(_, Host = #host{broken = true}) ->
    Host;
send(Bytes, Host = #host{socket = Socket, backlog = Backlog}) ->
    Sent =
        case nats_gateway_transport:send(Socket, Bytes) of
            ok -> nats_gateway_backlog:sent(iolist_size(Bytes), Socket, Backlog);
            Error -> Error
        end,
    case Sent of
        {ok, NBacklog} ->
            look_later(Host#host{sent = true, backlog = NBacklog});
        {error, _} ->
            self() ! {?MODULE, Socket, broken},
            Host#host{broken = true}
    end.

%% A socket does not say when what waits in it has left.
look_later(Host = #host{looking = false, backlog = Backlog}) ->
    case nats_gateway_backlog:bytes(Backlog) of
        0 -> Host;
        Bytes when Bytes > ?MAX_BACKLOG div 2 -> look_in(?LOOK_SOON_MS, Host);
        _ -> look_in(?LOOK_MS, Host)
    end;
look_later(Host) ->
    Host.

look_in(Milliseconds, Host) ->
    Look = make_ref(),
    _ = erlang:send_after(Milliseconds, self(), {?MODULE, Look, look}),
    Host#host{looking = Look}.

look(Host = #host{socket = Socket, backlog = Backlog}) ->
    case nats_gateway_backlog:look(Socket, Backlog) of
        {ok, NBacklog} ->
            complete(look_later(Host#host{looking = false, backlog = NBacklog}));
        {error, timeout} ->
            ?LOG_WARNING(#{msg => upstream_does_not_read}),
            hung_up(Host);
        {error, _} ->
            hung_up(Host)
    end.

%% -------------------------------------------------------------------------------------------
%% What the broker sends

-spec handle_info(term(), host()) -> {[nats_gateway_host:event()], host()} | ignore.
handle_info({?MODULE, Timer, timeout}, Host = #host{timer = Timer, phase = login}) ->
    ok = not_accepted(no_answer, #{reason => no_answer}, Host),
    lost(Host);
handle_info({?MODULE, Timer, timeout}, Host = #host{timer = Timer, phase = probe}) ->
    {Events, NHost} = probed(Host),
    settle([], Events, [], NHost);
handle_info({?MODULE, Timer, timeout}, Host = #host{timer = Timer, phase = open}) ->
    tick(Host);
handle_info({?MODULE, Socket, broken}, Host = #host{socket = Socket}) when Socket =/= undefined ->
    hung_up(Host);
handle_info({?MODULE, Socket, ping_again}, Host = #host{socket = Socket}) when
    Socket =/= undefined
->
    {[], ping_again(Host)};
handle_info({?MODULE, Look, look}, Host = #host{looking = Look}) ->
    look(Host);
handle_info({?MODULE, _, _}, _) ->
    ignore;
handle_info(_, #host{socket = undefined}) ->
    ignore;
handle_info(Message, Host = #host{socket = Socket}) ->
    case nats_gateway_transport:classify(Message, Socket) of
        {data, Bytes} ->
            %% Larger chunks are acknowledged anyway.
            _ = byte_size(Bytes) < ?SEGMENT andalso nats_gateway_transport:acknowledge(Socket),
            input(Bytes, Host#host{heard = true});
        passive ->
            case nats_gateway_transport:activate(Socket) of
                ok -> {[], Host};
                {error, _} -> lost(Host)
            end;
        closed ->
            hung_up(Host);
        {error, _} ->
            hung_up(Host);
        other ->
            ignore
    end.

input(Bytes, Host = #host{input = Input}) ->
    case nats_gateway_mqtt_input:feed(Bytes, Input) of
        {bytes, NBytes, NInput} -> decode(NBytes, [], [], [], Host#host{input = NInput});
        {more, NInput} -> {[], Host#host{input = NInput}}
    end.

%% Deliveries (of the current run), events and acknowledgements are collected latest first.
decode(Bytes, Deliveries, Events, Acks, Host = #host{input = Input}) ->
    case nats_gateway_mqtt_nif:decode(Bytes, nats_gateway_mqtt_input:max_size(Input)) of
        {ok, Packets, Rest, Need} ->
            case packets(Packets, Deliveries, Events, Acks, arrived(Packets, Host)) of
                {NDeliveries, NEvents, NAcks, NHost = #host{phase = Phase}} when
                    Need > 0; Phase =:= closed
                ->
                    settle(NDeliveries, NEvents, NAcks, keep(Rest, Need, NHost));
                {NDeliveries, NEvents, NAcks, NHost} ->
                    decode(Rest, NDeliveries, NEvents, NAcks, NHost)
            end;
        {error, Reason, Packets} ->
            case packets(Packets, Deliveries, Events, Acks, Host) of
                {NDeliveries, NEvents, NAcks, NHost = #host{phase = closed}} ->
                    settle(NDeliveries, NEvents, NAcks, NHost);
                {NDeliveries, NEvents, NAcks, NHost = #host{phase = open}} when
                    Reason =:= packet_too_large
                ->
                    Large = nats_gateway_mqtt_input:behind(length(Packets), Bytes),
                    too_large(Large, run(NDeliveries, NEvents), NAcks, NHost);
                {NDeliveries, NEvents, NAcks, NHost} ->
                    {NNEvents, Closed} = fault(Reason, run(NDeliveries, NEvents), NHost),
                    settle([], NNEvents, NAcks, Closed)
            end
    end.

arrived(_, Host = #host{echoes = none}) ->
    Host;
arrived(Packets, Host = #host{echoes = Echoes}) ->
    Count = length([publish || #publish{} <- Packets]),
    Host#host{echoes = nats_gateway_echoes:arrived(Count, Echoes)}.

%% A message that no client is sent. The broker gets its answer.
too_large(Bytes, Events, Acks, Host = #host{input = Input}) ->
    case nats_gateway_mqtt_input:large(Bytes) of
        {publish, Topic, Size, Id} ->
            ok = note_too_large(Topic, Size, Host),
            NEvents = [{undeliverable, 1} | Events],
            NAcks = [{puback, Id, 0} || Id =/= none] ++ Acks,
            case nats_gateway_mqtt_input:skip(Size, Bytes, Input) of
                {bytes, Rest, NInput} ->
                    decode(Rest, [], NEvents, NAcks, Host#host{input = NInput});
                {more, NInput} ->
                    settle([], NEvents, NAcks, Host#host{input = NInput})
            end;
        more ->
            settle([], Events, Acks, keep(Bytes, byte_size(Bytes) + 1, Host));
        other ->
            {NEvents, Closed} = fault(packet_too_large, Events, Host),
            settle([], NEvents, Acks, Closed)
    end.

note_too_large(Topic, Size, #host{upstream = Upstream, input = Input}) ->
    nats_gateway_upstream:note(too_large, #{
        msg => message_larger_than_max_packet_size,
        topic => label(Topic),
        size => Size,
        max_packet_size => nats_gateway_mqtt_input:max_size(Input)
    }, Upstream).

keep(Rest, Need, Host = #host{input = Input}) ->
    Host#host{input = nats_gateway_mqtt_input:keep(Rest, Need, Input)}.

run([], Events) -> Events;
run(Deliveries, Events) -> [{deliver, lists:reverse(Deliveries)} | Events].

packets([], Deliveries, Events, Acks, Host) ->
    {Deliveries, Events, Acks, Host};
packets([Packet | Packets], Deliveries, Events, Acks, Host = #host{phase = open}) ->
    case Packet of
        #publish{qos = 0} ->
            {NDeliveries, NHost} = deliver(Packet, Deliveries, Host),
            packets(Packets, NDeliveries, Events, Acks, NHost);
        #publish{qos = 1, packet_id = Id} ->
            {NDeliveries, NHost} = deliver(Packet, Deliveries, Host),
            packets(Packets, NDeliveries, Events, [{puback, Id, 0} | Acks], NHost);
        {puback, Id, Reason} ->
            {NEvents, NHost} = answer(Id, Reason, run(Deliveries, Events), Host),
            packets(Packets, [], NEvents, Acks, NHost);
        {suback, Id, [Reason]} ->
            {NEvents, NHost} = answer(Id, Reason, run(Deliveries, Events), Host),
            packets(Packets, [], NEvents, Acks, NHost);
        {unsuback, Id, [Reason]} ->
            {NEvents, NHost} = answer(Id, Reason, run(Deliveries, Events), Host),
            packets(Packets, [], NEvents, Acks, NHost);
        pingresp ->
            packets(Packets, Deliveries, Events, Acks, ping_answered(Host));
        {disconnect, Reason, Properties} ->
            ?LOG_INFO((details(Reason, Properties))#{msg => upstream_disconnect}),
            Reported =
                case nats_gateway_mqtt_reason:is_blame(Reason) of
                    true -> report_hangup(blamed, Host);
                    false -> Host
                end,
            {NEvents, NHost} = ended(
                nats_gateway_mqtt_reason:disconnect(Reason), run(Deliveries, Events), Reported
            ),
            {[], NEvents, Acks, NHost};
        {unreadable, undefined} ->
            packets(Packets, Deliveries, Events, Acks, Host);
        {unreadable, Id} ->
            packets(Packets, Deliveries, Events, [{puback, Id, 0} | Acks], Host);
        %% QoS 2 was not asked for, a second CONNACK is none.
        _ ->
            {NEvents, NHost} = fault(protocol_error, run(Deliveries, Events), Host),
            {[], NEvents, Acks, NHost}
    end;
packets([{disconnect, Reason, Properties} | _], [], Events, Acks, Host = #host{phase = probe}) ->
    ?LOG_INFO((details(Reason, Properties))#{msg => upstream_disconnect}),
    {NEvents, NHost} = ended(upstream_lost, Events, Host),
    {[], NEvents, Acks, NHost};
packets([Packet | Packets], [], Events, Acks, Host = #host{phase = probe}) ->
    {Connected, NHost} = probe_packet(Packet, Host),
    packets(Packets, [], Connected ++ Events, Acks, NHost);
packets([{connack, _, 0, Properties} | Packets], [], Events, Acks, Host) ->
    Facts = maps:with([maximum_packet_size], Properties),
    ok = nats_gateway_upstream:accepted(Facts, Host#host.upstream),
    NHost = #host{session = Session} = connected(Properties, Host),
    case nats_gateway_upstream:probe(NHost#host.upstream) of
        {known, Quirks} ->
            Known = with_quirks(Quirks, NHost),
            packets(Packets, [], [{connected, Session} | Events], Acks, Known);
        probe ->
            packets(Packets, [], Events, Acks, probe(NHost))
    end;
packets([{connack, _, Reason, Properties} | _], [], Events, Acks, Host) ->
    Refusal = nats_gateway_mqtt_reason:connack(Reason),
    ok = note_refusal(Refusal, Reason, details(Reason, Properties), Host),
    {NEvents, NHost} = ended(Refusal, Events, Host),
    {[], NEvents, Acks, NHost};
packets([_ | _], [], Events, Acks, Host) ->
    {NEvents, NHost} = fault(protocol_error, Events, Host),
    {[], NEvents, Acks, NHost}.

%% -------------------------------------------------------------------------------------------
%% What the broker does (nats_gateway_probe)

%% The first one to log in waits a little longer.
probe(Host = #host{session = #{mountpoint := Mountpoint}}) ->
    {Packets, Probe} = nats_gateway_probe:start(Mountpoint, #{
        maximum_qos => Host#host.max_qos,
        wildcard_subscription_available => Host#host.wildcards,
        shared_subscription_available => Host#host.shared,
        subscription_identifier_available => Host#host.identifiers
    }),
    Probing = start_timer(?PROBE_MS, Host#host{phase = probe, probe = Probe}),
    send(nats_gateway_mqtt_nif:encode(Packets), Probing).

probe_packet(Packet, Host = #host{probe = Probe}) ->
    case nats_gateway_probe:packet(Packet, Probe) of
        {more, NProbe} -> {[], Host#host{probe = NProbe}};
        {late, NProbe} -> {[], start_timer(?PROBE_LATE_MS, Host#host{probe = NProbe})};
        {done, NProbe} -> probed(Host#host{probe = NProbe})
    end.

%% Identifiers of the probe's packets and subscriptions are not used again.
probed(Host = #host{probe = Probe, session = Session, keepalive = KeepAlive}) ->
    Outcome = nats_gateway_probe:quirks(Probe),
    ok = nats_gateway_upstream:probed(Outcome, Host#host.upstream),
    Quirks =
        case Outcome of
            inconclusive -> [];
            _ -> Outcome
        end,
    Open = start_timer(KeepAlive * 500, with_quirks(Quirks, Host#host{
        phase = open, probe = undefined, next_packet_id = 5, next_id = 4
    })),
    Drops = [
        {#unsubscribe{filters = [Filter]}, resubscribe}
     || Filter <- nats_gateway_probe:filters(Probe)
    ],
    {[{connected, Session}], dispatch(Drops, Open)}.

%% A broker whose PINGRESP overtakes messages handles all packets before it sends any of them.
with_quirks(Quirks, Host) ->
    Echoes =
        case lists:member(pong_overtakes, Quirks) of
            true -> nats_gateway_echoes:new();
            false -> none
        end,
    Host#host{quirks = Quirks, echoes = Echoes}.

%% Somebody's wrong password is no trouble of the broker.
note_refusal(authorization_violation, Reason, Details, #host{upstream = Upstream}) ->
    Report = Details#{msg => upstream_refused_login},
    nats_gateway_upstream:note({connect, Reason}, Report, Upstream);
note_refusal(upstream_lost, Reason, Details, Host) ->
    not_accepted(Reason, Details, Host).

details(Reason, Properties) ->
    maps:merge(maps:with([reason_string], Properties), #{
        reason_code => Reason, reason => nats_gateway_mqtt_reason:name(Reason)
    }).

connected(Properties, Host = #host{keepalive = KeepAlive, session = Session}) ->
    MaxPayload = max_payload(Properties, Host#host.max_control_line),
    NKeepAlive =
        case Properties of
            #{server_keep_alive := Seconds} when Seconds > 0 -> Seconds;
            #{} -> KeepAlive
        end,
    start_timer(NKeepAlive * 500, Host#host{
        phase = open,
        keepalive = NKeepAlive,
        session = maps:merge(MaxPayload, Session#{
            clientid := maps:get(
                assigned_client_identifier, Properties, maps:get(clientid, Session)
            )
        }),
        quota = maps:get(receive_maximum, Properties, 65535),
        max_sent = maps:get(maximum_packet_size, Properties, ?MAX_PACKET),
        max_qos = maps:get(maximum_qos, Properties, 1),
        wildcards = maps:get(wildcard_subscription_available, Properties, true),
        shared = maps:get(shared_subscription_available, Properties, true),
        identifiers = maps:get(subscription_identifier_available, Properties, true)
    }).

%% -------------------------------------------------------------------------------------------
%% Deliveries

deliver(Packet, Deliveries, Host = #host{ids = Ids, quirks = Quirks}) ->
    #publish{topic = Topic, payload = Payload, subscription_ids = Identifiers} = Packet,
    {Reply, Headers} = nats_gateway_mqtt_mapping:message(Packet, Host#host.secret),
    case Identifiers of
        [Id] when Quirks =:= [] ->
            case Ids of
                #{Id := Key} ->
                    {[delivery(Key, Topic, Reply, Headers, Payload) | Deliveries], Host};
                #{} ->
                    {Deliveries, Host}
            end;
        _ ->
            {Keys, NHost} = receivers(Identifiers, Topic, Host),
            {for_keys(Keys, Topic, Reply, Headers, Payload, Deliveries), NHost}
    end.

%% Where a copy does not say for which key it is: all plain ones that match, or else one group.
%% Where only those for groups do not say it, it is for one of them.
receivers([], Topic, Host = #host{quirks = Quirks}) ->
    {Plain, Groups} = matching(Topic, Host),
    case Plain =:= [] orelse lists:member(no_shared_identifiers, Quirks) of
        true -> in_turn(Groups, Host);
        false -> {Plain, Host}
    end;
receivers(Identifiers, Topic, Host = #host{ids = Ids, quirks = Quirks}) ->
    Keys = [maps:get(Id, Ids) || Id <- lists:usort(Identifiers), is_map_key(Id, Ids)],
    case lists:keymember(undefined, 1, Keys) andalso lists:member(merges, Quirks) of
        true ->
            {Plain, _} = matching(Topic, Host),
            {lists:usort(Plain ++ Keys), Host};
        false ->
            {Keys, Host}
    end.

in_turn([], Host) ->
    {[], Host};
in_turn(Groups, Host = #host{turn = Turn}) ->
    {[lists:nth(Turn rem length(Groups) + 1, Groups)], Host#host{turn = Turn + 1}}.

for_keys(Keys, Topic, Reply, Headers, Payload, Deliveries) ->
    lists:foldl(
        fun(Key, Acc) -> [delivery(Key, Topic, Reply, Headers, Payload) | Acc] end, Deliveries, Keys
    ).

%% MQTT does not say which messages are copies of one.
delivery(Key, Topic, Reply, Headers, Payload) ->
    #delivery{key = Key, topic = Topic, reply = Reply, headers = Headers, payload = Payload}.

matching(Topic, #host{keys = Keys}) ->
    lists:partition(
        fun({Share, _}) -> Share =:= undefined end,
        [Key || Key = {_, Filter} <- maps:keys(Keys), nats_gateway_nif:topic_matches(Filter, Topic)]
    ).

%% -------------------------------------------------------------------------------------------
%% Answers

answer(Id, Reason, Events, Host = #host{requests = Requests, quota = Quota}) ->
    case maps:take(Id, Requests) of
        {{confirm, Index, NoResponders}, Left} ->
            NHost = Host#host{requests = Left, quota = Quota + 1},
            confirmed(rejection(Reason, NoResponders, Index, Host), Events, NHost);
        {{request, Subject, ReplyTo}, Left} ->
            NHost = Host#host{requests = Left, quota = Quota + 1},
            case rejection(Reason, true, 0, Host) of
                [] ->
                    {Events, NHost};
                [{_, Rejection}] ->
                    {[{publish_rejected, Subject, ReplyTo, Rejection} | Events], NHost}
            end;
        {{subscribe, Key, SubscriptionId, Confirm}, Left} ->
            NHost = Host#host{requests = Left},
            Answer = nats_gateway_mqtt_reason:suback(Reason),
            ok = note(subscribe, Reason, Host),
            subscribed(Answer, Key, SubscriptionId, Confirm, Events, NHost);
        {{unsubscribe, Key, SubscriptionId}, Left} ->
            NIds = maps:remove(SubscriptionId, Host#host.ids),
            {[{unsubscribed, Key} | Events], Host#host{requests = Left, ids = NIds}};
        {resubscribe, Left} ->
            {Events, Host#host{requests = Left}};
        error ->
            {Events, Host}
    end.

rejection(Reason, NoResponders, Index, Host) ->
    ok = note(publish, Reason, Host),
    Lies = lists:member(puback_lies, Host#host.quirks),
    case nats_gateway_mqtt_reason:puback(Reason) of
        ok -> [];
        no_responders when not NoResponders -> [];
        no_responders when Lies -> [];
        Rejection -> [{Index, Rejection}]
    end.

%% Of most refusals nats-server has no text that says why.
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

confirmed(Rejection, Events, Host = #host{waiting = {confirm, Left, Rejections}}) ->
    NRejections = Rejection ++ Rejections,
    case Left of
        1 ->
            {[{published, lists:sort(NRejections)} | Events], Host#host{waiting = none}};
        _ ->
            {Events, Host#host{waiting = {confirm, Left - 1, NRejections}}}
    end.

subscribed(Answer, Key, Id, Confirm, Events, Host = #host{keys = Keys}) ->
    Current = maps:get(Key, Keys, none) =:= Id,
    Granted = Answer =:= ok,
    NHost =
        case Current andalso not Granted of
            true -> forget(Key, Id, Host);
            false -> Host
        end,
    NEvents = joined(Current andalso Granted, Key, Events),
    decided(Confirm, Answer, Current, Key, NEvents, NHost).

decided(true, Answer, _, _, Events, Host) ->
    {[{subscribed, Answer} | Events], Host#host{waiting = none}};
decided(again, Answer, Current, Key, Events, Host = #host{waiting = Again}) ->
    #again{asked = Asked, refused = Refused} = Again,
    NRefused = [{Key, Answer} || Current, Answer =/= ok] ++ Refused,
    {Events, Host#host{waiting = Again#again{asked = Asked - 1, refused = NRefused}}};
decided(false, Answer, true, Key, Events, Host) when Answer =/= ok ->
    {[{subscribe_rejected, Key, Answer} | Events], Host};
decided(false, _, _, _, Events, Host) ->
    {Events, Host}.

joined(true, Key = {Share, _}, Events) when Share =/= undefined -> [{joined, Key} | Events];
joined(_, _, Events) -> Events.

%% -------------------------------------------------------------------------------------------
%% After each chunk

%% Acknowledgements first: they make room in the broker for what it holds back. Then what the
%% broker's answers have made room for here.
settle(Deliveries, Events, _, Host = #host{phase = closed}) ->
    {lists:reverse(run(Deliveries, Events)), Host};
settle(Deliveries, Events, Acks, Host) ->
    {Completed, Done} = complete(flush(Acks, Host)),
    {lists:reverse(run(Deliveries, Events), Completed), Done}.

flush(Acks, Host = #host{queue = Queue}) ->
    case queue:is_empty(Queue) of
        true when Acks =:= [] ->
            Host;
        true ->
            send(nats_gateway_mqtt_nif:encode(lists:reverse(Acks)), Host);
        false ->
            {Packets, NHost} = take_queued(Acks, Host),
            transmit(Packets, NHost)
    end.

%% What was waited for, if it is there.
complete(Host = #host{waiting = none}) ->
    {[], Host};
complete(Host = #host{waiting = ready}) ->
    case is_ready_again(Host) of
        true -> {[ready], Host#host{waiting = none}};
        false -> {[], Host}
    end;
complete(Host = #host{waiting = #again{keys = [], asked = 0, refused = Refused}}) ->
    {[{subscribed_again, Refused}], Host#host{waiting = none}};
complete(Host = #host{waiting = Again = #again{keys = [_ | _], asked = 0}}) ->
    complete(again(Again, Host));
complete(Host = #host{waiting = barrier, queue = Queue}) ->
    case queue:is_empty(Queue) of
        true -> complete(fence(answers_again(Host), Host));
        false -> {[], Host}
    end;
complete(Host = #host{waiting = {barrier, Pings, Again}, requests = Requests}) when
    map_size(Requests) =:= 0, Host#host.pings_answered >= Pings
->
    case Again of
        0 ->
            {[barrier], answered(Host#host{waiting = none, echoes = settled(Host)})};
        1 ->
            case is_echo_under_way(Host) of
                true -> {[], ping_soon(Host#host{waiting = {barrier, moment, 0}})};
                false -> complete(fence(0, Host))
            end
    end;
complete(Host) ->
    {[], Host}.

is_echo_under_way(#host{echoes = none}) -> false;
is_echo_under_way(#host{echoes = Echoes}) -> nats_gateway_echoes:is_under_way(Echoes).

settled(#host{echoes = none}) -> none;
settled(#host{echoes = Echoes}) -> nats_gateway_echoes:settled(Echoes).

%% All that was sent is done.
answered(Host = #host{suspects = {watched, _, _}}) -> Host;
answered(Host) -> Host#host{suspects = none}.

%% -------------------------------------------------------------------------------------------
%% Keepalive

start_timer(Milliseconds, Host) ->
    Timer = make_ref(),
    _ = erlang:send_after(Milliseconds, self(), {?MODULE, Timer, timeout}),
    Host#host{timer = Timer}.

%% Twice in the keepalive interval. The broker must hear something each time, and must be heard:
%% silence makes a PINGREQ, and silence after that until the next tick is the end.
tick(Host = #host{heard = false, probed = true}) ->
    lost(Host);
tick(Host = #host{heard = Heard, sent = Sent, keepalive = KeepAlive}) ->
    Pinged =
        case Heard andalso Sent of
            true -> Host;
            false -> ping(Host)
        end,
    Next = Pinged#host{heard = false, sent = false, probed = not Heard},
    {[], start_timer(KeepAlive * 500, Next)}.

%% -------------------------------------------------------------------------------------------
%% The end

-spec disconnect(term(), host()) -> ok.
disconnect(_, #host{phase = closed}) ->
    ok;
disconnect(_, #host{socket = Socket}) ->
    retire(Socket, 0).

%% By the broker, without a DISCONNECT.
hung_up(Host = #host{phase = login}) ->
    ok = not_accepted(closed, #{reason => closed}, Host),
    lost(Host);
hung_up(Host) ->
    lost(report_hangup(closed, Host)).

lost(Host) -> ended(upstream_lost, [], Host).

not_accepted(Why, Details, #host{upstream = Upstream}) ->
    nats_gateway_upstream:refused(Why, Details, Upstream).

ended(Reason, Events, Host = #host{phase = login}) ->
    {[{refused, Reason} | Events], close(Host)};
%% It may have been the probe: whoever comes next does without.
ended(Reason, Events, Host = #host{phase = probe, upstream = Upstream}) ->
    ok = nats_gateway_upstream:probed(hung_up, Upstream),
    {[{refused, Reason} | Events], close(Host)};
ended(Reason, Events, Host = #host{phase = open}) ->
    {[{close, Reason} | Events], close(Host)}.

%% The broker breaks the protocol.
fault(Reason, Events, Host = #host{socket = Socket, phase = login}) ->
    ok = not_accepted(Reason, #{reason => why(Reason)}, Host),
    ok = retire(Socket, reason_code(Reason)),
    {[{refused, upstream_lost} | Events], closed(Host)};
fault(Reason, Events, Host = #host{phase = probe}) ->
    ?LOG_WARNING(#{msg => upstream_protocol_error, reason => Reason}),
    ended(upstream_lost, Events, Host);
fault(Reason, Events, Host = #host{socket = Socket, phase = open}) ->
    ?LOG_WARNING(#{msg => upstream_protocol_error, reason => Reason}),
    ok = retire(Socket, reason_code(Reason)),
    {[{close, upstream_lost} | Events], closed(Host)}.

why(old_version) -> <<"it does not speak MQTT 5">>;
why(Reason) -> Reason.

reason_code(malformed_packet) -> ?MALFORMED_PACKET;
reason_code(packet_too_large) -> ?PACKET_TOO_LARGE;
reason_code(_) -> ?PROTOCOL_ERROR.

close(Host = #host{socket = Socket, upstream = Upstream}) ->
    ok = nats_gateway_upstream:lost(Upstream),
    abort(Socket, closed(Host)).

closed(Host = #host{input = Input}) ->
    Host#host{
        phase = closed,
        socket = undefined,
        timer = undefined,
        input = nats_gateway_mqtt_input:new(nats_gateway_mqtt_input:max_size(Input)),
        requests = #{},
        queue = queue:new(),
        looking = false,
        waiting = none
    }.

abort(Socket, Result) ->
    ok = nats_gateway_transport:abort(Socket),
    Result.

%% The last messages of a client must arrive: a socket that is closed with unread bytes in it
%% takes back what the broker has not read yet. So a process of its own waits for the broker to
%% close, for a while.
retire(Socket, Reason) ->
    _ = nats_gateway_transport:deactivate(Socket),
    Disconnect = nats_gateway_mqtt_nif:encode([{disconnect, Reason}]),
    Pid = spawn(fun() -> farewell(Socket, Disconnect) end),
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok ->
            Pid ! go,
            ok;
        {error, _} ->
            exit(Pid, kill),
            abort(Socket, ok)
    end.

farewell(Socket, Disconnect) ->
    receive
        go -> ok
    after ?LINGER -> exit(normal)
    end,
    case nats_gateway_transport:send(Socket, Disconnect) of
        ok -> nats_gateway_transport:linger_close(Socket, ?LINGER);
        {error, _} -> abort(Socket, ok)
    end.
