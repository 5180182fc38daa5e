%% Against stand-ins that do what EMQX does, and tell the test what is asked.
-module(nats_gateway_emqx_quirks_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_quirks, [serve_with/1, load/0, is_node_stopping/0]).

-export([asked/1, asked/2]).
-export([init/1, start_child/0]).

asked(What) -> asked(What, ok).

%% The answer is the next of those that the test has named, an exception among them.
asked(What, Default) ->
    self() ! {asked, What},
    case get(What) of
        [{raise, Reason} | Answers] ->
            put(What, Answers),
            error(Reason);
        [Answer | Answers] ->
            put(What, Answers),
            Answer;
        _ ->
            Default
    end.

found() ->
    receive
        {asked, What} -> [What | found()]
    after 0 -> []
    end.

with(Modules, Test) ->
    maps:foreach(fun nats_gateway_fake_emqx:load/2, Modules),
    try
        Test()
    after
        nats_gateway_fake_emqx:unload(maps:keys(Modules)),
        _ = found(),
        erase()
    end.

-define(CONFIG, #{token => <<"secret">>}).

gateway() ->
    #{
        emqx_gateway_registry => [
            "lookup(_) -> nats_gateway_emqx_quirks_tests:asked(registered, undefined).",
            "unreg(_) -> nats_gateway_emqx_quirks_tests:asked(unreg).",
            "reg(_, Options) ->"
            " nats_gateway_emqx_quirks_tests:asked({reg, proplists:get_value(cbkmod, Options)})."
        ],
        emqx_gateway => [
            "lookup(_) -> nats_gateway_emqx_quirks_tests:asked(loaded, undefined).",
            "unload(_) -> nats_gateway_emqx_quirks_tests:asked(unload).",
            "load(_, _) -> nats_gateway_emqx_quirks_tests:asked(load, {ok, self()})."
        ],
        emqx_conf => ["get(_, _) -> nats_gateway_emqx_quirks_tests:asked(config, #{})."]
    }.

%% Only the module is changed: other readers of the definitions want the rest as it is.
callback_module_test() ->
    Definitions = [
        #{name => coap, callback_module => emqx_gateway_coap},
        #{
            name => nats,
            callback_module => emqx_gateway_nats,
            config_schema_module => emqx_nats_schema,
            edition => ee
        }
    ],
    Modules = #{
        emqx_gateway_utils => [
            "find_gateway_definitions() -> {value, D} = persistent_term:get(emqx_gateways), D."
        ]
    },
    with(Modules, fun() ->
        persistent_term:put(emqx_gateways, {value, Definitions}),
        try
            ok = nats_gateway_emqx_quirks:set_callback_module(ours),
            ?assertEqual(ours, nats_gateway_emqx_quirks:callback_module()),
            [Coap, Nats] = Definitions,
            ?assertEqual(
                {value, [Coap, Nats#{callback_module := ours}]}, persistent_term:get(emqx_gateways)
            ),
            ok = nats_gateway_emqx_quirks:set_callback_module(emqx_gateway_nats),
            ?assertEqual({value, Definitions}, persistent_term:get(emqx_gateways))
        after
            persistent_term:erase(emqx_gateways)
        end
    end).

a_loaded_gateway_is_not_unregistered_test() ->
    with(gateway(), fun() ->
        put(registered, [#{cbkmod => emqx_gateway_nats}]),
        ok = serve_with(nats_gateway_emqx),
        ?assertEqual([registered, unload, unreg, {reg, nats_gateway_emqx}], found())
    end).

who_serves_already_stays_test() ->
    with(gateway(), fun() ->
        put(registered, [#{cbkmod => nats_gateway_emqx}]),
        ok = serve_with(nats_gateway_emqx),
        ?assertEqual([registered], found())
    end).

%% The registry has crashed: EMQX does not know that we serve.
the_registry_has_forgotten_test() ->
    with(gateway(), fun() ->
        true = register(nats_gateway_emqx, self()),
        ok = serve_with(nats_gateway_emqx),
        true = unregister(nats_gateway_emqx),
        ?assertEqual([registered, {reg, nats_gateway_emqx}], found()),
        ok = serve_with(nats_gateway_emqx),
        ?assertEqual([registered, unload, {reg, nats_gateway_emqx}], found())
    end).

an_unloading_that_fails_test() ->
    with(gateway(), fun() ->
        put(registered, [#{cbkmod => nats_gateway_emqx}]),
        put(unload, [{raise, {case_clause, ?CONFIG}}]),
        ok = serve_with(emqx_gateway_nats),
        ?assertEqual([registered, unload, unreg, {reg, emqx_gateway_nats}], found())
    end).

%% The lock of the clients is linked to a child of the gateway's supervisor.
unloading_waits_for_what_the_gateway_has_started_test() ->
    with(gateway(), fun() ->
        {ok, Sup} = supervisor:start_link({local, nats}, ?MODULE, []),
        {ok, Child} = supervisor:start_child(Sup, #{id => manager, start => {?MODULE, start_child, []}}),
        {links, Links} = process_info(Child, links),
        [Lock] = Links -- [Sup],
        true = unlink(Sup),
        _ = spawn(fun() ->
            timer:sleep(30),
            gen_server:stop(Sup),
            exit(Lock, kill)
        end),
        put(registered, [#{cbkmod => emqx_gateway_nats}]),
        ok = serve_with(nats_gateway_emqx),
        ?assertNot(is_process_alive(Lock))
    end).

init([]) -> {ok, {#{}, []}}.

start_child() ->
    Parent = self(),
    Child = spawn_link(fun() ->
        process_flag(trap_exit, true),
        _ = spawn_link(fun() -> receive stop -> ok end end),
        Parent ! started,
        receive {'EXIT', Parent, Reason} -> exit(Reason) end
    end),
    receive started -> {ok, Child} end.

a_name_that_is_not_free_yet_test() ->
    with(gateway(), fun() ->
        put(load, [{raise, already_started}]),
        ok = load(),
        ?assertEqual([loaded, config, load, load], found())
    end).

nothing_to_load_test() ->
    with(gateway(), fun() ->
        put(config, [undefined]),
        ok = load(),
        put(loaded, [#{}]),
        ok = load(),
        ?assertEqual([loaded, config, loaded, config], found())
    end).

%% Settings and their secrets are in EMQX's errors, but not in the log.
errors_of_loading_test() ->
    with(gateway(), fun() ->
        Badconf = {badconf, #{key => bind, value => 1, reason => <<"taken">>}},
        put(load, [{error, {{shutdown, Badconf}, ?CONFIG}}, {error, {{Badconf, x}, ?CONFIG}}]),
        {ok, Level} = maps:find(level, logger:get_primary_config()),
        ok = logger:set_primary_config(level, none),
        ok = load(),
        ok = load(),
        ok = logger:set_primary_config(level, Level),
        ?assertEqual([loaded, config, load, loaded, config, load], found())
    end).

is_node_stopping_test() ->
    Boot = #{emqx_machine_boot => ["stop_apps() -> receive stop -> ok end, ok."]},
    with(Boot, fun() ->
        ?assertNot(is_node_stopping()),
        Waits = fun() -> receive stop -> ok end end,
        ?assertNot(with_terminator(Waits, fun nats_gateway_emqx_quirks:is_node_stopping/0)),
        Stops = fun() -> apply(emqx_machine_boot, stop_apps, []), ok end,
        ?assert(with_terminator(Stops, fun nats_gateway_emqx_quirks:is_node_stopping/0))
    end).

with_terminator(Does, Test) ->
    {Pid, Monitor} = spawn_monitor(Does),
    true = register(emqx_machine_terminator, Pid),
    ok = waits(Pid),
    try
        Test()
    after
        exit(Pid, kill),
        receive {'DOWN', Monitor, process, _, _} -> ok end
    end.

waits(Pid) ->
    case process_info(Pid, status) of
        {status, waiting} -> ok;
        _ -> waits(Pid)
    end.

forget_dead_clients_test() ->
    Modules = #{
        emqx_gateway_cm => ["tabname(chan, nats) -> fake_channels."],
        emqx_gateway_cm_registry => [
            "unregister_channel(nats, {Name, _}) ->"
            " nats_gateway_emqx_quirks_tests:asked({forget, Name})."
        ]
    },
    with(Modules, fun() ->
        ok = nats_gateway_emqx_quirks:forget_dead_clients(),
        {Dead, Monitor} = spawn_monitor(fun() -> ok end),
        receive {'DOWN', Monitor, process, _, _} -> ok end,
        fake_channels = ets:new(fake_channels, [named_table, bag]),
        true = ets:insert(fake_channels, [{<<"alive">>, self()}, {<<"dead">>, Dead}]),
        ok = nats_gateway_emqx_quirks:forget_dead_clients(),
        true = ets:delete(fake_channels),
        ?assertEqual([{forget, <<"dead">>}], found())
    end).

drained_at_test() ->
    ?assertEqual(0, nats_gateway_emqx_quirks:authz_drained_at()).

shared_subscriptions_test() ->
    Modules = #{
        emqx_shared_sub => [
            "dispatch(Group, Filter, {delivery, _, Message}, Failed) ->"
            " nats_gateway_emqx_quirks_tests:asked({Group, Filter, Message, maps:keys(Failed)}).",
            "unsubscribe(_, _, _) -> nats_gateway_emqx_quirks_tests:asked(left)."
        ]
    },
    with(Modules, fun() ->
        ok = nats_gateway_emqx_quirks:give_to_another_member(<<"g">>, <<"a">>, message),
        ok = nats_gateway_emqx_quirks:await_left(<<"g">>, <<"a">>),
        ?assertEqual([{<<"g">>, <<"a">>, message, [self()]}, left], found())
    end).

is_running_test() ->
    ?assert(nats_gateway_emqx_quirks:is_running(kernel)),
    ?assertNot(nats_gateway_emqx_quirks:is_running(no_such_application)).
