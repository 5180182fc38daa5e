%% Credentials in a running gateway: logins of every kind, and then the process crashes. No report
%% of anybody shows any of them, at whatever level.
-module(nats_gateway_secrets_tests).

-behaviour(nats_gateway_host).

-include_lib("eunit/include/eunit.hrl").

-export([connect/1, ready/1, publish/3, subscribe/3, subscribe_again/3, unsubscribe/2, barrier/2]).
-export([handle_info/2, disconnect/2]).
-export([log/2]).

-define(WAIT, 5000).

-define(PASSWORD, <<"pa55-w0rd-0f-ann">>).
-define(TOKEN, <<"t0k3n-0f-all">>).
-define(BROKER_PASSWORD, <<"pa55-f0r-the-br0ker">>).

%% -------------------------------------------------------------------------------------------
%% A host that knows all and crashes with it

connect(Client) -> {ok, #{mountpoint => <<>>, clientid => <<"c">>}, Client}.

publish(Pubs, _, Client) -> error({unexpected, Pubs, Client}).
subscribe({_, Filter}, _, Client) -> lists:keyfind(Client, [Filter], Client).
subscribe_again(_, _, Client) -> {ok, [], Client}.
unsubscribe(_, Client) -> Client.
ready(_) -> ok.
barrier(_, Client) -> {ok, Client}.
handle_info({die, How}, Client) -> exit({How, Client});
handle_info(_, _) -> ignore.
disconnect(_, _) -> ok.

%% -------------------------------------------------------------------------------------------

log(Event, #{config := Test}) ->
    Test ! {logged, unicode:characters_to_binary(io_lib:format("~0p", [Event]))}.

secrets_test_() ->
    {setup, fun start/0, fun stop/1, fun(#{port := Port, listener := Listener}) ->
        [
            {Name ++ " " ++ atom_to_list(Way), fun() -> crash(Way, Connect, Secrets, Port) end}
         || {Name, Connect, Secrets} <- logins(), Way <- [publish, subscribe, message, refused]
        ] ++ [{"listener", fun() -> listener_crash(Listener) end}]
    end}.

%% Passwords for the broker are in the settings. A listener is started, and one of its acceptors crashes.
listener_crash(Listener) ->
    Before = processes(),
    Logged = logged(fun() ->
        ok = nats_gateway_listener:start(Listener#{
            name => <<"tcp:other">>, bind => {{127, 0, 0, 1}, free_port()}
        }),
        {_, Sup} = lists:keyfind(<<"tcp:other">>, 1, nats_gateway_listener:all()),
        {_, Acceptor, _, _} = lists:keyfind({acceptor, 1}, 1, supervisor:which_children(Sup)),
        ?assertNot(lists:member(Acceptor, Before)),
        exit(Acceptor, boom),
        ok = started_anew(Sup, Acceptor)
    end),
    ?assertNotEqual(nomatch, binary:match(Logged, <<"boom">>)),
    ?assertNotEqual(nomatch, binary:match(Logged, <<"progress">>)),
    ?assertEqual(nomatch, binary:match(Logged, ?BROKER_PASSWORD)).

started_anew(Sup, Old) ->
    case lists:keyfind({acceptor, 1}, 1, supervisor:which_children(Sup)) of
        {_, New, _, _} when is_pid(New), New =/= Old -> ok;
        _ -> started_anew(Sup, Old)
    end.

start() ->
    {ok, _} = application:ensure_all_started(nats_gateway),
    [Operator, Account, User] = [nats_gateway_credentials:pair(R) || R <- [operator, account, user]],
    ok = persistent_term:put(?MODULE, {Account, User}),
    {ok, Config} = nats_gateway_file:parse(#{
        <<"auth_token">> => ?TOKEN,
        <<"clientinfo_override">> => #{<<"password">> => ?BROKER_PASSWORD},
        <<"users">> => [#{<<"user">> => <<"ann">>, <<"password">> => ?PASSWORD}],
        <<"internal_authn">> => [
            #{<<"type">> => <<"nkey">>, <<"nkeys">> => [nats_gateway_credentials:key(User)]},
            #{
                <<"type">> => <<"jwt">>,
                <<"trusted_operators">> => [nats_gateway_credentials:key(Operator)],
                <<"resolver">> => #{
                    <<"resolver_preload">> => [
                        #{
                            <<"pubkey">> => nats_gateway_credentials:key(Account),
                            <<"jwt">> => nats_gateway_credentials:account(Account, #{}, Operator)
                        }
                    ]
                }
            }
        ]
    }),
    Listener = #{
        name => <<"tcp:secrets">>,
        type => tcp,
        bind => {{127, 0, 0, 1}, free_port()},
        acceptors => 1,
        max_connections => infinity,
        backlog => 10,
        connection => #{host => ?MODULE, config => Config, listener => <<"tcp:secrets">>}
    },
    ok = nats_gateway_listener:start(Listener),
    #{bind := {_, Port}} = Listener,
    #{level := Level} = logger:get_primary_config(),
    #{port => Port, level => Level, listener => Listener}.

stop(_) ->
    _ = persistent_term:erase(?MODULE),
    ok = application:stop(nats_gateway).

free_port() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

%% What a client sends, given the nonce, and what of it nobody may see.
logins() ->
    Signed = fun(Nonce) ->
        {_, User} = persistent_term:get(?MODULE),
        nats_gateway_credentials:sign(Nonce, User)
    end,
    Key = fun() -> nats_gateway_credentials:key(element(2, persistent_term:get(?MODULE))) end,
    Jwt = fun() ->
        {Account, User} = persistent_term:get(?MODULE),
        nats_gateway_credentials:user(User, #{bearer_token => true}, Account)
    end,
    [
        {"user", fun(_) -> [{user, <<"ann">>}, {pass, ?PASSWORD}] end, [pass]},
        {"token", fun(_) -> [{auth_token, ?TOKEN}] end, [auth_token]},
        {"nkey", fun(Nonce) -> [{nkey, Key()}, {sig, Signed(Nonce)}] end, [sig]},
        {"jwt", fun(Nonce) -> [{jwt, Jwt()}, {sig, Signed(Nonce)}] end, [jwt, sig]}
    ].

crash(Way, Connect, Names, Port) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}, {packet, line}]),
    {ok, Info} = gen_tcp:recv(Socket, 0, ?WAIT),
    {match, [Nonce]} = re:run(Info, "\"nonce\":\"([^\"]+)\"", [{capture, all_but_first, binary}]),
    Given = Connect(Nonce),
    Pid = connection(Socket),
    Monitor = monitor(process, Pid),
    Secrets = [proplists:get_value(Name, Given) || Name <- Names] ++ [?PASSWORD, ?TOKEN],
    Fields =
        case Way of
            %% what makes any CONNECT wrong
            refused -> [{account, <<"x">>} | Given];
            _ -> Given
        end,
    Logged = logged(fun() ->
        ok = gen_tcp:send(Socket, [
            "CONNECT {",
            lists:join($,, [["\"", atom_to_list(K), "\":\"", V, "\""] || {K, V} <- Fields]),
            "}\r\n"
        ]),
        case Way of
            refused ->
                {ok, <<"-ERR 'Authorization Violation'\r\n">>} = gen_tcp:recv(Socket, 0, ?WAIT);
            _ ->
                {ok, <<"+OK\r\n">>} = gen_tcp:recv(Socket, 0, ?WAIT)
        end,
        ok = die(Way, Secrets, Pid, Socket),
        {error, closed} = gen_tcp:recv(Socket, 0, ?WAIT),
        ok = gen_tcp:close(Socket),
        receive
            {'DOWN', Monitor, process, Pid, _} -> ok
        end
    end),
    [?assertEqual(nomatch, binary:match(Logged, Secret)) || Secret <- Secrets],
    %% It did crash.
    Way =:= refused orelse ?assertNotEqual(nomatch, binary:match(Logged, <<"supervisor_report">>)).

die(publish, Secrets, _, Socket) ->
    gen_tcp:send(Socket, ["PUB ", hd(Secrets), " 1\r\nx\r\n"]);
die(subscribe, _, _, Socket) ->
    gen_tcp:send(Socket, "SUB a 1\r\n");
die(message, Secrets, Pid, Socket) ->
    %% and something waits behind it
    ok = sys:suspend(Pid),
    Pid ! {die, {because_of, Secrets}},
    Pid ! {tcp, Socket, iolist_to_binary(Secrets)},
    sys:resume(Pid);
die(refused, _, _, _) ->
    ok.

%% The process at the other end.
connection(Socket) ->
    {ok, Peer} = inet:sockname(Socket),
    [Pid] = [
        Pid
     || Pid <- processes(),
        Pid =/= whereis(nats_gateway_upstream),
        {dictionary, Dictionary} <- [process_info(Pid, dictionary)],
        {nats_gateway_guard, init, 1} =:= proplists:get_value('$initial_call', Dictionary),
        #{client := #{peername := Peername}} <- [nats_gateway_connection:info(Pid)],
        Peername =:= Peer
    ],
    Pid.

%% Everything until the supervisor has seen the end of the connection.
logged(Fun) ->
    #{level := Level} = logger:get_primary_config(),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self(), level => all}),
    ok = logger:set_primary_config(level, all),
    try
        Fun(),
        [
            supervisor:count_children(Sup)
         || {_, Pid, supervisor, _} <- supervisor:which_children(nats_gateway_sup),
            {connections, Sup, _, _} <- children(Pid)
        ],
        iolist_to_binary(collect())
    after
        ok = logger:set_primary_config(level, Level),
        ok = logger:remove_handler(?MODULE)
    end.

children(Sup) ->
    lists:flatmap(
        fun
            ({connections, _, _, _} = Child) -> [Child];
            ({_, Pid, supervisor, _}) -> children(Pid);
            (_) -> []
        end,
        supervisor:which_children(Sup)
    ).

collect() ->
    receive
        {logged, Text} -> [Text | collect()]
    after 0 -> []
    end.
