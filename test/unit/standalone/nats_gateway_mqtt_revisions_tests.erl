-module(nats_gateway_mqtt_revisions_tests).

-include_lib("eunit/include/eunit.hrl").

-export([grows_with_each_value/0, is_the_same_for_all/0, alone/0, in_order/0]).
-export([an_owner_that_ends/0, who_waits_ends/0]).

-import(nats_gateway_mqtt_revisions, [of_value/2, seen/3, locked/2]).

all_test_() ->
    {foreach,
        fun() ->
            {ok, Pid} = nats_gateway_mqtt_revisions:start_link(),
            true = unlink(Pid),
            Pid
        end,
        fun(Pid) ->
            Monitor = monitor(process, Pid),
            exit(Pid, kill),
            receive
                {'DOWN', Monitor, process, _, _} -> ok
            end
        end, [
            {atom_to_list(Name), fun() -> ?MODULE:Name() end}
         || Name <- [grows_with_each_value, is_the_same_for_all, alone, in_order, an_owner_that_ends, who_waits_ends]
        ]}.

grows_with_each_value() ->
    First = of_value(<<"t">>, 1),
    ?assert(First > 0 andalso First < 1 bsl 53),
    ?assertEqual(First, of_value(<<"t">>, 1)),
    Second = of_value(<<"t">>, 2),
    ?assert(Second > First),
    %% the first value once more is another write
    ?assert(of_value(<<"t">>, 1) > Second),
    %% even if a gateway with another clock has written
    Later = Second + 1000000000,
    ok = seen(<<"t">>, 3, Later),
    ?assertEqual(Later, of_value(<<"t">>, 3)),
    ?assertEqual(Later + 1, of_value(<<"t">>, 4)).

is_the_same_for_all() ->
    Test = self(),
    [spawn(fun() -> Test ! {revision, of_value(<<"t">>, 1)} end) || _ <- lists:seq(1, 50)],
    Revisions = [receive {revision, R} -> R end || _ <- lists:seq(1, 50)],
    ?assertMatch([_], lists:usort(Revisions)).

alone() ->
    Table = ets:new(sum, [public]),
    true = ets:insert(Table, {n, 0}),
    Add = fun() ->
        [{n, N}] = ets:lookup(Table, n),
        erlang:yield(),
        true = ets:insert(Table, {n, N + 1})
    end,
    Monitors = [
        element(2, spawn_monitor(fun() -> [locked(<<"t">>, Add) || _ <- lists:seq(1, 20)] end))
     || _ <- lists:seq(1, 20)
    ],
    [receive {'DOWN', M, process, _, normal} -> ok end || M <- Monitors],
    ?assertEqual([{n, 400}], ets:lookup(Table, n)),
    %% another topic does not wait
    locked(<<"t">>, fun() -> ?assertEqual(done, locked(<<"u">>, fun() -> done end)) end),
    %% an error gives the lock back
    ?assertError(x, locked(<<"t">>, fun() -> error(x) end)),
    ?assertEqual(done, locked(<<"t">>, fun() -> done end)).

in_order() ->
    Test = self(),
    locked(<<"t">>, fun() ->
        [
            begin
                spawn(fun() -> locked(<<"t">>, fun() -> Test ! N end) end),
                timer:sleep(10)
            end
         || N <- [1, 2, 3]
        ]
    end),
    ?assertEqual([1, 2, 3], [receive N -> N end || _ <- [1, 2, 3]]).

an_owner_that_ends() ->
    Test = self(),
    Owner = spawn(fun() -> locked(<<"t">>, fun() -> Test ! has, timer:sleep(infinity) end) end),
    receive has -> ok end,
    exit(Owner, kill),
    ?assertEqual(done, locked(<<"t">>, fun() -> done end)).

who_waits_ends() ->
    locked(<<"t">>, fun() ->
        Waiting = spawn(fun() -> locked(<<"t">>, fun() -> error(never) end) end),
        timer:sleep(20),
        exit(Waiting, kill),
        timer:sleep(20)
    end),
    ?assertEqual(done, locked(<<"t">>, fun() -> done end)).
