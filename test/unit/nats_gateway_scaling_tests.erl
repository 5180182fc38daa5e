%% No operation costs more because there are many of its kind. What is counted are reductions, which
%% are the same on a busy machine.
-module(nats_gateway_scaling_tests).

-include_lib("eunit/include/eunit.hrl").

-define(FEW, 100).
-define(MANY, 100000).
%% Of as many, so many are measured.
-define(MEASURED, 10000).
-define(FACTOR, 1.5).
%% Garbage collections count as reductions too, and are no cost of an operation: a heap that needs none.
-define(HEAP_WORDS, 30 * 1024 * 1024).

%% -------------------------------------------------------------------------------------------
%% Subscriptions

sid(N) -> integer_to_binary(N).

own(N) -> <<"s/", (integer_to_binary(N))/binary>>.

add(Sid, Filter, Group, S) ->
    {_, NS} = nats_gateway_subscriptions:add(Sid, Filter, Group, {Group, Filter}, S),
    nats_gateway_subscriptions:joined({Group, Filter}, NS).

added(N, Filter, Group) ->
    repeat(N, fun(I, S) -> add(sid(I), Filter(I), Group, S) end, nats_gateway_subscriptions:new()).

limit(Max) ->
    fun(N, S) ->
        {_, NS} = nats_gateway_subscriptions:limit(sid(N), Max, S),
        NS
    end.

deliver(Key, Topic) ->
    fun(_, S) ->
        {[_], _, NS} = nats_gateway_subscriptions:deliver(Key, Topic, undefined, S),
        NS
    end.

subscriptions_test_() ->
    One = fun(_) -> <<"a">> end,
    Wildcard = fun(N) -> <<"a/", (integer_to_binary(N))/binary, "/+">> end,
    Sub = fun(Filter, Group) ->
        flat("SUB " ++ binary_to_list(Filter(0)) ++ [$q || Group =/= undefined], fun(N) ->
            added(N, Filter, Group)
        end, fun(N, S) -> add(sid(?MANY + N), Filter(?MANY + N), Group, S) end)
    end,
    [
        Sub(fun own/1, undefined),
        Sub(One, undefined),
        Sub(One, <<"q">>),
        Sub(Wildcard, undefined),
        Sub(Wildcard, <<"q">>),
        flat("UNSUB", fun(N) -> added(N, fun own/1, undefined) end, limit(0)),
        flat("UNSUB on one subject", fun(N) -> added(N, One, undefined) end, limit(0)),
        flat("UNSUB of a queue group", fun(N) -> added(N, One, <<"q">>) end, limit(0)),
        flat("UNSUB of a queue group with wildcards", fun(N) -> added(N, Wildcard, <<"q">>) end, limit(0)),
        flat("UNSUB with max", fun(N) -> added(N, One, undefined) end, limit(5)),
        flat("max reached", fun(N) -> repeat(N, limit(1), added(N, fun own/1, undefined)) end, fun(N, S) ->
            (deliver({undefined, own(N)}, own(N)))(N, S)
        end),
        %% SUB and UNSUB in turn: who has left a line does not stay in it
        flat("members of a queue group come and go", fun(N) -> added(N, One, <<"q">>) end, fun(N, S) ->
            (limit(0))(?MANY + N, add(sid(?MANY + N), <<"a">>, <<"q">>, S))
        end),
        flat("queue members", fun(N) -> added(N, One, <<"q">>) end, deliver({<<"q">>, <<"a">>}, <<"a">>)),
        flat("overlapping filters", fun(N) ->
            add(<<"x">>, <<"a/+/b">>, <<"q">>, added(N, Wildcard, <<"q">>))
        end, deliver({<<"q">>, <<"a/+/b">>}, <<"a/x/b">>)),
        flat("503", fun(N) ->
            added(N, Wildcard, undefined)
        end, fun(_, S) ->
            ?assertEqual(undefined, nats_gateway_subscriptions:plain_sid(<<"a/x/y">>, S)),
            S
        end)
    ].

%% -------------------------------------------------------------------------------------------
%% Measurement

%% What is prepared for N operations, and each of these.
flat(Name, Prepare, Operation) -> {timeout, 120, {Name, fun() -> assert_flat(Prepare, Operation) end}}.

assert_flat(Prepare, Operation) ->
    Few = cost(?FEW, Prepare, Operation),
    Many = cost(?MANY, Prepare, Operation),
    ?assert(Many =< ?FACTOR * Few, {per_operation, {few, Few}, {many, Many}}).

%% Reductions of one operation, in a process that does nothing else.
cost(N, Prepare, Operation) ->
    Self = self(),
    {Pid, Monitor} = spawn_opt(
        fun() ->
            State = Prepare(N),
            true = erlang:garbage_collect(),
            {reductions, Before} = process_info(self(), reductions),
            Measured = min(N, ?MEASURED),
            _ = repeat(Measured, Operation, State),
            {reductions, After} = process_info(self(), reductions),
            Self ! {self(), (After - Before) / Measured}
        end,
        [monitor, {min_heap_size, ?HEAP_WORDS}]
    ),
    receive
        {Pid, Cost} ->
            receive
                {'DOWN', Monitor, process, Pid, _} -> Cost
            end;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error(Reason)
    end.

%% From the first to the last.
repeat(N, Operation, State) -> lists:foldl(Operation, State, lists:seq(1, N)).
