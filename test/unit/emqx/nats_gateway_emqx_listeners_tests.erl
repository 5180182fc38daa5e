%% Against stand-ins for esockd and ranch: they keep what is open, and tell the test what is asked.
-module(nats_gateway_emqx_listeners_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_listeners, [replace/2, close/1, close_left/1, drain/2]).

-define(MODULES, #{
    emqx_listeners => ["esockd_access_rules(Rules) -> Rules."],
    esockd => [
        "open(Name, Bind, _, _) -> nats_gateway_emqx_listeners_tests:open({Name, Bind}, Bind).",
        "close(Id) -> nats_gateway_emqx_listeners_tests:asked({close, Id}).",
        "reset_options(Id, Options) ->"
        " nats_gateway_emqx_listeners_tests:reset(Id, proplists:get_value(max_connections, Options)).",
        "listener(_) -> error(not_found)."
    ],
    ranch => [
        "start_listener(Name, _, #{socket_opts := [{socket, S} | _]}, _, _) ->"
        " nats_gateway_emqx_listeners_tests:open(Name, proplists:get_value(port, S)).",
        "stop_listener(Name) -> nats_gateway_emqx_listeners_tests:asked({close, Name}).",
        "set_max_connections(Name, N) ->"
        " nats_gateway_emqx_listeners_tests:reset(Name, N).",
        "suspend_listener(Name) -> nats_gateway_emqx_listeners_tests:asked({suspend, Name}), ok.",
        "set_transport_options(_, _) -> ok.",
        "resume_listener(Name) -> nats_gateway_emqx_listeners_tests:asked({resume, Name}), ok.",
        "procs(_, _) -> get(connections)."
    ]
}).

-export([open/2, asked/1, reset/2]).

%% Of the stand-ins. A test names the answers: `put({open, Id}, [Answer, ...])'.
open(Id, _) ->
    self() ! {asked, {open, Id}},
    case get({open, Id}) of
        [Answer | Answers] ->
            put({open, Id}, Answers),
            Answer;
        _ ->
            {ok, self()}
    end.

asked(What) ->
    self() ! {asked, What},
    ok.

reset(Id, MaxConnections) ->
    asked({reset, Id, MaxConnections}),
    case get({reset, Id}) of
        undefined -> ok;
        Answer -> Answer
    end.

with(Test) ->
    maps:foreach(fun nats_gateway_fake_emqx:load/2, ?MODULES),
    try
        Test()
    after
        nats_gateway_fake_emqx:unload(maps:keys(?MODULES)),
        _ = [
            persistent_term:erase(Key)
         || {Key = {nats_gateway_connection, {_, _}}, _} <- persistent_term:get()
        ],
        _ = found(),
        erase()
    end.

listener(Id, Bind) -> listener(Id, Bind, #{}).

listener(Id, Bind, Conf) -> listener(Id, Bind, Conf, #{settings => first}).

listener(Id, Bind, Conf, Connection) ->
    nats_gateway_emqx_listeners:new(#{id => Id, bind => Bind, conf => Conf}, Connection, #{}).

found() ->
    receive
        {asked, What} -> [What | found()]
    after 0 -> []
    end.

published(Name, Bind) ->
    Key = {nats_gateway_connection, {Name, Bind}},
    case persistent_term:get(Key, nothing) of
        nothing -> nothing;
        Options = #{key := Key} -> maps:remove(key, Options)
    end.

each_kind_is_opened_by_its_own_server_test() ->
    with(fun() ->
        Listeners = [listener({tcp, a}, 4222), listener({ws, a}, 4223)],
        ok = replace([], Listeners),
        ?assertEqual([{open, {'nats:tcp:a', 4222}}, {open, 'nats:ws:a'}], found()),
        ?assertEqual(#{settings => first}, published('nats:ws:a', 4223)),
        ok = close(Listeners),
        ?assertEqual([{close, {'nats:tcp:a', 4222}}, {close, 'nats:ws:a'}], found()),
        ?assertEqual(nothing, published('nats:ws:a', 4223))
    end).

%% What is not in the way is closed when the new listeners are open.
a_listener_moves_test() ->
    with(fun() ->
        ok = replace([listener({tcp, a}, 4222)], [listener({tcp, a}, 4333)]),
        ?assertEqual([{open, {'nats:tcp:a', 4333}}, {close, {'nats:tcp:a', 4222}}], found()),
        ?assertEqual(#{settings => first}, published('nats:tcp:a', 4333)),
        ?assertEqual(nothing, published('nats:tcp:a', 4222))
    end).

a_port_goes_to_another_listener_test() ->
    with(fun() ->
        Local = {{127, 0, 0, 1}, 4222},
        ok = replace([listener({tcp, a}, Local)], [listener({tcp, b}, 4222)]),
        ?assertEqual([{close, {'nats:tcp:a', Local}}, {open, {'nats:tcp:b', 4222}}], found())
    end).

%% ranch knows a listener by its name alone.
a_listener_of_ranch_moves_test() ->
    with(fun() ->
        ok = replace([listener({ws, a}, 4222)], [listener({ws, a}, 4333)]),
        ?assertEqual([{close, 'nats:ws:a'}, {open, 'nats:ws:a'}], found())
    end).

%% The listener that was in the way is opened again, and what was opened is closed.
a_port_is_taken_test() ->
    with(fun() ->
        Taken = {shutdown, {failed_to_start_child, listener, eaddrinuse}},
        put({open, {'nats:tcp:c', 4224}}, [{error, {Taken, child}}]),
        Old = [listener({tcp, a}, 4222)],
        New = [listener({tcp, b}, 4222), listener({tcp, c}, 4224)],
        ?assertEqual(
            {error, {listen, 'nats:tcp:c', "4224", <<"cannot listen: address already in use">>}},
            replace(Old, New)
        ),
        ?assertEqual(
            [
                {close, {'nats:tcp:a', 4222}},
                {open, {'nats:tcp:b', 4222}},
                {open, {'nats:tcp:c', 4224}},
                {close, {'nats:tcp:b', 4222}},
                {open, {'nats:tcp:a', 4222}}
            ],
            found()
        ),
        ?assertEqual(#{settings => first}, published('nats:tcp:a', 4222)),
        ?assertEqual(nothing, published('nats:tcp:c', 4224))
    end).

a_port_of_ranch_is_taken_test() ->
    with(fun() ->
        Taken = {failed_to_start_child, ranch_acceptors_sup, {listen_error, name, eacces}},
        put({open, 'nats:ws:a'}, [{error, {{shutdown, Taken}, child}}]),
        ?assertEqual(
            {error, {listen, 'nats:ws:a', "[::1]:80", <<"cannot listen: permission denied">>}},
            replace([], [listener({ws, a}, {{0, 0, 0, 0, 0, 0, 0, 1}, 80})])
        )
    end).

left_by_a_gateway_that_was_killed_test() ->
    with(fun() ->
        put({open, {'nats:tcp:a', 4222}}, [{error, {already_started, self()}}]),
        ok = replace([], [listener({tcp, a}, 4222)]),
        Id = {'nats:tcp:a', 4222},
        ?assertEqual([{open, Id}, {close, Id}, {open, Id}], found()),
        ok = close_left([#{id => {tcp, a}, bind => 4222, conf => #{}}]),
        ?assertEqual([{close, Id}], found()),
        ?assertEqual(nothing, published('nats:tcp:a', 4222))
    end).

what_is_the_same_is_left_alone_test() ->
    with(fun() ->
        Listeners = [listener({tcp, a}, 4222), listener({ws, a}, 4223)],
        ok = replace([], Listeners),
        _ = found(),
        ok = replace(Listeners, Listeners),
        ?assertEqual([], found())
    end).

options_change_in_place_test() ->
    with(fun() ->
        Listeners = fun(Conf) -> [listener({tcp, a}, 4222, Conf), listener({ws, a}, 4223, Conf)] end,
        ok = replace([], Listeners(#{})),
        _ = found(),
        ok = replace(Listeners(#{}), Listeners(#{max_connections => 7})),
        ?assertEqual([{reset, {'nats:tcp:a', 4222}, 7}, {reset, 'nats:ws:a', 7}], found()),
        ok = replace(Listeners(#{max_connections => 7}), Listeners(#{acceptors => 3})),
        ?assertEqual(
            [
                {reset, {'nats:tcp:a', 4222}, 1024},
                {reset, 'nats:ws:a', 1024},
                {suspend, 'nats:ws:a'},
                {resume, 'nats:ws:a'}
            ],
            found()
        )
    end).

options_that_need_a_new_socket_test() ->
    with(fun() ->
        Id = {'nats:tcp:a', 4222},
        ok = replace([], [listener({tcp, a}, 4222)]),
        put({reset, Id}, {error, not_supported}),
        _ = found(),
        ok = replace([listener({tcp, a}, 4222)], [listener({tcp, a}, 4222, #{acceptors => 1})]),
        ?assertEqual([{reset, Id, 1024}, {close, Id}, {open, Id}], found())
    end).

%% Connections are told when what they look up has changed.
connections_are_told_of_changes_test() ->
    with(fun() ->
        put(connections, [self()]),
        Old = [listener({ws, a}, 4223)],
        ok = replace([], Old),
        _ = found(),
        ok = replace(Old, [listener({ws, a}, 4223, #{}, #{settings => second})]),
        ?assertEqual(#{settings => second}, published('nats:ws:a', 4223)),
        %% The process may have got something else from tests before this one.
        Told = fun() -> receive {'$gen_cast', Message} -> {told, Message} after 0 -> nothing end end,
        ?assertEqual({told, configure}, Told()),
        ?assertEqual(nothing, Told())
    end).

draining_stops_accepting_first_test() ->
    with(fun() ->
        put(connections, []),
        Listeners = [listener({tcp, a}, 4222), listener({ws, a}, 4223)],
        ok = drain(Listeners, 0),
        ?assertEqual([], found()),
        ok = drain(Listeners, 50),
        ?assertEqual([{suspend, 'nats:ws:a'}], found())
    end).
