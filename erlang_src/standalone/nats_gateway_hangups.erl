%% Packets that a broker hangs up on. The gateway learns them from hang-ups, so that no client
%% repeats them for ever: a client that reconnects makes its subscriptions again.
%%
%% They are kept per client: by the address of its host, its name at the broker, and the name in its
%% CONNECT. So nobody can make the gateway refuse the subjects of others. The packet is known if
%% only one was under way. If not, the client's next connection is watched: a PINGREQ follows each
%% topic when it is used first, and the first topic after the last answer was the cause.
%%
%% A DISCONNECT that names the packet's fault is a proof. A connection that just ends may have ended
%% for another reason, so two such ends are needed.
-module(nats_gateway_hangups).

-export([new/0]).
-export([key/3]).
-export([packet/2]).
-export([hung_up/5]).
-export([learned/3]).

-export_type([hangups/0, key/0, packet/0, learned/0]).

%% 16 bytes each, however long the names are.
-type key() :: binary().
-type packet() :: binary().

%% The packets that are refused, and whether the packets of the client are watched.
-type learned() :: #{refused := #{packet() => true}, watch := boolean()}.

-record(client, {
    %% time of the last hang-up, in milliseconds
    at :: integer(),
    %% `refused', or how often the packet was suspected, and when this was last changed
    packets = #{} :: #{packet() => {refused | pos_integer(), At :: integer()}}
}).

-opaque hangups() :: #{key() => #client{}}.

-define(MAX_CLIENTS, 1000).
-define(MAX_PACKETS, 100).
%% A refused packet is tried again after this time, because a broker's limits may be changed.
-define(REFUSED_MS, 3600000).
%% How long after a hang-up a client is watched when it comes back.
-define(WATCH_MS, 300000).

-define(STRIKES, 2).

-spec new() -> hangups().
new() -> #{}.

-spec key(inet:ip_address(), Username, Name) -> key() when
    Username :: undefined | binary(), Name :: undefined | binary().
key(Address, Username, Name) -> erlang:md5(term_to_binary({Address, Username, Name})).

-spec packet(publish | subscribe, Topic :: binary()) -> packet().
packet(publish, Topic) -> erlang:md5([$p | Topic]);
packet(subscribe, Filter) -> erlang:md5([$s | Filter]).

%% `Suspect' is the packet that must have been the cause if a packet was. It is `unknown' if several
%% were possible. `closed_again' is for a client that was watched; without that, others may have
%% lost their connections at the same time.
-spec hung_up(key(), blamed | closed | closed_again, unknown | packet(), Now :: integer(), hangups()) -> hangups().
hung_up(Key, Evidence, Suspect, Now, Hangups) ->
    Client = #client{packets = Packets} = maps:get(Key, Hangups, #client{at = Now}),
    NClient = Client#client{at = Now, packets = suspected(Suspect, Evidence, Now, Packets)},
    bounded(?MAX_CLIENTS, fun(#client{at = At}) -> At end, Hangups#{Key => NClient}).

suspected(unknown, _, _, Packets) ->
    Packets;
suspected(Packet, Evidence, Now, Packets) ->
    NPackets = Packets#{Packet => {verdict(Evidence, maps:get(Packet, Packets, none), Now), Now}},
    bounded(?MAX_PACKETS, fun({_, At}) -> At end, NPackets).

verdict(blamed, _, _) -> refused;
verdict(_, {refused, _}, _) -> refused;
verdict(closed_again, {Strikes, At}, Now) when
    Now - At < ?WATCH_MS, Strikes + 1 >= ?STRIKES
->
    refused;
verdict(_, _, _) -> 1.

%% Drops the oldest entry.
bounded(Max, _, Map) when map_size(Map) =< Max ->
    Map;
bounded(_, At, Map) ->
    {_, Oldest} = lists:min([{At(Value), Key} || {Key, Value} <- maps:to_list(Map)]),
    maps:remove(Oldest, Map).

%% What was learned about a client that connects (again).
-spec learned(key(), Now :: integer(), hangups()) -> none | learned().
learned(Key, Now, Hangups) ->
    case Hangups of
        #{Key := #client{at = At, packets = Packets}} when Now - At < ?REFUSED_MS ->
            Refused = [
                {Packet, true}
             || {Packet, {refused, Since}} <- maps:to_list(Packets), Now - Since < ?REFUSED_MS
            ],
            #{refused => maps:from_list(Refused), watch => Now - At < ?WATCH_MS};
        #{} ->
            none
    end.
