-module(nats_gateway_census_tests).

-include("nats_gateway_census.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_census, [enter/3, report/2, leave/2, open/0, closed/0, totals/0]).

with_census_test_() ->
    {foreach,
        fun() ->
            _ = persistent_term:erase(nats_gateway_census),
            {ok, Pid} = nats_gateway_census:start_link(),
            true = unlink(Pid),
            Pid
        end,
        fun(_) -> gen_server:stop(nats_gateway_census) end,
        [
            fun a_client_comes_and_goes/0,
            fun a_client_is_found/0,
            fun only_what_is_new_is_added/0,
            fun what_was_before_is_not_added/0,
            fun activity/0,
            fun who_was_killed_is_not_there/0,
            fun the_last_that_ended_are_kept/0,
            fun reasons_are_few/0,
            fun accounts_are_apart/0,
            fun refused_logins/0,
            fun a_process_of_it_ends/0
        ]}.

%% In a process of its own, as each connection is.
as_client(Fun) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({done, Fun()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {done, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.

description() ->
    #{peername => {{127, 0, 0, 1}, 4000}, transport => tcp, user => <<"u">>, account => <<"$G">>}.

left(Reason, Figures) -> leave(Reason, fun() -> {Figures, description()} end).

a_client_comes_and_goes() ->
    as_client(fun() ->
        ok = enter(1, <<"tcp:default">>, #{}),
        %% twice is once
        ok = enter(1, <<"tcp:default">>, #{}),
        ?assertMatch([#census{cid = 1, listener = <<"tcp:default">>}], open()),
        ?assertMatch(#{connections := 1}, totals()),
        ok = left({shutdown, client_closed}, #{messages_sent => 3})
    end),
    ?assertEqual([], open()),
    ?assertMatch([{#census{cid = 1}, #{user := <<"u">>}, client_closed, _}], closed()),
    ?assertMatch(#{connections := 1, messages_sent := 3, ended := #{client_closed := 1}}, totals()).

only_what_is_new_is_added() ->
    as_client(fun() ->
        ok = enter(1, l, #{}),
        ok = report(<<"$G">>, #{messages_received => 5, octets_received => 100}),
        ok = report(<<"$G">>, #{messages_received => 5, octets_received => 100}),
        ok = report(<<"$G">>, #{messages_received => 7, octets_received => 150}),
        ok = left({shutdown, kicked}, #{messages_received => 8, octets_received => 150})
    end),
    ?assertMatch(#{messages_received := 8, octets_received := 150, octets_sent := 0}, totals()).

what_was_before_is_not_added() ->
    as_client(fun() ->
        ok = enter(1, l, #{messages_sent => 1000}),
        ok = report(<<"$G">>, #{messages_sent => 1001})
    end),
    ?assertMatch(#{messages_sent := 1}, totals()).

%% A PING is no activity, as in nats-server's `last_activity'.
activity() ->
    as_client(fun() ->
        ok = enter(1, l, #{}),
        ok = report(<<"$G">>, #{messages_sent => 1, octets_sent => 10}),
        [#census{active = Before}] = open(),
        timer:sleep(5),
        ok = report(<<"$G">>, #{messages_sent => 1, octets_sent => 16}),
        ?assertMatch([#census{active = Before, figures = #{octets_sent := 16}}], open()),
        ok = report(<<"$G">>, #{messages_sent => 2, octets_sent => 26}),
        [#census{active = After}] = open(),
        ?assert(After > Before)
    end).

who_was_killed_is_not_there() ->
    as_client(fun() -> enter(1, l, #{}) end),
    ?assertEqual([], open()),
    ?assertEqual(0, ets:info(nats_gateway_census, size)).

the_last_that_ended_are_kept() ->
    [as_client(fun() -> enter(N, l, #{}), left(normal, #{}) end) || N <- lists:seq(1, 1002)],
    Cids = [Cid || {#census{cid = Cid}, _, _, _} <- closed()],
    ?assertEqual(lists:seq(1002, 3, -1), Cids).

%% Each is a label of a metric.
reasons_are_few() ->
    Reasons = [
        {{denied, <<"a subject">>}, permission_denied},
        {{shutdown, {denied, <<"another">>}}, permission_denied},
        {{error, takenover}, takenover},
        {{error, {any, "text"}}, internal_error},
        {{badmatch, <<"a secret">>}, internal_error},
        {normal, normal}
    ],
    [as_client(fun() -> enter(1, l, #{}), left(Reason, #{}) end) || {Reason, _} <- Reasons],
    ?assertEqual([Word || {_, Word} <- lists:reverse(Reasons)], [Word || {_, _, Word, _} <- closed()]),
    ?assertMatch(
        #{ended := #{permission_denied := 2, takenover := 1, internal_error := 2, normal := 1}}, totals()
    ).

%% A client that logs in again may come to another one.
accounts_are_apart() ->
    Slow = fun() ->
        ok = enter(1, l, #{}),
        ok = report(<<"A">>, #{messages_sent => 1, octets_sent => 10}),
        ?assertMatch([#census{account = <<"A">>}], open()),
        ok = leave({shutdown, slow_consumer}, fun() ->
            {#{messages_sent => 3, octets_sent => 30, messages_received => 1}, (description())#{account := <<"B">>}}
        end)
    end,
    as_client(Slow),
    as_client(Slow),
    ?assertEqual(
        #{
            <<"A">> => #{
                messages_sent => 2, octets_sent => 20, messages_received => 0, octets_received => 0, slow_consumers => 0
            },
            <<"B">> => #{
                messages_sent => 4, octets_sent => 40, messages_received => 2, octets_received => 0, slow_consumers => 2
            }
        },
        nats_gateway_census:accounts()
    ),
    %% They are no connections, and no reasons.
    ?assertMatch([_, _], closed()),
    ?assertEqual(#{slow_consumer => 2}, maps:get(ended, totals())).

refused_logins() ->
    [ok = nats_gateway_census:login_refused(jwt, jwt_expired) || _ <- [1, 2]],
    [ok = nats_gateway_census:login_refused(broker, Reason) || Reason <- [banned, {any, "text"}, 200]],
    ?assertEqual(
        [{broker, banned, 1}, {broker, other, 2}, {jwt, jwt_expired, 2}], lists:sort(nats_gateway_census:refused())
    ),
    ?assertEqual(#{}, maps:get(ended, totals())).

%% Connections go on, and totals are not lost.
a_process_of_it_ends() ->
    as_client(fun() ->
        ok = enter(1, l, #{}),
        ok = report(<<"$G">>, #{messages_sent => 1}),
        gen_server:stop(nats_gateway_census),
        ?assertNot(nats_gateway_census:is_on()),
        ok = report(<<"$G">>, #{messages_sent => 2}),
        ok = enter(1, l, #{}),
        {ok, Pid} = nats_gateway_census:start_link(),
        true = unlink(Pid),
        ok = enter(1, l, #{messages_sent => 2}),
        ok = left(normal, #{messages_sent => 3})
    end),
    ?assertMatch(#{messages_sent := 2}, totals()).

%% Nobody watches: nothing is kept, and nobody is asked.
without_it_test() ->
    ?assertNot(nats_gateway_census:is_on()),
    ok = enter(1, l, #{}),
    ok = report(<<"$G">>, #{messages_sent => 1}),
    ok = leave(normal, fun() -> error(asked) end),
    ok = nats_gateway_census:login_refused(jwt, jwt_expired),
    ?assertEqual([], nats_gateway_census:refused()),
    ?assertEqual(#{}, nats_gateway_census:accounts()),
    ?assertEqual([], open()),
    ?assertEqual([], closed()).

a_client_is_found() ->
    Self = as_client(fun() ->
        ok = enter(7, <<"tcp:default">>, #{}),
        {{ok, Found}, error} = {nats_gateway_census:find(7), nats_gateway_census:find(8)},
        Found =:= self()
    end),
    ?assert(Self).
