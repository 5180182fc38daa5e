-module(nats_gateway_emqx_config_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_config, [
    listeners/1, problem/3, login/2, options/6, esockd_options/1, ranch_options/2, changes/2
]).

-define(BIND, {{127, 0, 0, 1}, 4222}).

%% As EMQX 5.10 gives it, shortened.
gateway() ->
    #{
        enable => true,
        enable_stats => true,
        idle_timeout => 30000,
        mountpoint => <<"all/">>,
        server_id => <<"emqx_nats_gateway">>,
        server_name => <<"here">>,
        default_heartbeat_interval => 20000,
        heartbeat_wait_timeout => 4000,
        protocol => #{max_payload_size => 1000},
        listeners => #{tcp => #{default => conf()}}
    }.

conf() ->
    #{bind => ?BIND, enable => true, enable_authn => true, acceptors => 3, max_connections => 9}.

listener(Conf) -> #{id => {tcp, default}, bind => ?BIND, conf => Conf}.

plugin() ->
    #{
        max_control_line => 5000,
        send_timeout => 7000,
        max_pending => 1 bsl 40,
        auto_subscribe => false,
        login => nats_gateway_login:none()
    }.

context() -> #{ctx => #{}, metrics => no_such_table}.

config(Gateway, Conf) ->
    {ok, Login} = login(Gateway, plugin()),
    #{config := Config} =
        options(Gateway, listener(Conf), plugin(), Login, defaults(), context()),
    Config.

listeners_test() ->
    ?assertEqual([], listeners(#{})),
    ?assertEqual([listener(conf())], listeners(gateway())),
    Two = #{tcp => #{default => conf(), b => (conf())#{enable := false}}, ws => #{a => conf()}},
    ?assertMatch(
        [#{id := {tcp, default}}, #{id := {ws, a}}], listeners((gateway())#{listeners := Two})
    ).

options_test() ->
    ?assertMatch(
        #{
            host := nats_gateway_host_emqx,
            listener := 'nats:tcp:default',
            transport := tcp,
            config := #{
                server_id := <<"N", _:55/binary>>,
                server_name := <<"here">>,
                mountpoint := <<"all/">>,
                default_heartbeat_interval := 20000,
                heartbeat_wait_timeout := 4000,
                idle_timeout := 30000,
                max_payload_size := 1000,
                enable_stats := true,
                auth_required := false,
                host := #{
                    context := #{ctx := #{}}, enable_authn := true, auto_subscribe := false
                },
                clientinfo_override := Empty,
                %% of the plugin's page
                max_control_line := 5000,
                %% of nobody's
                max_subscriptions := 100000,
                max_sub_tokens := infinity,
                authentication_timeout := 2000
            }
        } when map_size(Empty) =:= 0,
        options(
            gateway(), listener(conf()), plugin(), nats_gateway_login:none(),
            defaults(),
            context()
        )
    ),
    ?assertMatch(#{server_id := <<"mine">>}, config((gateway())#{server_id := <<"mine">>}, conf())).

a_listener_may_have_a_mountpoint_of_its_own_test() ->
    Mounted = fun(Own) -> maps:get(mountpoint, config(gateway(), (conf())#{mountpoint => Own})) end,
    ?assertEqual(<<"own/">>, Mounted(<<"own/">>)),
    ?assertEqual(<<>>, Mounted(<<>>)),
    ?assertEqual(<<"all/">>, Mounted(undefined)).

zero_is_never_test() ->
    Gateway = (gateway())#{default_heartbeat_interval := 0, idle_timeout := 0},
    ?assertMatch(
        #{default_heartbeat_interval := infinity, idle_timeout := infinity},
        config(Gateway, conf())
    ).

auth_required_test_() ->
    On = #{mechanism => password_based, enable => true},
    Off = On#{enable := false},
    [
        ?_assertEqual(
            Required,
            maps:get(
                auth_required,
                config(
                    (gateway())#{authentication => OfGateway},
                    (conf())#{authentication => OfListener, enable_authn := Enabled}
                )
            )
        )
     || {Required, OfGateway, OfListener, Enabled} <- [
            {false, undefined, undefined, true},
            {false, [], [], true},
            {true, On, undefined, true},
            {true, [Off, On], undefined, true},
            {false, Off, undefined, true},
            {true, maps:remove(enable, On), undefined, true},
            {true, undefined, On, true},
            {true, undefined, [On], true},
            {false, undefined, Off, true},
            %% EMQX looks at the chain of the listener only, where there is one.
            {false, On, Off, true},
            {false, On, On, false}
        ]
    ].

%% With EMQX's security profile `hardened' nobody is let in without an authenticator.
auth_required_without_authenticators_test() ->
    Required = fun(Conf, Required) ->
        Defaults = (defaults())#{auth_required := Required},
        Options = options(gateway(), listener(Conf), plugin(), nats_gateway_login:none(), Defaults, context()),
        #{config := #{auth_required := Result}} = Options,
        Result
    end,
    ?assertNot(Required(conf(), false)),
    ?assert(Required(conf(), true)),
    ?assertNot(Required((conf())#{enable_authn := false}, true)).

%% As EMQX 6.2 gives them, after its own checks.
internal_authn_test() ->
    Token = #{type => token, token => <<"s3cr3t">>},
    NKey = #{type => nkey, nkeys => [nats_gateway_credentials:public(user)]},
    With = fun(Methods) -> (gateway())#{internal_authn => Methods} end,
    ?assertEqual({ok, nats_gateway_login:none()}, login(With([]), plugin())),
    ?assertMatch(#{auth_required := true}, config(With([Token]), conf())),
    ?assertMatch(#{auth_required := false}, config(With([Token]), (conf())#{enable_authn := false})),
    {ok, Two} = login(With([Token, NKey]), plugin()),
    ?assertEqual({ok, Two}, login(With([Token, NKey]), plugin())),
    ?assertNotEqual({ok, Two}, login(With([NKey, Token]), plugin())),
    ?assertEqual(
        {error, <<"internal_authn[2].nkeys[1]: must be the public NKey of a user (U...)">>},
        login(With([Token, #{type => nkey, nkeys => [<<"UAAA">>]}]), plugin())
    ),
    ?assertEqual(
        {error, <<"internal_authn[2].token: must be the token itself, not what EMQX shows in its place">>},
        login(With([NKey, Token#{token := <<"******">>}]), plugin())
    ),
    %% `resolver = memory' is all that EMQX fills in.
    ?assertEqual(
        {error, <<"internal_authn[1].resolver: must be a table">>},
        login(With([#{type => jwt, trusted_operators => [<<"O">>], resolver => memory}]), plugin())
    ).

%% The page is for gateways whose own settings know nothing of it.
the_gateways_settings_come_before_the_page_test() ->
    Page = fun(Token) ->
        {ok, Settings} = nats_gateway_emqx_page:parse(#{
            <<"internal_authn">> => [<<"token">>], <<"token">> => Token
        }),
        Settings
    end,
    [One, Other] = [nats_gateway_hashes:bcrypt(Token, 4) || Token <- [<<"a">>, <<"b">>]],
    OfGateway = (gateway())#{internal_authn => [#{type => token, token => One}]},
    ?assertEqual(login(OfGateway, plugin()), login(gateway(), Page(One))),
    ?assertEqual(login(OfGateway, plugin()), login(OfGateway, Page(Other))),
    ?assertNotEqual(login(OfGateway, plugin()), login(gateway(), Page(Other))).

esockd_options_test() ->
    Conf = (conf())#{
        max_conn_rate => 10,
        proxy_protocol => true,
        tcp_options => #{
            active_n => 100,
            buffer => 4096,
            backlog => 77,
            nodelay => true,
            keepalive => "none",
            high_watermark => 1024
        }
    },
    Options = esockd_options(listener(Conf)),
    Get = fun(Key) -> proplists:get_value(Key, Options) end,
    ?assertEqual(3, Get(acceptors)),
    ?assertEqual(9, Get(max_connections)),
    ?assertEqual(#{module => nats_gateway_emqx_limiter, rate => 10}, Get(limiter)),
    %% The connection reads its header.
    ?assertEqual(undefined, Get(proxy_protocol)),
    ?assert(is_integer(Get(shutdown))),
    Tcp = Get(tcp_options),
    ?assertEqual(65536, proplists:get_value(buffer, Tcp)),
    ?assertEqual(77, proplists:get_value(backlog, Tcp)),
    ?assertEqual(16#7FFFFFFF, proplists:get_value(high_watermark, Tcp)),
    ?assertEqual(undefined, proplists:get_value(active_n, Tcp)),
    ?assertEqual([high_watermark], [Key || {Key, _} <- Tcp, Key =:= high_watermark]),
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}} | Tcp]),
    ok = gen_tcp:close(Socket).

%% As a client's connection has it.
tcp_options_test_() ->
    [
        ?_assertEqual({ok, [{Name, Expected}]}, option(Name, Tcp))
     || {Name, Expected, Tcp} <- [
            {buffer, 65536, #{}},
            %% EMQX's default
            {buffer, 65536, #{buffer => 4096}},
            {buffer, 8192, #{buffer => 8192}},
            {buffer, 8192, #{buffer => 8192, recbuf => 1 bsl 18}},
            {buffer, 1 bsl 20, #{buffer => 1 bsl 20}},
            %% Linux doubles them
            {recbuf, 8192, #{recbuf => 4096}},
            {sndbuf, 16384, #{sndbuf => 8192}},
            {nodelay, true, #{nodelay => true}},
            {nodelay, false, #{nodelay => false}},
            {linger, {true, 0}, #{nolinger => true}},
            {linger, {false, 0}, #{nolinger => false}},
            {linger, {false, 0}, #{}},
            {keepalive, false, #{}},
            {keepalive, false, #{keepalive => "none"}},
            {keepalive, true, #{keepalive => "60,10,3"}},
            {idle, 60, #{keepalive => "60,10,3"}},
            {interval, 10, #{keepalive => <<"60, 10, 3">>}},
            {count, 3, #{keepalive => "60,10,3"}},
            {high_watermark, 16#7FFFFFFF, #{high_watermark => 1048576}},
            {exit_on_close, false, #{}}
        ]
    ].

option(Name, Tcp) ->
    Listener = listener((conf())#{tcp_options => Tcp}),
    {ok, Listening} = gen_tcp:listen(0, [
        {ip, {127, 0, 0, 1}} | proplists:get_value(tcp_options, esockd_options(Listener))
    ]),
    {ok, Port} = inet:port(Listening),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, []),
    {ok, Socket} = gen_tcp:accept(Listening),
    Options = options(gateway(), Listener, plugin(), nats_gateway_login:none(), defaults(), context()),
    case Options of
        #{keepalive := KeepAlive} -> ok = nats_gateway_transport:keep_alive({tcp, Socket}, KeepAlive);
        #{} -> ok
    end,
    Value =
        case lists:keyfind(Name, 1, [{idle, 4}, {interval, 5}, {count, 6}]) of
            {_, Raw} ->
                {ok, [{raw, 6, Raw, <<Seconds:32/native>>}]} = inet:getopts(Socket, [{raw, 6, Raw, 4}]),
                {ok, [{Name, Seconds}]};
            false ->
                inet:getopts(Socket, [Name])
        end,
    lists:foreach(fun gen_tcp:close/1, [Socket, Client, Listening]),
    Value.

reuseaddr_and_backlog_test() ->
    Tcp = fun(Options) ->
        proplists:get_value(tcp_options, esockd_options(listener((conf())#{tcp_options => Options})))
    end,
    ?assertEqual(false, proplists:get_value(reuseaddr, Tcp(#{reuseaddr => false}))),
    ?assertEqual(7, proplists:get_value(backlog, Tcp(#{backlog => 7}))).

chunks_at_once_test_() ->
    Most = nats_gateway_transport:max_active_n(),
    [
        ?_assertEqual(Expected, maps:get(active_n, tcp_connection(#{active_n => N}), none))
     || {Expected, N} <- [{1, 1}, {10, 10}, {Most, 100}, {none, 0}]
    ].

tcp_connection(Tcp) ->
    Listener = listener((conf())#{tcp_options => Tcp}),
    options(gateway(), Listener, plugin(), nats_gateway_login:none(), defaults(), context()).

%% Of the listener, unless it is what EMQX fills in; else that of the page.
send_timeout_test_() ->
    [
        ?_assertMatch(#{config := #{send_timeout := Expected}}, tcp_connection(Tcp))
     || {Expected, Tcp} <- [
            {7000, #{}},
            {7000, #{send_timeout => 15000}},
            {3000, #{send_timeout => 3000}},
            {60000, #{send_timeout => 60000}}
        ]
    ].

changes_test() ->
    A = listener(conf()),
    ChangedA = listener((conf())#{acceptors := 4}),
    MovedA = A#{bind := 4333},
    B = A#{id := {tcp, b}, bind := 5000},
    ?assertEqual(#{close => [], open => [A], keep => []}, changes([], [A])),
    ?assertEqual(#{close => [A], open => [], keep => [B]}, changes([A, B], [B])),
    ?assertEqual(#{close => [], open => [], keep => [ChangedA]}, changes([A], [ChangedA])),
    ?assertEqual(#{close => [A], open => [MovedA], keep => [B]}, changes([A, B], [MovedA, B])).

%% -------------------------------------------------------------------------------------------
%% WebSocket

%% As EMQX 5.10 fills it in.
ws_conf(Changes) ->
    (conf())#{
        websocket => maps:merge(
            #{
                path => <<>>,
                piggyback => single,
                compress => false,
                idle_timeout => 7200000,
                max_frame_size => infinity,
                fail_if_no_subprotocol => false,
                supported_subprotocols => ["NATS/1.0", "NATS"],
                check_origin_enable => false,
                allow_origin_absence => true,
                check_origins => [<<"http://localhost:18083">>],
                proxy_address_header => "X-Forwarded-For",
                proxy_port_header => "x-forwarded-port",
                deflate_opts => #{mem_level => 8, strategy => default}
            },
            Changes
        )
    }.

ws_options(Changes, Plugin) -> ws_options(ws, ws_conf(Changes), Plugin).

ws_options(Type, Conf, Plugin) ->
    Listener = #{id => {Type, default}, bind => ?BIND, conf => Conf},
    options(gateway(), Listener, Plugin, nats_gateway_login:none(), defaults(), context()).

websocket(Changes) ->
    #{websocket := Settings} = ws_options(Changes, plugin()),
    Settings.

websocket_options_test() ->
    ?assertMatch(
        #{listener := 'nats:ws:default', transport := ws},
        ws_options(#{}, plugin())
    ),
    ?assertEqual(
        #{
            same_origin => false,
            allowed_origins => [],
            allow_origin_absence => true,
            subprotocols => [<<"nats/1.0">>, <<"nats">>],
            needs_subprotocol => false,
            compress => false,
            deflate_options => #{mem_level => 8, strategy => default},
            max_frame_size => infinity,
            handshake_timeout => 5000,
            proxy_address_header => <<"x-forwarded-for">>,
            proxy_port_header => <<"x-forwarded-port">>
        },
        websocket(#{})
    ),
    Tcp = options(gateway(), listener(conf()), plugin(), nats_gateway_login:none(), defaults(), context()),
    ?assertNot(is_map_key(websocket, Tcp)).

defaults() -> maps:merge(nats_gateway_config:defaults(), nats_gateway_config:identity()).

websocket_settings_test_() ->
    [
        ?_assertEqual({Key, Expected}, {Key, maps:get(Key, websocket(Changes), none)})
     || {Key, Expected, Changes} <- [
            {path, <<"/nats">>, #{path => "/nats"}},
            {path, <<"/nats">>, #{path => <<"nats">>}},
            {path, none, #{path => ""}},
            {compress, true, #{compress => true}},
            {max_frame_size, 1, #{max_frame_size => 1}},
            {max_frame_size, infinity, #{max_frame_size => 0}},
            {subprotocols, [], #{supported_subprotocols => []}},
            {needs_subprotocol, true, #{fail_if_no_subprotocol => true}},
            {proxy_address_header, none, #{proxy_address_header => ""}},
            {allowed_origins, [{<<"http">>, <<"localhost">>, 18083}], #{check_origin_enable => true}},
            {allow_origin_absence, false, #{allow_origin_absence => false}}
        ]
    ].

websocket_of_the_plugin_s_page_test() ->
    Page = (plugin())#{websocket_same_origin => true, websocket_jwt_cookie => <<"jwt">>},
    #{websocket := Settings, config := Config} = ws_options(#{}, Page),
    ?assertMatch(#{same_origin := true, jwt_cookie := <<"jwt">>}, Settings),
    ?assertNot(is_map_key(websocket_jwt_cookie, Config)).

%% A cookie with a bearer token, and any page may use it.
cookies_of_any_page_test() ->
    Open = (plugin())#{websocket_jwt_cookie => <<"jwt">>},
    [Bearer, Signed] = [with_account(Disallow) || Disallow <- [false, true]],
    None = nats_gateway_login:none(),
    Ask = fun(Changes, Page, Login) ->
        Gateway = (gateway())#{listeners => #{ws => #{default => ws_conf(Changes)}}},
        Checked = nats_gateway_emqx_config:check_page(Gateway, Page#{login => Login}),
        {problem(Gateway, Page, Login), Checked}
    end,
    {{websocket_jwt_cookie, #{listener := 'nats:ws:default'}, Text}, {error, Refused}} =
        Ask(#{}, Open, Bearer),
    [
        ?assertNotEqual({nomatch, Name}, {binary:match(Text, Name), Name})
     || Name <- [<<"websocket_same_origin">>, <<"check_origin_enable">>, <<"disallow_bearer">>]
    ],
    ?assertEqual(<<"websocket_jwt_cookie (nats:ws:default): ", Text/binary>>, Refused),
    [
        ?assertEqual({none, ok}, Ask(Changes, Page, Login))
     || {Changes, Page, Login} <- [
            {#{check_origin_enable => true}, Open, Bearer},
            {#{}, Open#{websocket_same_origin => true}, Bearer},
            {#{}, plugin(), Bearer},
            {#{}, Open, Signed},
            {#{}, Open, None}
        ]
    ].

with_account(DisallowBearer) ->
    [Operator, Account] = [nats_gateway_credentials:pair(Role) || Role <- [operator, account]],
    Jwt = nats_gateway_credentials:account(
        Account, #{limits => #{disallow_bearer => DisallowBearer}}, Operator
    ),
    {ok, Trust} = nats_gateway_jwt:trust([nats_gateway_credentials:key(Operator)], [{undefined, Jwt}]),
    {ok, Login} = nats_gateway_login:new(#{methods => [{jwt, Trust}]}),
    Login.

behind_a_proxy_test() ->
    Conf = (ws_conf(#{}))#{proxy_protocol => true, proxy_protocol_timeout => 1500},
    ?assertMatch(#{proxy_protocol := 1500}, ws_options(wss, Conf, plugin())),
    Tcp = fun(Changes) ->
        Listener = listener(maps:merge(conf(), Changes)),
        options(gateway(), Listener, plugin(), nats_gateway_login:none(), defaults(), context())
    end,
    ?assertMatch(#{proxy_protocol := 3000}, Tcp(#{proxy_protocol => true})),
    ?assertNot(is_map_key(proxy_protocol, Tcp(#{proxy_protocol => false}))).

wrong_origins_are_named_test() ->
    Gateway = fun(Changes) -> (gateway())#{listeners := #{ws => #{a => ws_conf(Changes)}}} end,
    Wrong = #{check_origins => [<<"https://a">>, <<"a">>]},
    Problem = fun(Changes) -> problem(Gateway(Changes), plugin(), nats_gateway_login:none()) end,
    ?assertEqual(none, Problem(#{})),
    ?assertEqual(none, Problem(Wrong)),
    ?assertMatch(
        {check_origins, #{listener := 'nats:ws:a', origin := <<"a">>}, <<_/binary>>},
        Problem(Wrong#{check_origin_enable => true})
    ).

ranch_options_test() ->
    Conf = (ws_conf(#{}))#{max_conn_rate => 10, tcp_options => #{backlog => 77}},
    Options = fun(Bind) ->
        ranch_options(#{id => {ws, a}, bind => Bind, conf => Conf}, [{deny, all}])
    end,
    #{socket_opts := SocketOptions} = Given = Options(?BIND),
    ?assertMatch(
        #{max_connections := 9, num_acceptors := 3, num_conns_sups := 1, shutdown := 5000}, Given
    ),
    ?assertEqual([{deny, all}], proplists:get_value(access_rules, SocketOptions)),
    ?assertMatch(#{rate := 10}, proplists:get_value(limiter, SocketOptions)),
    Socket = proplists:get_value(socket, SocketOptions),
    ?assertEqual({127, 0, 0, 1}, proplists:get_value(ip, Socket)),
    ?assertEqual(4222, proplists:get_value(port, Socket)),
    ?assertEqual(77, proplists:get_value(backlog, Socket)),
    lists:foreach(
        fun(Bind) ->
            #{socket_opts := Opts} = Options(Bind),
            {ok, Listening} = gen_tcp:listen(0, proplists:get_value(socket, Opts)),
            ok = gen_tcp:close(Listening)
        end,
        [{{127, 0, 0, 1}, 0}, {{0, 0, 0, 0, 0, 0, 0, 1}, 0}]
    ).
