%% The round-trip time of a client, which nats-server measures in the same way: first from INFO to
%% the client's CONNECT, then from each PING of the gateway to the PONG.
-module(nats_gateway_rtt).

-export([new/1]).
-export([connected/2]).
-export([pinged/2]).
-export([ponged/2]).
-export([nanoseconds/1]).

-export_type([rtt/0]).

%% Times are of monotonic time, in native units.
-type rtt() ::
    %% since INFO, or since a PING, with the latest measurement before it
    {since, Begin :: integer(), unknown | Native :: pos_integer()}
    | {measured, Native :: pos_integer()}.

%% INFO is sent now.
-spec new(Now :: integer()) -> rtt().
new(Now) -> {since, Now, unknown}.

%% A later CONNECT of the same client answers nothing.
-spec connected(Now :: integer(), rtt()) -> rtt().
connected(Now, {since, Begin, unknown}) -> measured(Now, Begin);
connected(_, Rtt) -> Rtt.

-spec pinged(Now :: integer(), rtt()) -> rtt().
pinged(Now, Rtt) -> {since, Now, native(Rtt)}.

%% A PONG that nobody has asked for is ignored.
-spec ponged(Now :: integer(), rtt()) -> rtt().
ponged(Now, {since, Begin, _}) -> measured(Now, Begin);
ponged(_, Rtt) -> Rtt.

-spec nanoseconds(rtt()) -> unknown | pos_integer().
nanoseconds(Rtt) ->
    case native(Rtt) of
        unknown -> unknown;
        Native -> max(1, erlang:convert_time_unit(Native, native, nanosecond))
    end.

native({since, _, Native}) -> Native;
native({measured, Native}) -> Native.

measured(Now, Begin) -> {measured, max(1, Now - Begin)}.
