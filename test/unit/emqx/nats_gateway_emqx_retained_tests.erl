%% A core node and a replicant: two real nodes of Erlang with stand-ins for EMQX.
-module(nats_gateway_emqx_retained_tests).

-include_lib("eunit/include/eunit.hrl").

-define(RETAINED, nats_gateway_emqx_retained).
-define(TABLE, emqx_retainer_message).
%% For functions that the nodes evaluate.
-export([fill/1, all/2, size_of/1]).

-define(STAND_INS, #{
    mria_rlog => ["role() -> persistent_term:get(role)."],
    mria_status => ["upstream_node(emqx_retainer_shard) -> persistent_term:get(upstream)."],
    emqx_topic => ["words(Filter) -> binary:split(Filter, <<\"/\">>, [global])."],
    emqx_retainer_index => [
        "condition([<<\"#\">>]) -> '_'; condition([]) -> [];"
        " condition([Word | Words]) -> [Word | condition(Words)]."
    ],
    emqx_retainer => [
        "read_message(Topic) ->"
        " {ok, [M || {_, _, M, _} <- ets:lookup(emqx_retainer_message, emqx_topic:words(Topic))]}."
    ]
}).

replicant_test_() ->
    {setup, fun start/0, fun stop/1, fun(Nodes) ->
        [
            {Title, fun() -> Test(Nodes) end}
         || {Title, Test} <- [
                {"a core node reads its own table", fun a_core_node_reads_its_own_table/1},
                {"a replicant reads that of the core", fun a_replicant_reads_that_of_the_core/1},
                {"or its own without any", fun or_its_own_without_any/1},
                {"the core has no plugin", fun the_core_has_no_plugin/1},
                {"the core does not answer", fun the_core_does_not_answer/1}
            ]
        ]
    end}.

a_core_node_reads_its_own_table({Core, _, _}) ->
    ?assertEqual([], fold(Core, <<"b/#">>)),
    all_are_found(Core, Core, [1, 99, 100, 101, 250]),
    ?assertEqual({ok, {<<"b/001">>, <<"v">>}}, peer:call(Core, ?RETAINED, read, [<<"b/001">>])),
    ?assertEqual(none, peer:call(Core, ?RETAINED, read, [<<"b/x">>])).

a_replicant_reads_that_of_the_core({Core, Replicant, Name}) ->
    ok = peer:call(Replicant, persistent_term, put, [upstream, {ok, Name}]),
    ok = peer:call(Replicant, ?MODULE, fill, [[<<"b/old">>]]),
    all_are_found(Core, Replicant, [0, 1, 99, 100, 101, 250]),
    ?assertEqual({ok, {<<"b/250">>, <<"v">>}}, peer:call(Replicant, ?RETAINED, read, [<<"b/250">>])),
    ?assertEqual(none, peer:call(Replicant, ?RETAINED, read, [<<"b/old">>])).

or_its_own_without_any({_, Replicant, Name}) ->
    ok = peer:call(Replicant, persistent_term, put, [upstream, disconnected]),
    ?assertEqual([{<<"b/old">>, 1}], fold(Replicant, <<"b/#">>)),
    ?assertMatch({ok, _}, peer:call(Replicant, ?RETAINED, read, [<<"b/old">>])),
    ok = peer:call(Replicant, persistent_term, put, [upstream, {ok, Name}]).

the_core_has_no_plugin({Core, Replicant, Name}) ->
    true = peer:call(Core, code, delete, [?RETAINED]),
    ?assertEqual(
        <<"the plugin of this version does not run on the core node ", (atom_to_binary(Name))/binary>>,
        failure(Replicant, fold, [<<"b/#">>, fun ?MODULE:size_of/1, fun lists:append/2, []])
    ).

the_core_does_not_answer({Core, Replicant, Name}) ->
    ok = peer:stop(Core),
    Text = <<"the core node ", (atom_to_binary(Name))/binary, " does not answer: noconnection">>,
    ?assertEqual(Text, failure(Replicant, read, [<<"b/250">>])),
    ?assertEqual(Text, failure(Replicant, fold, [<<"b/#">>, fun ?MODULE:size_of/1, fun lists:append/2, []])).

all_are_found(Core, Reader, Counts) ->
    lists:foreach(
        fun(Count) ->
            Names = names(Count),
            ok = peer:call(Core, ?MODULE, fill, [Names]),
            ?assertEqual([{Name, 1} || Name <- Names], fold(Reader, <<"b/#">>))
        end,
        Counts
    ).

failure(Node, Function, Arguments) ->
    try peer:call(Node, ?RETAINED, Function, Arguments) of
        Result -> {returned, Result}
    catch
        throw:{store, {failed, Text}} -> Text
    end.

names(Count) -> [iolist_to_binary(io_lib:format("b/~3..0b", [I])) || I <- lists:seq(1, Count)].

fold(Node, Filter) -> peer:call(Node, ?MODULE, all, [Filter, fun ?MODULE:size_of/1]).

%% -------------------------------------------------------------------------------------------
%% Evaluated by the nodes

%% Half of all has no expiry, half has one that is far away; what has expired is in the table as well, until EMQX looks.
fill(Topics) ->
    Soon = erlang:system_time(millisecond) + 60000,
    ets:whereis(?TABLE) =/= undefined orelse make_table(),
    true = ets:delete_all_objects(?TABLE),
    [
        ets:insert(?TABLE, {retained_message, emqx_topic:words(Topic), {Topic, <<"v">>}, I rem 2 * Soon})
     || {I, Topic} <- lists:zip(lists:seq(1, length(Topics)), Topics)
    ],
    true = ets:insert(?TABLE, {retained_message, [<<"b">>, <<"expired">>], {<<"b/expired">>, <<"v">>}, 1}),
    true = ets:insert(?TABLE, {retained_message, [<<"c">>], {<<"c">>, <<"v">>}, 0}),
    ok.

%% The process of a call ends with it, and its tables with it.
make_table() ->
    Caller = self(),
    spawn(fun() ->
        ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set, {keypos, 2}, compressed]),
        Caller ! made,
        receive never -> ok end
    end),
    receive made -> ok end.

all(Filter, Of) -> lists:reverse(?RETAINED:fold(Filter, Of, fun(Part, Acc) -> [Part | Acc] end, [])).

size_of({Topic, Payload}) -> {Topic, byte_size(Payload)}.

%% -------------------------------------------------------------------------------------------

%% The one that listens tells its port in the place of an epmd, which would stay when the test is over. Only the core
%% has to be reached.
start() ->
    Port = integer_to_list(nats_gateway_scripted_broker:free_port()),
    {Core, Name} = node(core, Port, [
        "-kernel", "inet_dist_use_interface", "{127,0,0,1}", "inet_dist_listen_min", Port, "inet_dist_listen_max", Port
    ]),
    {Replicant, _} = node(replicant, Port, ["-dist_listen", "false"]),
    {Core, Replicant, Name}.

node(Role, Port, Arguments) ->
    {ok, Peer, Name} = peer:start_link(#{
        name => peer:random_name("nats_gateway_" ++ atom_to_list(Role)),
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        wait_boot => 15000,
        args => ["-setcookie", "test", "-start_epmd", "false", "-erl_epmd_port", Port | Arguments]
    }),
    lists:foreach(
        fun(Module) ->
            {Module, Binary, File} = code:get_object_code(Module),
            {module, Module} = peer:call(Peer, code, load_binary, [Module, File, Binary])
        end,
        [?MODULE, ?RETAINED, nats_gateway_fake_emqx]
    ),
    maps:foreach(
        fun(Module, Functions) ->
            {module, Module} = peer:call(Peer, nats_gateway_fake_emqx, load, [Module, Functions])
        end,
        ?STAND_INS
    ),
    ok = peer:call(Peer, persistent_term, put, [role, Role]),
    {Peer, Name}.

stop({_, Replicant, _}) -> peer:stop(Replicant).
