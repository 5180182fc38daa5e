%% Finds out which packet of a client is the cause if the broker hangs up now
%% (nats_gateway_hangups).
%%
%% For most clients it is only known whether there is just one topic since the last barrier. For a
%% client on which the broker hung up before, a PINGREQ follows each topic and marks it until the
%% PINGREQ is answered.
-module(nats_gateway_suspects).

-export([new/1]).
-export([is_watched/1]).
-export([sent/2]).
-export([is_harmless/2]).
-export([marked/3]).
-export([answered/2]).
-export([settled/1]).
-export([blame/2]).
-export([label/1]).

-export_type([suspects/0, suspect/0, blame/0]).

-include("nats_gateway_mqtt.hrl").

%% A topic, and its name in the log.
-type suspect() :: {nats_gateway_hangups:packet(), Topic :: binary()}.

%% The form that `nats_gateway_upstream:hung_up/4' takes.
-type blame() :: none | {blamed | closed | closed_again, unknown | suspect()}.

-record(watched, {
    %% topics that were found to be harmless
    cleared = #{} :: #{nats_gateway_hangups:packet() => true},
    marks = queue:new() :: queue:queue({Pings :: pos_integer(), suspect()})
}).

-opaque suspects() :: none | {one, suspect()} | many | #watched{}.

-define(MAX_CLEARED, 1000).
%% The most bytes of a topic in the log.
-define(LOGGED_TOPIC, 128).

-spec new(Watched :: boolean()) -> suspects().
new(true) -> #watched{};
new(false) -> none.

-spec is_watched(suspects()) -> boolean().
is_watched(#watched{}) -> true;
is_watched(_) -> false.

%% A client that is not watched has sent these packets. The second element of each does not matter.
-spec sent([{nats_gateway_mqtt_nif:packet(), term()}], suspects()) -> suspects().
sent(_, many) ->
    many;
sent(Items, Suspects) ->
    case {[Packet || {Packet, _} <- Items, is_suspect(Packet)], Suspects} of
        {[], _} -> Suspects;
        {[Packet], none} -> {one, suspect(Packet)};
        {_, _} -> many
    end.

is_suspect(#publish{}) -> true;
is_suspect(#subscribe{}) -> true;
is_suspect(_) -> false.

suspect(Packet) ->
    {Kind, Name} = topic(Packet),
    {nats_gateway_hangups:packet(Kind, Name), label(Name)}.

topic(#publish{topic = Name}) -> {publish, Name};
topic(#subscribe{filters = [{Filter, _, _, _}]}) -> {subscribe, Filter};
topic(#subscribe{filters = [{Filter, _, _, _, _RetainAsPublished}]}) -> {subscribe, Filter}.

%% The beginning of a topic, for the log.
-spec label(Topic :: binary()) -> binary().
label(Name) ->
    case unicode:characters_to_binary(binary:part(Name, 0, min(?LOGGED_TOPIC, byte_size(Name)))) of
        {_, Whole, _} -> Whole;
        Whole -> binary:copy(Whole)
    end.

%% Whether a packet of a watched client needs no mark.
-spec is_harmless(nats_gateway_mqtt_nif:packet(), suspects()) -> boolean().
is_harmless(Packet, #watched{cleared = Cleared}) ->
    case is_suspect(Packet) of
        true ->
            {Kind, Name} = topic(Packet),
            is_map_key(nats_gateway_hangups:packet(Kind, Name), Cleared);
        false ->
            true
    end.

%% A watched client has sent the PINGREQ with this number after the packet.
-spec marked(nats_gateway_mqtt_nif:packet(), Ping :: pos_integer(), suspects()) -> suspects().
marked(Packet, Ping, Watched = #watched{marks = Marks}) ->
    Watched#watched{marks = queue:in({Ping, suspect(Packet)}, Marks)}.

%% So many PINGREQ are answered. Everything that was sent before the last of them is harmless.
-spec answered(Pings :: non_neg_integer(), suspects()) -> suspects().
answered(Pings, Watched = #watched{cleared = Cleared, marks = Marks}) ->
    case cleared(Pings, Cleared, Marks) of
        {NCleared, _} when map_size(NCleared) > ?MAX_CLEARED -> many;
        {NCleared, Left} -> Watched#watched{cleared = NCleared, marks = Left}
    end;
answered(_, Suspects) ->
    Suspects.

cleared(Pings, Cleared, Marks) ->
    case queue:peek(Marks) of
        {value, {Ping, {Packet, _}}} when Ping =< Pings ->
            cleared(Pings, Cleared#{Packet => true}, queue:drop(Marks));
        _ ->
            {Cleared, Marks}
    end.

%% The broker has handled all that was sent.
-spec settled(suspects()) -> suspects().
settled(Watched = #watched{}) -> Watched;
settled(_) -> none.

%% The broker has ended the connection, either with a DISCONNECT that blames a packet, or without
%% one.
-spec blame(blamed | closed, suspects()) -> blame().
blame(_, none) ->
    none;
blame(Evidence, {one, Suspect}) ->
    {Evidence, Suspect};
blame(Evidence, many) ->
    {Evidence, unknown};
blame(Evidence, #watched{marks = Marks}) ->
    case queue:peek(Marks) of
        empty -> none;
        {value, {_, Suspect}} when Evidence =:= closed -> {closed_again, Suspect};
        {value, {_, Suspect}} -> {Evidence, Suspect}
    end.
