%% What a process that handles credentials lets slip when it crashes: nothing.
-module(nats_gateway_guard_tests).

-include_lib("eunit/include/eunit.hrl").

-export([log/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-define(SECRET, "s3cr3t-0f-a-cl1ent").

%% -------------------------------------------------------------------------------------------
%% A server that holds a secret and crashes in every way

init({crash, Secret}) -> crash(badmatch, Secret);
init({continue, Secret}) -> {ok, Secret, {continue, ok}};
init(Secret) -> {ok, Secret}.

handle_continue(ok, Secret) -> {noreply, Secret}.

handle_call(get, _, Secret) -> {reply, Secret, Secret};
handle_call({crash, How}, _, Secret) -> crash(How, Secret);
handle_call(stop, _, Secret) -> {stop, normal, stopped, Secret};
handle_call(later, From, Secret) ->
    gen_server:reply(From, now),
    {noreply, Secret, hibernate}.

handle_cast({stop, Reason}, Secret) -> {stop, Reason, Secret};
handle_cast({crash, How}, Secret) -> crash(How, Secret);
handle_cast({crash_in_terminate, _}, Secret) -> {stop, normal, {terminate, Secret}}.

handle_info({crash, How}, Secret) -> crash(How, Secret);
handle_info({set, Secret}, _) -> {noreply, Secret}.

terminate(_, {terminate, Secret}) -> crash(badmatch, Secret);
terminate(_, _) -> ok.

format_status(Status) -> Status#{state := shown}.

crash(badmatch, Secret) -> [] = [Secret || Secret =/= none];
crash(case_clause, Secret) ->
    case [Secret || Secret =/= none] of
        [] -> ok
    end;
crash(function_clause, Secret) -> lists:keyfind(Secret, [Secret], {Secret});
%% Not as the last call, which some runtimes show without who made it.
crash(badarg, Secret) -> 1 + binary_to_integer(Secret);
crash(error, Secret) -> error({bad, Secret});
crash(exit, Secret) -> exit({bad, Secret});
crash(throw, Secret) -> throw({reply, Secret, Secret});
crash(text, Secret) -> error(Secret).

%% -------------------------------------------------------------------------------------------

log(Event, #{config := Test}) -> Test ! {?MODULE, Event}.

logged(Fun) ->
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, all),
    try
        Fun(),
        lists:flatten(collect())
    after
        ok = logger:set_primary_config(level, Level),
        ok = logger:remove_handler(?MODULE)
    end.

collect() ->
    receive
        {?MODULE, Event} ->
            Text = logger_formatter:format(Event, #{
                single_line => false, depth => unlimited, chars_limit => unlimited
            }),
            [unicode:characters_to_list([Text, io_lib:format("~p", [Event])]) | collect()]
    %% handlers run in the process that logs, which has ended
    after 0 -> []
    end.

reports_show_nothing_test_() ->
    [
        {lists:concat([Way, " ", How]), fun() -> nothing_shown(Way, How) end}
     || Way <- [call, cast, info],
        How <- [badmatch, case_clause, function_clause, badarg, error, exit, throw, text]
    ].

nothing_shown(Way, How) ->
    Text = logged(fun() ->
        Pid = started(),
        %% what waits is in the report of the runtime, too
        ok = sys:suspend(Pid),
        Request = {crash, How},
        case Way of
            call -> spawn(fun() -> gen_server:call(Pid, Request) end);
            cast -> gen_server:cast(Pid, Request);
            info -> Pid ! Request
        end,
        wait_for_message(Pid),
        Pid ! {waiting, <<?SECRET>>},
        Monitor = monitor(process, Pid),
        ok = sys:resume(Pid),
        receive
            {'DOWN', Monitor, process, Pid, Reason} ->
                ?assertEqual(nomatch, string:find(io_lib:format("~p", [Reason]), ?SECRET))
        end
    end),
    ?assertNotEqual("", Text),
    ?assertEqual(nomatch, string:find(Text, ?SECRET)),
    %% where it was is still known
    ?assertNotEqual(nomatch, string:find(Text, "nats_gateway_guard_tests")).

wait_for_message(Pid) ->
    case process_info(Pid, message_queue_len) of
        {message_queue_len, 0} ->
            timer:sleep(1),
            wait_for_message(Pid);
        _ ->
            ok
    end.

started() ->
    {ok, Pid} = nats_gateway_guard:start_link(?MODULE, <<?SECRET>>),
    unlink(Pid),
    Pid.

a_crash_at_the_start_and_at_the_end_test() ->
    Text = logged(fun() ->
        _ = process_flag(trap_exit, true),
        {error, Reason} = nats_gateway_guard:start_link(?MODULE, {crash, <<?SECRET>>}),
        ?assertEqual(nomatch, string:find(io_lib:format("~p", [Reason]), ?SECRET)),
        Pid = started(),
        Monitor = monitor(process, Pid),
        gen_server:cast(Pid, {crash_in_terminate, <<?SECRET>>}),
        receive
            {'DOWN', Monitor, process, Pid, _} -> ok
        end
    end),
    ?assertEqual(nomatch, string:find(Text, ?SECRET)).

%% It may be what another process has crashed with.
reasons_to_stop_test_() ->
    [
        ?_test(begin
            Pid = started(),
            Monitor = monitor(process, Pid),
            gen_server:cast(Pid, {stop, Reason}),
            receive
                {'DOWN', Monitor, process, Pid, Found} -> ?assertEqual(Expected, Found)
            end
        end)
     || {Reason, Expected} <- [
            {normal, normal},
            {shutdown, shutdown},
            {{shutdown, kicked}, {shutdown, kicked}},
            {{shutdown, {error, discarded}}, {shutdown, {error, discarded}}},
            {{badmatch, <<?SECRET>>}, {badmatch, hidden}},
            {<<?SECRET>>, hidden}
        ]
    ].

otherwise_it_is_a_gen_server_test() ->
    {ok, Pid} = nats_gateway_guard:start_link({local, ?MODULE}, ?MODULE, {continue, one}),
    ?assertEqual(Pid, whereis(?MODULE)),
    ?assertEqual(one, gen_server:call(Pid, get)),
    Pid ! {set, two},
    ?assertEqual(two, gen_server:call(Pid, get)),
    ?assertEqual(now, gen_server:call(Pid, later)),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [sys:get_status(Pid)]), "two")),
    ?assertEqual(stopped, gen_server:call(Pid, stop)).

the_log_shows_no_argument_of_a_caught_error_test() ->
    Location = [{file, "m.erl"}, {line, 7}, {error_info, #{cause => <<"secret">>}}],
    ?assertEqual(
        #{
            reason => {error, {badmatch, hidden}},
            stacktrace => [{m, f, 1, [{file, "m.erl"}, {line, 7}]}, {m, g, 2, []}]
        },
        nats_gateway_guard:caught(error, {badmatch, <<"secret">>}, [
            {m, f, [<<"secret">>], Location}, {m, g, 2, []}
        ])
    ).
