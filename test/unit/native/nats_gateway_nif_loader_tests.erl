-module(nats_gateway_nif_loader_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_nif_loader, [acquire/0, release/0, is_acquired/0, with/1]).

loader_test_() ->
    {foreach, fun nats_gateway_nif_loader:release/0,
        fun(_) ->
            ok = release(),
            {module, _} = code:ensure_loaded(nats_gateway_nif)
        end,
        [
            fun it_is_there_from_acquire_to_release/0,
            fun with_it_for_a_moment/0,
            fun with_it_leaves_it_to_the_application/0,
            fun a_loader_that_loads_the_module_again_is_no_problem/0,
            fun who_needs_it_for_a_moment_does_not_take_it_from_who_starts/0
        ]}.

works() -> nats_gateway_nif:topic(<<"a.b">>, <<>>) =:= <<"a/b">>.

it_is_there_from_acquire_to_release() ->
    ?assertNot(is_acquired()),
    ?assertEqual(ok, acquire()),
    ?assert(is_acquired()),
    ?assert(works()),
    ?assertEqual(ok, release()),
    ?assertNot(is_acquired()),
    ?assertEqual(false, code:is_loaded(nats_gateway_nif)).

with_it_for_a_moment() ->
    ?assert(with(fun works/0)),
    ?assertEqual(false, code:is_loaded(nats_gateway_nif)),
    ?assertError(oops, with(fun() -> error(oops) end)),
    ?assertEqual(false, code:is_loaded(nats_gateway_nif)).

with_it_leaves_it_to_the_application() ->
    ok = acquire(),
    ?assert(with(fun works/0)),
    ?assert(works()).

%% EMQX does that when a plugin is installed, and some versions at each start, whatever has become
%% of the start before. The library is mapped still.
a_loader_that_loads_the_module_again_is_no_problem() ->
    {module, _} = code:load_file(nats_gateway_nif),
    ?assert(works()),
    lists:foreach(
        fun(_) ->
            _ = code:purge(nats_gateway_nif),
            ?assertEqual({module, nats_gateway_nif}, code:load_file(nats_gateway_nif)),
            ?assertEqual(ok, acquire()),
            ?assert(works()),
            ok = release(),
            %% a start that was refused by then has left it
            {module, _} = code:load_file(nats_gateway_nif)
        end,
        lists:seq(1, 3)
    ).

who_needs_it_for_a_moment_does_not_take_it_from_who_starts() ->
    Test = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        true = with(fun() ->
            Test ! {self(), in},
            receive
                go_on -> works()
            end
        end)
    end),
    receive
        {Pid, in} -> ok
    end,
    {Starter, StarterMonitor} = spawn_monitor(fun() -> ok = acquire() end),
    Pid ! go_on,
    [
        receive
            {'DOWN', M, process, P, Reason} -> ?assertEqual(normal, Reason)
        end
     || {P, M} <- [{Pid, Monitor}, {Starter, StarterMonitor}]
    ],
    ?assert(is_acquired()),
    ?assert(works()).
