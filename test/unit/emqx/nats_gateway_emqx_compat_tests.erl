%% Against stand-ins with the functions that the versions of EMQX have.
-module(nats_gateway_emqx_compat_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_compat, [run_hook/3, fold_hook/4, count/2]).

%% name => {module, source}
'5.10'() ->
    #{
        emqx_hooks =>
            "-export([run/2, run_fold/3]).\n"
            "run(Name, Args) -> {Name, Args}.\n"
            "run_fold(Name, Args, Acc) -> {Name, Args, Acc}.\n",
        emqx_metrics => "-export([inc/2]).\ninc(Name, N) -> {Name, N}.\n"
    }.

'6.1'() ->
    #{
        emqx_hooks =>
            "-export([run/2, run/3, run_fold/3, run_fold/4]).\n"
            "run(_, _) -> error(no_context).\n"
            "run(Name, Ctx, Args) -> {Name, known(Ctx), Args}.\n"
            "run_fold(_, _, _) -> error(no_context).\n"
            "run_fold(Name, Ctx, Args, Acc) -> {Name, known(Ctx), Args, Acc}.\n"
            "known(#{conn_info_fn := F}) -> F(proto_name).\n",
        emqx_metrics =>
            "-export([inc/2, inc_global/2]).\n"
            "inc(_Namespace, _Name) -> error(another_meaning).\n"
            "inc_global(Name, N) -> {global, Name, N}.\n"
    }.

%% A retained message is {From, Number}.
'6.2'() ->
    ('6.1'())#{
        emqx_retainer_extsub_handler =>
            "-export([handle_subscribe/4]).\nhandle_subscribe(_, _, _, _) -> ignore.\n",
        emqx_retainer =>
            "-export([match_messages/3]).\n"
            "match_messages(<<\"off\">>, undefined, _) -> {error, no_backend};"
            " match_messages(_, undefined, Opts) -> part(lists:seq(1, 250), Opts);"
            " match_messages(_, Rest, Opts) -> part(Rest, Opts).\n"
            "part(All, #{batch_read_number := N}) ->"
            " {Part, Rest} = lists:split(min(N, length(All)), All),"
            " {ok, [{I rem 5, I} || I <- Part], case Rest of [] -> undefined; _ -> Rest end}.\n",
        emqx_banned => "-export([check_clientid/1]).\ncheck_clientid(From) -> From =:= 3.\n",
        emqx_message => "-export([from/1]).\nfrom({From, _}) -> From.\n"
    }.

with(Modules, Fun) ->
    maps:foreach(fun load/2, Modules),
    try
        ok = nats_gateway_emqx_compat:init(),
        Fun()
    after
        ok = nats_gateway_emqx_compat:forget(),
        maps:foreach(
            fun(Module, _) ->
                _ = code:delete(Module),
                code:purge(Module)
            end,
            Modules
        )
    end.

load(Module, Source) ->
    Forms = [form(Text) || Text <- ["-module(" ++ atom_to_list(Module) ++ ").\n" | lines(Source)]],
    {ok, Module, Binary} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, "stand-in", Binary).

lines(Source) -> [Line ++ "\n" || Line <- string:split(Source, "\n", all), Line =/= ""].

form(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.

-define(CONN_INFO, #{proto_name => <<"NATS">>}).

hooks_and_metrics_of_5_10_test() ->
    with('5.10'(), fun() ->
        ?assertEqual({h, [a]}, run_hook(h, ?CONN_INFO, [a])),
        ?assertEqual({h, [a], acc}, fold_hook(h, ?CONN_INFO, [a], acc)),
        ?assertEqual({m, 3}, count(m, 3))
    end).

hooks_and_metrics_of_6_1_test() ->
    with('6.1'(), fun() ->
        ?assertEqual({h, <<"NATS">>, [a]}, run_hook(h, ?CONN_INFO, [a])),
        ?assertEqual({h, <<"NATS">>, [a], acc}, fold_hook(h, ?CONN_INFO, [a], acc)),
        ?assertEqual({global, m, 3}, count(m, 3))
    end).

security_profile_test() ->
    ?assertNot(with('6.1'(), fun nats_gateway_emqx_compat:needs_authenticator/0)),
    lists:foreach(
        fun({Policy, Expected}) ->
            Profile = "-export([policy/1]).\npolicy(authn_not_configured) -> " ++ Policy ++ ".\n",
            With = ('6.2'())#{emqx_security_profile => Profile},
            ?assertEqual(Expected, with(With, fun nats_gateway_emqx_compat:needs_authenticator/0))
        end,
        [{"allow", false}, {"deny", true}]
    ).

retained_messages_of_6_2_test() ->
    with('6.2'(), fun() ->
        Sent = fun(Filter, Options) ->
            Before = processes(),
            ok = nats_gateway_emqx_compat:send_retained(Filter, Options),
            ok = ended(processes() -- Before),
            delivered()
        end,
        Expected = [{<<"a/#">>, {I rem 5, I}} || I <- lists:seq(1, 250), I rem 5 =/= 3],
        ?assertEqual(Expected, Sent(<<"a/#">>, #{rh => 0})),
        ?assertEqual([], Sent(<<"a/#">>, #{rh => 2})),
        ?assertEqual([], Sent({share, <<"g">>, <<"a/#">>}, #{rh => 0})),
        ?assertEqual([], Sent(<<"off">>, #{rh => 0}))
    end).

%% There it is the retainer's own hook that sends them.
retained_messages_of_6_1_test() ->
    with(maps:remove(emqx_retainer_extsub_handler, '6.2'()), fun() ->
        Before = processes(),
        ok = nats_gateway_emqx_compat:send_retained(<<"a">>, #{rh => 0}),
        ok = ended(processes() -- Before),
        ?assertEqual([], delivered())
    end).

%% A client that takes nothing is not given all of them.
retained_messages_wait_for_the_client_test() ->
    with('6.2'(), fun() ->
        Test = self(),
        %% of its own: what other tests have left for this process must not be counted
        Client = spawn_link(fun() ->
            receive subscribe -> ok end,
            [self() ! {filler, I} || I <- lists:seq(1, 1001)],
            ok = nats_gateway_emqx_compat:send_retained(<<"a">>, #{rh => 0}),
            receive take -> ok end,
            [receive {filler, I} -> ok end || I <- lists:seq(1, 1001)],
            receive ended -> Test ! {delivered, length(delivered())} end
        end),
        1 = erlang:trace(Client, true, [procs]),
        Client ! subscribe,
        Reader = receive {trace, Client, spawn, Pid, _} -> Pid after 5000 -> error(timeout) end,
        1 = erlang:trace(Client, false, [procs]),
        ok = waits(Reader),
        %% the first batch, without those of a banned client
        ?assertEqual({message_queue_len, 1001 + 80}, process_info(Client, message_queue_len)),
        Client ! take,
        ok = ended([Reader]),
        Client ! ended,
        ?assertEqual(200, receive {delivered, N} -> N after 5000 -> error(timeout) end)
    end).

%% Until it has seen how much waits for its client.
waits(Reader) ->
    case process_info(Reader, current_stacktrace) of
        {current_stacktrace, [{timer, sleep, 1, _}, {nats_gateway_emqx_compat, is_taking, 1, _} | _]} ->
            ok;
        {current_stacktrace, _} ->
            timer:sleep(1),
            waits(Reader);
        undefined ->
            error({ended, Reader})
    end.

retained_messages_of_a_client_that_is_gone_test() ->
    with('6.2'(), fun() ->
        Before = processes(),
        {Client, Monitor} = spawn_monitor(fun() -> nats_gateway_emqx_compat:send_retained(<<"a">>, #{rh => 0}) end),
        receive {'DOWN', Monitor, process, Client, normal} -> ok end,
        ended(processes() -- Before)
    end).

ended(Pids) ->
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    [receive {'DOWN', Monitor, process, _, _} -> ok after 5000 -> error(timeout) end || Monitor <- Monitors],
    ok.

delivered() ->
    receive
        {deliver, Filter, Message} -> [{Filter, Message} | delivered()]
    after 0 -> []
    end.

without_a_built_in_gateway_there_is_no_place_test() ->
    Modules = #{emqx_release => "-export([version/0]).\nversion() -> \"5.8.9\".\n"},
    with(maps:merge('5.10'(), Modules), fun() ->
        {error, {unsupported_emqx, Text}} = nats_gateway_emqx_compat:supported(),
        ?assertEqual("EMQX 5.8.9 is not supported: 5.10 and newer are", Text)
    end).
