%% Finds out whether a broker does what the gateway relies on. The first client that logs in
%% publishes to subscriptions of its own: two plain ones and a member of a group. The result holds
%% for all clients of that broker.
%%
%% This is a state machine without a process. It returns the packets to send, takes the packets that
%% arrive, and at the end says what is different at this broker.
-module(nats_gateway_probe).

-export([start/2]).
-export([packet/2]).
-export([filters/1]).
-export([quirks/1]).

-include("nats_gateway_mqtt.hrl").

-export_type([probe/0, quirk/0]).

%% `puback_lies': PUBACK says that there are no subscribers although there is one, so it is no
%% reason for a 503.
%% `no_identifiers': a delivery does not say for which subscription it is.
%% `no_shared_identifiers': only a delivery for a shared subscription does not say so.
%% `merges': one copy comes for all plain filters that match, with the identifier of one of them.
%% `pong_overtakes': a PINGRESP comes before messages that the client published before its PINGREQ.
-type quirk() :: puback_lies | no_identifiers | no_shared_identifiers | merges | pong_overtakes.

-record(probe, {
    topic :: binary(),
    %% by subscription identifier, which is also the packet identifier
    filters :: #{1..3 => binary()},
    subacks = #{} :: #{1..3 => byte()},
    puback :: waiting | none | byte(),
    ponged = false :: boolean(),
    %% whether a copy of the message came after the PINGRESP
    overtaken = false :: boolean(),
    %% the identifiers of each copy that has arrived
    copies = [] :: [[pos_integer()]]
}).

-opaque probe() :: #probe{}.

-define(PLAIN, 1).
-define(WILDCARD, 2).
-define(SHARED, 3).
-define(PUBLISH, 4).

-define(NO_MATCHING_SUBSCRIBERS, 16#10).
-define(REFUSED, 16#80).

%% `Available' is what CONNACK says that the broker has.
-spec start(Mountpoint :: binary(), Available) -> {[nats_gateway_mqtt_nif:packet()], probe()} when
    Available :: #{
        maximum_qos := 0..2,
        wildcard_subscription_available := boolean(),
        shared_subscription_available := boolean(),
        subscription_identifier_available := boolean()
    }.
start(Mountpoint, Available) ->
    Random = binary:encode_hex(crypto:strong_rand_bytes(8)),
    Base = <<Mountpoint/binary, "nats_gateway/probe/">>,
    Topic = <<Base/binary, Random/binary>>,
    Wildcards = maps:get(wildcard_subscription_available, Available),
    Shared = maps:get(shared_subscription_available, Available),
    Filters = maps:from_list(
        [{?PLAIN, Topic}] ++
            %% The wildcard must not match what others probe.
            [{?WILDCARD, <<Topic/binary, "/#">>} || Wildcards] ++
            [{?SHARED, <<"$share/nats_gateway/", Topic/binary>>} || Shared]
    ),
    QoS = min(1, maps:get(maximum_qos, Available)),
    Announced = maps:get(subscription_identifier_available, Available),
    Subscribes = [
        #subscribe{
            packet_id = Id,
            subscription_id = identifier(Announced, Id),
            filters = [{Filter, 0, false, 2}]
        }
     || {Id, Filter} <- lists:sort(maps:to_list(Filters))
    ],
    PacketId =
        case QoS of
            0 -> undefined;
            1 -> ?PUBLISH
        end,
    Publish = #publish{topic = Topic, qos = QoS, packet_id = PacketId},
    Puback =
        case QoS of
            0 -> none;
            1 -> waiting
        end,
    {Subscribes ++ [Publish, pingreq], #probe{topic = Topic, filters = Filters, puback = Puback}}.

identifier(true, Id) -> Id;
identifier(false, _) -> undefined.

%% `late' means that all answers are here, but not all copies of the message.
-spec packet(nats_gateway_mqtt_nif:received(), probe()) -> {more | late | done, probe()}.
packet(#suback{packet_id = Id, reasons = [Reason]}, Probe = #probe{subacks = Subacks}) ->
    progress(Probe#probe{subacks = Subacks#{Id => Reason}});
packet(#puback{packet_id = ?PUBLISH, reason = Reason}, Probe) ->
    progress(Probe#probe{puback = Reason});
packet(pingresp, Probe) ->
    progress(Probe#probe{ponged = true});
packet(#publish{topic = Topic, subscription_ids = Ids}, Probe = #probe{topic = Topic}) ->
    #probe{copies = Copies, ponged = Ponged} = Probe,
    progress(Probe#probe{copies = [Ids | Copies], overtaken = Ponged});
packet(_, Probe) ->
    progress(Probe).

progress(Probe = #probe{filters = Filters, subacks = Subacks, puback = Puback, ponged = Ponged}) ->
    Answered = Ponged andalso Puback =/= waiting andalso map_size(Subacks) =:= map_size(Filters),
    case Answered of
        false -> {more, Probe};
        true -> {complete(Probe), Probe}
    end.

complete(Probe = #probe{copies = Copies}) ->
    case lists:sort(lists:append(Copies)) =:= granted(Probe) of
        true -> done;
        false -> late
    end.

granted(#probe{subacks = Subacks}) ->
    [Id || {Id, Reason} <- lists:sort(maps:to_list(Subacks)), Reason < ?REFUSED].

%% The filters that have to be unsubscribed.
-spec filters(probe()) -> [binary()].
filters(#probe{filters = Filters}) -> maps:values(Filters).

%% The differences that were seen. What was not seen counts as correct, because the broker may have
%% denied this client something.
-spec quirks(probe()) -> [quirk()] | inconclusive.
quirks(Probe = #probe{copies = Copies}) ->
    Granted = granted(Probe),
    case lists:member(?PLAIN, Granted) andalso Copies =/= [] of
        false -> inconclusive;
        true -> lies(Probe) ++ unidentified(Granted, Copies) ++ overtaken(Probe)
    end.

lies(#probe{puback = ?NO_MATCHING_SUBSCRIBERS}) -> [puback_lies];
lies(_) -> [].

overtaken(#probe{overtaken = true}) -> [pong_overtakes];
overtaken(_) -> [].

unidentified(Granted, Copies) ->
    Known = lists:usort(lists:append(Copies)),
    Unknown = length([none || [] <- Copies]),
    Plain = Granted -- [?SHARED],
    if
        Known =:= [] -> [no_identifiers];
        Unknown =:= 1, Known =:= Plain, Plain =/= Granted -> [no_shared_identifiers];
        Unknown =:= 0, Known =/= Granted, length(Copies) =< length(Granted) - 1 -> [merges];
        true -> []
    end.
