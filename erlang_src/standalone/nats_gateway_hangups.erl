%% Packets that a broker hangs up on, learned from hang-ups, so that nobody repeats them for ever: a
%% client that reconnects subscribes again to what it had.
%%
%% They are kept by client: by the address of its host, its name at the broker and the name in its
%% CONNECT. So nobody can make the gateway refuse the subjects of others. Which packet it was is
%% known where only one was under way. Else the client's next connection is watched: there each
%% topic is followed by a PINGREQ when it is used first, and what comes after the last answer was it.
%%
%% A DISCONNECT that names the packet's fault proves it. A connection that just ends may have ended
%% for another reason: there it takes two.
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

%% What is refused, and whether the packets of the client are watched.
-type learned() :: #{refused := #{packet() => true}, watch := boolean()}.

-record(client, {
    %% milliseconds, of the last hang-up
    at :: integer(),
    %% refused, or how often it was suspected; and when it was last
    packets = #{} :: #{packet() => {refused | pos_integer(), At :: integer()}}
}).

-opaque hangups() :: #{key() => #client{}}.

-define(MAX_CLIENTS, 1000).
-define(MAX_PACKETS, 100).
%% A broker's limits may be changed.
-define(REFUSED_MS, 3600000).
%% After a hang-up, in which a client comes back.
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

%% Suspect: the packet that it was if it was any, `unknown' where it was one of several.
%% `closed_again': of a client that was watched. Others may have lost their connections together.
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

%% The oldest one goes.
bounded(Max, _, Map) when map_size(Map) =< Max ->
    Map;
bounded(_, At, Map) ->
    {_, Oldest} = lists:min([{At(Value), Key} || {Key, Value} <- maps:to_list(Map)]),
    maps:remove(Oldest, Map).

%% For a client that comes (again).
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
