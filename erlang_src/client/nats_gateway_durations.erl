%% Histograms of durations for the monitoring endpoints (nats_gateway_census). Only some calls are
%% measured, so that the others cost nothing. Nothing is kept unless there is a census.
-module(nats_gateway_durations).

-export([start/0]).
-export([forget/0]).
-export([add/2]).
-export([histogram/1]).

-export_type([kind/0, histogram/0]).

%% `decode' and `encode' are one call of the library, `broker_round_trip' is the time from a PINGREQ
%% to the broker's PINGRESP, and `publish' is handing over to EMQX the messages of a client that
%% came together.
-type kind() :: decode | encode | broker_round_trip | publish.

%% A histogram of Prometheus. Each bucket has the number of durations of at most this many seconds.
-type histogram() :: #{
    buckets := [{UpTo :: float() | infinity, non_neg_integer()}],
    count := non_neg_integer(),
    %% in seconds
    sum := float()
}.

%% The bounds of the buckets, in microseconds.
-define(OF_LIBRARY, [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000]).
-define(OF_BROKER, [
    100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000
]).

-define(KINDS, [decode, encode, broker_round_trip, publish]).

%% The counters of an earlier start go on, because a total must not fall.
-spec start() -> ok.
start() ->
    case persistent_term:get(?MODULE, none) of
        none -> persistent_term:put(?MODULE, maps:from_list([{Kind, new(Kind)} || Kind <- ?KINDS]));
        _ -> ok
    end.

-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok.

%% A counter for each bucket, one for longer durations, and one for the sum in nanoseconds.
new(Kind) -> counters:new(length(bounds(Kind)) + 2, [write_concurrency]).

bounds(Kind) when Kind =:= decode; Kind =:= encode -> ?OF_LIBRARY;
bounds(_) -> ?OF_BROKER.

%% Adds a duration, which is a difference of monotonic times in native units.
-spec add(kind(), Native :: integer()) -> ok.
add(Kind, Native) ->
    case persistent_term:get(?MODULE, none) of
        none ->
            ok;
        #{Kind := Counters} ->
            Ns = max(0, erlang:convert_time_unit(Native, native, nanosecond)),
            Bounds = bounds(Kind),
            ok = counters:add(Counters, place(Ns, Bounds, 1), 1),
            counters:add(Counters, length(Bounds) + 2, Ns)
    end.

place(Ns, [Us | Bounds], Place) when Ns > Us * 1000 -> place(Ns, Bounds, Place + 1);
place(_, _, Place) -> Place.

-spec histogram(kind()) -> histogram().
histogram(Kind) ->
    Bounds = bounds(Kind),
    Get =
        case persistent_term:get(?MODULE, none) of
            none -> fun(_) -> 0 end;
            #{Kind := Counters} -> fun(Place) -> counters:get(Counters, Place) end
        end,
    {Buckets, Count} = lists:mapfoldl(
        fun({Place, Bound}, Sum) ->
            NSum = Sum + Get(Place),
            {{Bound, NSum}, NSum}
        end,
        0,
        lists:enumerate([Us / 1_000_000 || Us <- Bounds] ++ [infinity])
    ),
    #{buckets => Buckets, count => Count, sum => Get(length(Bounds) + 2) / 1_000_000_000}.
