-module(nats_gateway_emqx_limiter_tests).

-include_lib("eunit/include/eunit.hrl").

limiter(Rate) ->
    Options = nats_gateway_emqx_limiter:options(Rate),
    nats_gateway_emqx_limiter:create(Options#{name => test}).

take(0, _) -> 0;
take(N, Limiter) ->
    case nats_gateway_emqx_limiter:consume(1, Limiter) of
        {ok, Limiter} -> 1 + take(N - 1, Limiter);
        {pause, Ms, Limiter} when is_integer(Ms), Ms > 0 -> take(N - 1, Limiter)
    end.

no_limit_test_() ->
    [?_assertEqual(undefined, nats_gateway_emqx_limiter:options(R)) || R <- [infinity, 0, -1]].

a_full_bucket_and_no_more_test() -> ?assertEqual(5, take(50, limiter(5))).

one_per_second_test() -> ?assertEqual(1, take(50, limiter(1))).

the_pause_is_until_the_next_token_test() ->
    Limiter = limiter(20),
    20 = take(20, Limiter),
    {pause, Ms, _} = nats_gateway_emqx_limiter:consume(1, Limiter),
    ?assert(Ms =< 51),
    timer:sleep(Ms),
    ?assertMatch({ok, _}, nats_gateway_emqx_limiter:consume(1, Limiter)).

what_is_not_used_is_not_saved_beyond_a_second_test() ->
    Limiter = #{full_at := Ref} = limiter(10),
    atomics:sub(Ref, 1, 60000000),
    ?assertEqual(10, take(100, Limiter)).

acceptors_share_it_test() ->
    Limiter = limiter(100),
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), take(100, Limiter)} end) || _ <- lists:seq(1, 8)],
    Taken = lists:sum([
        receive
            {Pid, N} -> N
        end
     || Pid <- Pids
    ]),
    ?assert(Taken >= 100 andalso Taken =< 110).
