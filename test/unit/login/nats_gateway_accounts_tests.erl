-module(nats_gateway_accounts_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_accounts, [join/2, leave/1]).

accounts_test_() ->
    {foreach,
        fun() ->
            [
                begin
                    {ok, Pid} = apply(Module, Function, Arguments),
                    Pid
                end
             || #{start := {Module, Function, Arguments}} <- nats_gateway_accounts:child_specs()
            ]
        end,
        fun(Pids) -> [gen_server:stop(Pid) || Pid <- lists:reverse(Pids)] end, [
            fun limits/0,
            fun one_that_ends_makes_room/0,
            fun one_that_leaves_makes_room/0,
            fun accounts_do_not_share/0,
            fun without_a_limit_nothing_is_counted/0,
            fun the_last_place_is_taken_once/0
        ]}.

limits() ->
    [
        begin
            Account = integer_to_binary(Limit),
            Connections = [connection(Account, Limit) || _ <- lists:seq(1, Limit)],
            ?assertEqual(lists:duplicate(Limit, ok), [Result || {_, Result} <- Connections]),
            ?assertEqual(full, join(Account, Limit)),
            ?assertEqual(full, join(Account, Limit)),
            [finish(Pid) || {Pid, _} <- Connections]
        end
     || Limit <- [0, 1, 2, 50]
    ].

one_that_ends_makes_room() ->
    {Pid, ok} = connection(<<"A">>, 1),
    ?assertEqual(full, join(<<"A">>, 1)),
    finish(Pid),
    ?assertEqual(ok, eventually_joined(<<"A">>, 1)),
    leave(<<"A">>).

one_that_leaves_makes_room() ->
    ?assertEqual(ok, leave(<<"A">>)),
    ?assertEqual(ok, join(<<"A">>, 1)),
    ?assertEqual(ok, leave(<<"A">>)),
    {Pid, ok} = connection(<<"A">>, 1),
    finish(Pid).

accounts_do_not_share() ->
    {Pid, ok} = connection(<<"A">>, 1),
    ?assertEqual(ok, join(<<"B">>, 1)),
    ?assertEqual(ok, leave(<<"B">>)),
    finish(Pid).

without_a_limit_nothing_is_counted() ->
    ?assertEqual(ok, join(<<"A">>, infinity)),
    ?assertEqual(ok, join(<<"A">>, 1)),
    leave(<<"A">>).

the_last_place_is_taken_once() ->
    Owner = self(),
    Pids = [
        spawn_link(fun() ->
            receive go -> Owner ! {result, join(<<"A">>, 10)} end,
            receive finish -> ok end
        end)
     || _ <- lists:seq(1, 100)
    ],
    [Pid ! go || Pid <- Pids],
    Results = [receive {result, Result} -> Result end || _ <- Pids],
    ?assertEqual({10, 90}, {count(ok, Results), count(full, Results)}),
    [finish(Pid) || Pid <- Pids].

count(Result, Results) -> length([found || Found <- Results, Found =:= Result]).

connection(Account, Limit) ->
    Owner = self(),
    Pid = spawn_link(fun() ->
        Owner ! {self(), join(Account, Limit)},
        receive finish -> ok end
    end),
    receive {Pid, Result} -> {Pid, Result} end.

finish(Pid) ->
    Monitor = monitor(process, Pid),
    Pid ! finish,
    receive {'DOWN', Monitor, _, _, _} -> ok end.

%% The end of a process is news of its own.
eventually_joined(Account, Limit) ->
    case join(Account, Limit) of
        ok -> ok;
        full -> timer:sleep(1), eventually_joined(Account, Limit)
    end.
