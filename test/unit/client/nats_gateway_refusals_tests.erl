-module(nats_gateway_refusals_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_refusals, [may_log/1]).

-export([log/2]).

%% The log, as messages.
log(#{msg := {report, Report}}, #{config := Test}) -> Test ! {logged, Report};
log(_, _) -> ok.

refusals_test_() ->
    {foreach,
        fun() ->
            ok = logger:add_handler(?MODULE, ?MODULE, #{config => self(), level => all}),
            {ok, Pid} = nats_gateway_refusals:start_link(),
            Pid
        end,
        fun(Pid) ->
            ok = logger:remove_handler(?MODULE),
            ok = gen_server:stop(Pid)
        end, [
            fun some_are_logged/0,
            fun each_listener_has_its_own/0,
            {timeout, 30, fun what_is_left_out_is_counted/0},
            {timeout, 60, fun with_time_there_is_room_again/0}
        ]}.

without_the_process_all_are_logged_test() ->
    ?assert(lists:all(fun(_) -> may_log(a) end, lists:seq(1, 100))).

asked(Listener, Count) -> length([yes || _ <- lists:seq(1, Count), may_log(Listener)]).

some_are_logged() ->
    ?assertEqual(20, asked(a, 20)),
    ?assertEqual(0, asked(a, 1)).

each_listener_has_its_own() ->
    ?assertEqual(20, asked(a, 1000)),
    ?assertEqual(20, asked(<<"b">>, 1000)).

%% None is lost, whoever counts at the time.
what_is_left_out_is_counted() ->
    Test = self(),
    ok = logger:set_handler_config(?MODULE, config, Test),
    Pids = [
        spawn_link(fun() -> Test ! {self(), asked(a, 2500)} end)
     || _ <- lists:seq(1, 4)
    ],
    Logged = lists:sum([receive {Pid, Count} -> Count end || Pid <- Pids]),
    ?assert(Logged >= 20),
    ?assertEqual(all, summed_up(10000 - Logged)).

summed_up(0) ->
    all;
summed_up(Count) ->
    receive
        {logged, #{msg := refusals_not_logged, listener := a, lines := Lines}} ->
            summed_up(Count - Lines)
    after 15000 -> {missing, Count}
    end.

with_time_there_is_room_again() ->
    ?assertEqual(20, asked(a, 21)),
    Later = waited(fun() -> may_log(a) end, 100),
    ?assert(Later),
    %% and then nothing of it stays
    ?assert(waited(fun() -> ets:info(nats_gateway_refusals, size) =:= 0 end, 400)).

waited(_, 0) ->
    false;
waited(Is, Times) ->
    case Is() of
        true ->
            true;
        false ->
            receive
            after 100 -> waited(Is, Times - 1)
            end
    end.
