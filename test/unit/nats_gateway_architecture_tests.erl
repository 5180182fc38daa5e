%% Which room may call which: docs/architecture.md says it, and xref finds the calls.
-module(nats_gateway_architecture_tests).

-include_lib("eunit/include/eunit.hrl").

%% Circles between modules that are there, each with its reason. None may be added.
-define(KNOWN_CIRCLES, []).

-define(PAGE, "docs/architecture.md").
-define(FOREIGN, <<"EMQX">>).

arrows_test_() ->
    Arrows = fun() ->
        Rooms = rooms(),
        {Rooms, allowed(), calls(Rooms)}
    end,
    {timeout, 60,
        {setup, Arrows, fun(_) -> ok end, fun({Rooms, Allowed, Calls}) ->
            [
                ?_test(only_allowed_arrows(Rooms, Allowed, Calls)),
                ?_test(every_exception_is_needed(Rooms, Allowed, Calls)),
                ?_test(no_circles(Rooms, Calls))
            ]
        end}}.

%% What a call crosses, other than within a room.
only_allowed_arrows(Rooms, Allowed, Calls) ->
    ?assertEqual(lists:usort(maps:values(Rooms)), lists:sort(maps:keys(Allowed))),
    ?assertEqual([], [
        {From, calls, To}
     || {From, To} <- Calls, not is_allowed(From, To, Rooms, Allowed)
    ]).

%% An exception that nobody needs would allow what was not thought of.
every_exception_is_needed(Rooms, Allowed, Calls) ->
    Used = lists:usort([{maps:get(From, Rooms), atom_to_binary(To)} || {From, To} <- Calls]),
    Exceptions = [
        {Room, Target}
     || {Room, Targets} <- maps:to_list(Allowed), Target = <<"nats_gateway_", _/binary>> <- Targets
    ],
    ?assertEqual([], Exceptions -- Used).

no_circles(Rooms, Calls) ->
    Graph = digraph:new(),
    lists:foreach(fun(Module) -> digraph:add_vertex(Graph, Module) end, maps:keys(Rooms)),
    _ = [digraph:add_edge(Graph, From, To) || {From, To} <- Calls, is_map_key(To, Rooms)],
    Circles = lists:sort([lists:sort(C) || C <- digraph_utils:cyclic_strong_components(Graph)]),
    ?assertEqual([], Circles -- ?KNOWN_CIRCLES).

%% A tuple is matched by its shape. Only what looks at any term at all asks for an element by its number.
no_tuple_is_read_by_position_test() ->
    Readers = [
        filename:basename(File, ".erl")
     || File <- filelib:wildcard("erlang_src/**/*.erl"),
        {ok, Text} <- [file:read_file(File)],
        re:run(Text, "\\belement\\([0-9]") =/= nomatch
    ],
    ?assertEqual(["nats_gateway_guard", "nats_gateway_reach"], lists:sort(Readers)).

%% Comments cite docs/protocol.md by the numbers of its sections.
cited_sections_exist_test() ->
    {ok, Protocol} = file:read_file("docs/protocol.md"),
    Sections = matches(Protocol, "(?m)^## ([0-9]+)\\. "),
    Files = lists:append([
        filelib:wildcard(Place)
     || Place <- ["erlang_src/**/*.erl", "native/*/{src,tests}/**/*.rs", "test/unit/**/*.erl"]
    ]),
    Cited = [
        {File, Section}
     || File <- Files,
        {ok, Text} <- [file:read_file(File)],
        Numbers <- matches(Text, "protocol\\.md\\W+sections? ([0-9]+(?: and [0-9]+)?)"),
        Section <- binary:split(Numbers, <<" and ">>)
    ],
    ?assert(length(Cited) > 10),
    ?assertEqual([], [Cite || Cite = {_, Section} <- Cited, not lists:member(Section, Sections)]).

%% The test can fail: these calls do not exist.
forbidden_arrows_are_seen_test() ->
    Rooms = rooms(),
    Allowed = allowed(),
    Forbidden = [
        {nats_gateway_channel, nats_gateway_emqx},
        {nats_gateway_channel, emqx_broker},
        {nats_gateway_transport, nats_gateway_channel},
        {nats_gateway_host_emqx, nats_gateway_host_mqtt},
        {nats_gateway_login, nats_gateway_connection},
        {nats_gateway_host_mqtt, nats_gateway_sup}
    ],
    ?assertEqual([], [Call || Call = {From, To} <- Forbidden, is_allowed(From, To, Rooms, Allowed)]).

%% -------------------------------------------------------------------------------------------

is_allowed(From, To, Rooms, Allowed) ->
    Room = maps:get(From, Rooms),
    Target = maps:get(To, Rooms, ?FOREIGN),
    Targets = maps:get(Room, Allowed),
    Target =:= Room orelse lists:member(Target, Targets) orelse
        lists:member(atom_to_binary(To), Targets).

%% Calls between two of our modules, and to modules that neither we nor OTP have.
calls(Rooms) ->
    {ok, Xref} = xref:start([{xref_mode, modules}]),
    try
        ok = xref:set_default(Xref, [{warnings, false}, {verbose, false}]),
        lists:foreach(fun(File) -> {ok, _} = xref:add_module(Xref, File) end, beams()),
        {ok, Calls} = xref:q(Xref, "ME"),
        Foreign = [To || To <- lists:usort([To || {_, To} <- Calls]), is_foreign(To)],
        [
            Call
         || Call = {From, To} <- Calls,
            From =/= To,
            is_map_key(To, Rooms) orelse lists:member(To, Foreign)
        ]
    after
        xref:stop(Xref)
    end.

is_foreign('$M_EXPR') -> false;
is_foreign(erlang) -> false;
is_foreign(Module) -> code:where_is_file(atom_to_list(Module) ++ ".beam") =:= non_existing.

%% By the folder of the source.
rooms() ->
    maps:from_list([room(File) || File <- filelib:wildcard("erlang_src/**/*.erl")]).

room(File) ->
    Module = list_to_atom(filename:basename(File, ".erl")),
    case filename:split(File) of
        ["erlang_src", _] -> {Module, <<"top">>};
        ["erlang_src", Room, _] -> {Module, list_to_binary(Room)}
    end.

%% Of what is built, without the tests.
beams() ->
    Ebin = filename:dirname(code:which(nats_gateway_app)),
    filelib:wildcard(filename:join(Ebin, "*.beam")).

%% The table of the page: room, and what it may call.
allowed() ->
    {ok, Page} = file:read_file(?PAGE),
    [_, Rest] = binary:split(Page, <<"<!-- arrows -->">>),
    [Table, _] = binary:split(Rest, <<"<!-- end of arrows -->">>),
    maps:from_list([
        {Room, targets(Targets)}
     || Line <- binary:split(Table, <<"\n">>, [global]),
        [_, First, Targets | _] <- [binary:split(Line, <<"|">>, [global])],
        [Room] <- [targets(First)]
    ]).

targets(Cell) -> matches(Cell, "`([^`]+)`").

matches(Text, Pattern) ->
    case re:run(Text, Pattern, [global, {capture, all_but_first, binary}]) of
        {match, Found} -> lists:append(Found);
        nomatch -> []
    end.
