%% How many connections a listener accepts per second. esockd (since 5.13) takes a module of this
%% form as a limiter. esockd's own limiter is filled once per second by a clock, so twice the rate
%% can pass within a moment.
%%
%% The limiter is a bucket that holds the tokens of one second. Its state is one number, which all
%% acceptors of the listener share: the time when the bucket will be full again.
-module(nats_gateway_emqx_limiter).

-export([options/1]).
-export([create/1]).
-export([consume/2]).
-export([delete/1]).

-type limiter() :: #{
    module := ?MODULE,
    name := term(),
    %% microseconds
    full_at := atomics:atomics_ref(),
    token := pos_integer(),
    bucket := pos_integer()
}.

-define(SECOND, 1000000).

%% The options for esockd, which makes the limiter when the listener starts.
-spec options(Rate :: term()) -> undefined | #{module := ?MODULE, rate := pos_integer()}.
options(Rate) when is_integer(Rate), Rate > 0 -> #{module => ?MODULE, rate => Rate};
options(_) -> undefined.

-spec create(#{rate := pos_integer(), name := term(), _ => _}) -> limiter().
create(#{rate := Rate, name := Name}) ->
    FullAt = atomics:new(1, []),
    ok = atomics:put(FullAt, 1, now_us()),
    #{
        module => ?MODULE,
        name => Name,
        full_at => FullAt,
        token => max(1, ?SECOND div Rate),
        bucket => ?SECOND
    }.

-spec consume(pos_integer(), limiter()) ->
    {ok, limiter()} | {pause, Milliseconds :: pos_integer(), limiter()}.
consume(N, Limiter = #{full_at := Ref, token := Token, bucket := Bucket}) ->
    Now = now_us(),
    FullAt = atomics:get(Ref, 1),
    NFullAt = max(FullAt, Now) + N * Token,
    case NFullAt - Now =< Bucket of
        true ->
            case atomics:compare_exchange(Ref, 1, FullAt, NFullAt) of
                ok -> {ok, Limiter};
                _ -> consume(N, Limiter)
            end;
        false ->
            {pause, (NFullAt - Now - Bucket) div 1000 + 1, Limiter}
    end.

-spec delete(limiter()) -> ok.
delete(_) -> ok.

now_us() -> erlang:monotonic_time(microsecond).
