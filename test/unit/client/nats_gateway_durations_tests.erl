-module(nats_gateway_durations_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_durations, [add/2, histogram/1]).

started_test_() ->
    {foreach,
        fun() ->
            ok = nats_gateway_durations:forget(),
            ok = nats_gateway_durations:start()
        end,
        fun(_) -> ok = nats_gateway_durations:forget() end, [
            fun each_bucket_has_what_is_below_it/0,
            fun kinds_are_apart/0,
            fun another_start_forgets_nothing/0
        ]}.

native(Ns) -> erlang:convert_time_unit(Ns, nanosecond, native).

each_bucket_has_what_is_below_it() ->
    %% At a bound, next to it, beyond all of them, and a clock that went back.
    [ok = add(decode, native(Ns)) || Ns <- [0, 4999, 5000, 5001, 10_000_000, 10_000_001, -1]],
    #{buckets := Buckets, count := Count, sum := Sum} = histogram(decode),
    ?assertEqual(
        [
            {5.0e-6, 4}, {1.0e-5, 5}, {2.5e-5, 5}, {5.0e-5, 5}, {1.0e-4, 5}, {2.5e-4, 5}, {5.0e-4, 5},
            {0.001, 5}, {0.0025, 5}, {0.01, 6}, {infinity, 7}
        ],
        Buckets
    ),
    ?assertEqual(7, Count),
    ?assertEqual((4999 + 5000 + 5001 + 10_000_000 + 10_000_001) / 1_000_000_000, Sum).

kinds_are_apart() ->
    ok = add(encode, native(1000)),
    ok = add(broker_round_trip, native(2000)),
    ok = add(broker_round_trip, native(11_000_000_000)),
    ?assertMatch(#{count := 1}, histogram(encode)),
    ?assertMatch(#{count := 0, sum := +0.0}, histogram(decode)),
    #{buckets := Buckets, count := 2} = histogram(broker_round_trip),
    ?assertEqual({10.0, 1}, lists:nth(length(Buckets) - 1, Buckets)),
    ?assertMatch(#{count := 0}, histogram(publish)).

another_start_forgets_nothing() ->
    ok = add(encode, native(1000)),
    ok = nats_gateway_durations:start(),
    ?assertMatch(#{count := 1}, histogram(encode)).

nobody_watches_test() ->
    ok = nats_gateway_durations:forget(),
    ?assertEqual(ok, add(decode, 1)),
    ?assertMatch(#{count := 0}, histogram(decode)).
