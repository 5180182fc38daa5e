-module(nats_gateway_file_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_file, [parse/1, defaults/0]).

set(Path, Value) -> parse(put_in(Path, Value)).

put_in([Key], Value) -> #{Key => Value};
put_in([Key | Keys], Value) -> #{Key => put_in(Keys, Value)}.

defaults_test() ->
    ?assertMatch(
        #{
            server_name := <<"nats_gateway">>,
            server_id := <<"N", _:55/binary>>,
            mountpoint := <<>>,
            default_heartbeat_interval := 30000,
            heartbeat_wait_timeout := 5000,
            idle_timeout := 30000,
            authentication_timeout := 2000,
            max_payload_size := 1048576,
            max_control_line := 4096,
            max_subscriptions := 100000,
            max_sub_tokens := infinity,
            retained_on_subscribe := false,
            publish_properties := false,
            show_properties := false,
            login := none,
            clientinfo_override := #{username := undefined},
            upstream := #{host := "127.0.0.1", port := 1883, keepalive := 60},
            listeners := [
                #{name := <<"tcp:default">>, bind := {{127, 0, 0, 1}, 4222}, max_connections := infinity}
            ]
        },
        defaults()
    ).

a_server_id_is_new_at_every_start_test() ->
    ?assertNotEqual(maps:get(server_id, defaults()), maps:get(server_id, defaults())).

an_unknown_key_is_named_test_() ->
    [
        ?_assertMatch({error, <<"max_payload: unknown key; known here: ", _/binary>>},
            set([<<"max_payload">>], 1)),
        ?_assertMatch({error, <<"upstream.uri: unknown key; known here: authentication, connect_timeout", _/binary>>},
            set([<<"upstream">>, <<"uri">>], <<"x">>)),
        ?_assertMatch({error, <<"listeners.tcp.a.bnd: unknown key", _/binary>>},
            set([<<"listeners">>, <<"tcp">>, <<"a">>, <<"bnd">>], 1)),
        ?_assertMatch({error, <<"listeners.udp: unknown key; known here: ssl, tcp, ws, wss">>},
            set([<<"listeners">>, <<"udp">>], #{}))
    ].

%% The buckets of the key/value store. `nats_gateway_kv_bucket_tests' has the entries.
kv_test_() ->
    Kv = fun(Table) ->
        case parse(#{<<"kv">> => Table}) of
            {ok, #{kv := Buckets}} -> Buckets;
            Error -> Error
        end
    end,
    [
        ?_assertEqual(off, Kv(#{})),
        ?_assertEqual(off, Kv(#{<<"buckets">> => [<<"b">>]})),
        ?_assertEqual(#{<<"b">> => <<"x/">>}, Kv(#{<<"enable">> => true, <<"buckets">> => [<<"b=x">>]})),
        ?_assertEqual(
            {error, <<"kv.buckets: must name at least one bucket">>}, Kv(#{<<"enable">> => true})
        ),
        ?_assertMatch(
            {error, <<"kv.buckets[2]: must be the name of a bucket", _/binary>>},
            Kv(#{<<"enable">> => true, <<"buckets">> => [<<"b">>, <<"b c">>]})
        ),
        ?_assertMatch({error, <<"kv.enable: ", _/binary>>}, Kv(#{<<"enable">> => 1}))
    ].

%% Who may ask what a system account may. A name that nobody can prove is refused with its place.
system_access_test_() ->
    User = nats_gateway_credentials:public(user),
    Account = nats_gateway_credentials:public(account),
    System = fun(Access, More) ->
        case parse(More#{<<"system">> => Access}) of
            {ok, #{system := System}} -> System;
            {error, Text} -> Text
        end
    end,
    Nobody = nats_gateway_system_access:nobody(),
    Users = #{<<"users">> => [#{<<"user">> => <<"admin">>, <<"password">> => <<"p">>}]},
    Broker = #{<<"upstream">> => #{<<"authentication">> => true}},
    [
        ?_assertEqual(Nobody, System(#{}, #{})),
        ?_assertEqual(Nobody#{users := [<<"admin">>]}, System(#{<<"users">> => [<<"admin">>]}, Users)),
        ?_assertEqual(Nobody#{users := [<<"a">>]}, System(#{<<"users">> => [<<"a">>]}, Broker)),
        ?_assertEqual(Nobody#{nkeys := [User]}, System(#{<<"nkeys">> => [string:lowercase(User)]}, #{})),
        ?_assertEqual(Nobody#{accounts := [Account]}, System(#{<<"accounts">> => [Account]}, #{})),
        [
            ?_assertMatch({0, _}, binary:match(System(Access, More), Text))
         || {Access, More, Text} <- [
                {#{<<"users">> => [<<"admin">>]}, #{}, <<"system.users[1]: must be one of users, or upstream.auth">>},
                {#{<<"users">> => [<<"admin">>, <<"x">>]}, Users, <<"system.users[2]: must be one of users">>},
                {#{<<"users">> => [<<>>]}, Broker, <<"system.users[1]: must be the name of a user">>},
                {#{<<"users">> => <<"admin">>}, Users, <<"system.users: must be a list">>},
                {#{<<"nkeys">> => [Account]}, #{}, <<"system.nkeys[1]: must be the public NKey of a user">>},
                {#{<<"accounts">> => [User]}, #{}, <<"system.accounts[1]: must be the public key of an account">>},
                {#{<<"account">> => Account}, #{}, <<"system.account: unknown key; known here: accounts, nkeys">>}
            ]
        ]
    ].

a_value_of_the_wrong_kind_is_named_test_() ->
    [
        {lists:flatten(io_lib:format("~p ~p", [Path, Value])),
            ?_assertMatch({error, _}, set(Path, Value))}
     || {Path, Values} <- [
            {[<<"server_name">>], [1, true, <<"a", 0>>]},
            {[<<"enable_stats">>], [<<"true">>, 1]},
            {[<<"upstream">>], [1, <<"mqtt://127.0.0.1:1883">>]},
            {[<<"listeners">>, <<"tcp">>], [1]},
            {[<<"listeners">>, <<"tcp">>, <<"a">>], [4222]},
            {[<<"log_level">>], [<<"loud">>, 1]}
        ],
        Value <- Values
    ].

durations_test_() ->
    Heartbeat = fun(Value) ->
        case set([<<"default_heartbeat_interval">>], Value) of
            {ok, #{default_heartbeat_interval := Ms}} -> Ms;
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Heartbeat(Value))
     || {Value, Expected} <- [
            {1, 1},
            {1500, 1500},
            {<<"30s">>, 30000},
            {<<"1m30s">>, 90000},
            {<<"1m 30s">>, 90000},
            {<<"500ms">>, 500},
            {<<"2h">>, 7200000},
            {<<"1d">>, 86400000},
            %% never
            {0, infinity},
            {<<"0s">>, infinity},
            {16#FFFFFFFF, 16#FFFFFFFF},
            {16#FFFFFFFF + 1, error},
            {-1, error},
            {1.5, error},
            {<<"30">>, error},
            {<<"30 parsecs">>, error},
            {<<"s">>, error},
            {<<>>, error}
        ]
    ].

a_wait_of_zero_is_refused_test() ->
    ?assertMatch({error, <<"heartbeat_wait_timeout: ", _/binary>>},
        set([<<"heartbeat_wait_timeout">>], 0)),
    ?assertMatch({ok, #{heartbeat_wait_timeout := 1}}, set([<<"heartbeat_wait_timeout">>], 1)).

too_much_for_a_packet_is_named_test() ->
    {error, Text} = set([<<"max_payload_size">>], 268173312),
    ?assertEqual(
        <<"max_payload_size: must be a size from 0 to 268173311 bytes, such as 1048576 or \"1MB\"">>,
        Text
    ).

topic_levels_test_() ->
    Levels = fun(Value) ->
        case set([<<"upstream">>, <<"max_topic_levels">>], Value) of
            {ok, #{upstream := #{max_topic_levels := Max}}} -> Max;
            {error, <<"upstream.max_topic_levels: ", _/binary>>} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Levels(Value))
     || {Value, Expected} <- [{0, infinity}, {1, 1}, {65535, 65535}, {65536, error}, {-1, error}]
    ].

sizes_test_() ->
    Payload = fun(Value) ->
        case set([<<"max_payload_size">>], Value) of
            {ok, #{max_payload_size := Bytes}} -> Bytes;
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Payload(Value))
     || {Value, Expected} <- [
            {0, 0},
            %% what an MQTT packet holds besides a topic and the like
            {268173311, 268173311},
            {268173312, error},
            {-1, error},
            {<<"1MB">>, 1048576},
            {<<"64kb">>, 65536},
            {<<"10B">>, 10},
            {<<"1XB">>, error},
            {<<"1GB">>, error}
        ]
    ].

what_may_wait_for_a_client_test_() ->
    Pending = fun(Value) ->
        case set([<<"max_pending">>], Value) of
            {ok, #{max_pending := Bytes}} -> Bytes;
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(67108864, maps:get(max_pending, defaults())),
        ?_assertEqual(10000, maps:get(send_timeout, defaults()))
        | [
            ?_assertEqual(Expected, Pending(Value))
         || {Value, Expected} <- [
                {0, error},
                {1023, error},
                {1024, 1024},
                {<<"1GB">>, 1 bsl 30},
                {(1 bsl 30) + 1, error}
            ]
        ]
    ].

limits_test_() ->
    Subscriptions = fun(Value) ->
        case set([<<"max_subscriptions">>], Value) of
            {ok, #{max_subscriptions := Max}} -> Max;
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Subscriptions(Value))
     || {Value, Expected} <- [
            {0, infinity}, {1, 1}, {1 bsl 30, 1 bsl 30}, {(1 bsl 30) + 1, error}, {-1, error}
        ]
    ].

addresses_test_() ->
    Bind = fun(Value) ->
        case set([<<"listeners">>, <<"tcp">>, <<"a">>, <<"bind">>], Value) of
            {ok, #{listeners := [#{bind := Address}]}} -> Address;
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Bind(Value))
     || {Value, Expected} <- [
            {4222, {{0, 0, 0, 0}, 4222}},
            {<<"127.0.0.1:4222">>, {{127, 0, 0, 1}, 4222}},
            {<<"[::1]:4222">>, {{0, 0, 0, 0, 0, 0, 0, 1}, 4222}},
            {<<"127.0.0.1:65535">>, {{127, 0, 0, 1}, 65535}},
            {<<"127.0.0.1:65536">>, error},
            {65536, error},
            {-1, error},
            {<<"127.0.0.1">>, error},
            {<<"somewhere:4222">>, error},
            {<<"::1:4222">>, error}
        ]
    ].

urls_test_() ->
    Upstream = fun(Value) ->
        case set([<<"upstream">>, <<"url">>], Value) of
            {ok, #{upstream := #{host := Host, port := Port, tls := none}}} -> {Host, Port};
            {ok, #{upstream := #{host := Host, port := Port, tls := Tls}}} when is_list(Tls) ->
                {Host, Port, tls};
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Upstream(Value))
     || {Value, Expected} <- [
            {<<"mqtt://127.0.0.1:1883">>, {"127.0.0.1", 1883}},
            {<<"mqtt://broker.local:1884/">>, {"broker.local", 1884}},
            {<<"mqtt://[::1]:1883">>, {"::1", 1883}},
            {<<"mqtts://127.0.0.1:8883">>, {"127.0.0.1", 8883, tls}},
            {<<"mqttt://127.0.0.1:1883">>, error},
            {<<"127.0.0.1:1883">>, error},
            {<<"mqtt://127.0.0.1">>, error},
            {<<"mqtt://user:pass@127.0.0.1:1883">>, error},
            {1883, error}
        ]
    ].

upstream_tls(Url, Options) ->
    case parse(#{<<"upstream">> => #{<<"url">> => Url, <<"ssl_options">> => Options}}) of
        {ok, #{upstream := #{tls := Tls}}} -> lists:sort(Tls);
        {error, Text} -> {error, Text}
    end.

upstream_tls_test() ->
    Host = <<"mqtts://broker.example:8883">>,
    ?assertMatch(
        [
            {cacertfile, <<"/etc/ssl/certs/ca-certificates.crt">>},
            {customize_hostname_check, _},
            {log_level, none},
            {server_name_indication, "broker.example"},
            {verify, verify_peer},
            {versions, ['tlsv1.3', 'tlsv1.2']}
        ],
        upstream_tls(Host, #{})
    ),
    ?assertEqual(
        [
            {log_level, none},
            {server_name_indication, "other"},
            {verify, verify_none},
            {versions, ['tlsv1.2']}
        ],
        upstream_tls(Host, #{
            <<"verify">> => <<"verify_none">>,
            <<"server_name_indication">> => <<"other">>,
            <<"versions">> => [<<"tlsv1.2">>]
        })
    ),
    %% An address is not a name, and is not sent as one.
    Address = upstream_tls(<<"mqtts://127.0.0.1:8883">>, #{}),
    ?assertEqual(false, lists:keyfind(server_name_indication, 1, Address)),
    ?assertEqual({verify, verify_peer}, lists:keyfind(verify, 1, Address)),
    ?assertMatch(
        {error, <<"upstream.ssl_options: need an mqtts:// URL">>},
        upstream_tls(<<"mqtt://127.0.0.1:1883">>, #{<<"certfile">> => <<"a.pem">>})
    ).

listeners_keep_their_names_and_the_smaller_limit_test() ->
    {ok, #{listeners := Listeners}} = parse(#{
        <<"max_connections">> => 10,
        <<"listeners">> => #{
            <<"tcp">> => #{
                <<"a">> => #{<<"bind">> => 1, <<"max_connections">> => 5},
                <<"b">> => #{<<"bind">> => 2, <<"max_connections">> => 20},
                <<"c">> => #{<<"bind">> => 3}
            }
        }
    }),
    ?assertEqual(
        [{<<"tcp:a">>, 5}, {<<"tcp:b">>, 10}, {<<"tcp:c">>, 10}],
        [{Name, Max} || #{name := Name, max_connections := Max} <- Listeners]
    ).

%% -------------------------------------------------------------------------------------------
%% TLS

ssl_listener(Settings, SslOptions) ->
    parse(#{
        <<"listeners">> => #{
            <<"ssl">> => #{<<"a">> => Settings#{<<"ssl_options">> => SslOptions}}
        }
    }).

tls(Settings, SslOptions) ->
    case ssl_listener(Settings, SslOptions#{<<"certfile">> => <<"c.pem">>}) of
        {ok, #{listeners := [#{type := ssl, tls := Tls}]}} -> Tls;
        {error, Text} -> {error, Text}
    end.

an_ssl_listener_has_defaults_test() ->
    Pem = #{<<"certfile">> => <<"c.pem">>},
    ?assertMatch(
        {ok, #{
            authentication_timeout := 2000,
            listeners := [
                #{
                    name := <<"ssl:a">>,
                    type := ssl,
                    acceptors := 16,
                    %% nats-server's: a second more than the handshake has
                    authentication_timeout := 3000,
                    peer_cert_as_username := disabled,
                    tls := #{
                        listener := <<"ssl:a">>,
                        mode := upgrade,
                        allow_non_tls := false,
                        handshake_first_wait := 50,
                        handshake_timeout := 2000,
                        verify := verify_none,
                        certfile := <<"c.pem">>,
                        keyfile := <<"c.pem">>
                    }
                }
            ]
        }},
        ssl_listener(#{}, Pem)
    ),
    #{options := Options} = Tls = tls(#{}, #{}),
    ?assertEqual([], [cacertfile, password] -- ([cacertfile, password] -- maps:keys(Tls))),
    ?assertEqual(['tlsv1.3', 'tlsv1.2'], proplists:get_value(versions, Options)),
    ?assertEqual(none, proplists:get_value(log_level, Options)),
    ?assertNot(proplists:is_defined(ciphers, Options)).

listeners_of_every_type_test() ->
    {ok, #{listeners := Listeners}} = parse(#{
        <<"authentication_timeout">> => 1500,
        <<"listeners">> => #{
            <<"ssl">> => #{
                <<"a">> => #{<<"ssl_options">> => #{<<"certfile">> => <<"c.pem">>}}
            },
            <<"tcp">> => #{<<"a">> => #{<<"bind">> => 1}}
        }
    }),
    ?assertEqual(
        [{<<"tcp:a">>, tcp, 1500}, {<<"ssl:a">>, ssl, 1500}],
        [
            {Name, Type, Timeout}
         || #{name := Name, type := Type, authentication_timeout := Timeout} <- Listeners
        ]
    ).

tls_settings_test_() ->
    Get = fun(Name, Settings, SslOptions) ->
        case tls(Settings, SslOptions) of
            #{Name := Value} -> Value;
            #{options := Options} -> proplists:get_value(Name, Options)
        end
    end,
    [
        ?_assertEqual(Expected, Get(Name, Settings, SslOptions))
     || {Name, Expected, Settings, SslOptions} <- [
            {mode, auto, #{<<"tls_mode">> => <<"auto">>}, #{}},
            {handshake_first_wait, 200, #{<<"handshake_first_wait">> => <<"200ms">>}, #{}},
            {allow_non_tls, true, #{<<"allow_non_tls">> => true}, #{}},
            {handshake_timeout, 7000, #{}, #{<<"handshake_timeout">> => <<"7s">>}},
            {keyfile, <<"k.pem">>, #{}, #{<<"keyfile">> => <<"k.pem">>}},
            {depth, 0, #{}, #{<<"depth">> => 0}},
            {depth, 255, #{}, #{<<"depth">> => 255}},
            {versions, ['tlsv1.2'], #{}, #{<<"versions">> => [<<"tlsv1.2">>]}},
            {versions, ['tlsv1.3', 'tlsv1.2'], #{}, #{
                <<"versions">> => [<<"tlsv1.2">>, <<"tlsv1.3">>, <<"tlsv1.2">>]
            }},
            {client_renegotiation, false, #{}, #{}},
            %% OTP takes it for TLS 1.2 only.
            {client_renegotiation, undefined, #{}, #{<<"versions">> => [<<"tlsv1.3">>]}},
            {fail_if_no_peer_cert, true, #{}, #{
                <<"verify">> => <<"verify_peer">>,
                <<"cacertfile">> => <<"ca.pem">>,
                <<"fail_if_no_peer_cert">> => true
            }},
            {ciphers, [#{key_exchange => any, cipher => aes_256_gcm, mac => aead, prf => sha384}], #{}, #{
                <<"ciphers">> => [<<"TLS_AES_256_GCM_SHA384">>]
            }}
        ]
    ] ++
        [
            ?_assertEqual(<<"secret">>, ((Get(password, #{}, #{<<"password">> => <<"secret">>}))()))
        ].

what_is_wrong_with_tls_is_named_test_() ->
    In = fun(Path) -> <<"listeners.ssl.a.", Path/binary>> end,
    Peer = #{<<"verify">> => <<"verify_peer">>},
    [
        {binary_to_list(Path), fun() ->
            {error, Text} = Result,
            Size = byte_size(In(Path)),
            ?assertEqual(<<(In(Path))/binary, ": ">>, binary:part(Text, 0, Size + 2))
        end}
     || {Path, Result} <- [
            {<<"ssl_options.certfile">>, ssl_listener(#{}, #{})},
            {<<"ssl_options.cacertfile">>, tls(#{}, Peer)},
            {<<"ssl_options.fail_if_no_peer_cert">>, tls(#{}, #{<<"fail_if_no_peer_cert">> => true})},
            {<<"allow_non_tls">>,
                tls(#{<<"tls_mode">> => <<"handshake_first">>, <<"allow_non_tls">> => true}, #{})},
            {<<"tls_mode">>, tls(#{<<"tls_mode">> => <<"never">>}, #{})},
            {<<"handshake_first_wait">>, tls(#{<<"handshake_first_wait">> => 0}, #{})},
            {<<"peer_cert_as_username">>, tls(#{<<"peer_cert_as_username">> => <<"pem">>}, #{})},
            {<<"ssl_options.handshake_timeout">>, tls(#{}, #{<<"handshake_timeout">> => <<"0s">>})},
            {<<"ssl_options.depth">>, tls(#{}, #{<<"depth">> => -1})},
            {<<"ssl_options.depth">>, tls(#{}, #{<<"depth">> => 256})},
            {<<"ssl_options.versions">>, tls(#{}, #{<<"versions">> => []})},
            {<<"ssl_options.versions">>, tls(#{}, #{<<"versions">> => <<"tlsv1.3">>})},
            {<<"ssl_options.versions">>, tls(#{}, #{<<"versions">> => [<<"tlsv1.1">>]})},
            {<<"ssl_options.ciphers">>, tls(#{}, #{<<"ciphers">> => [<<"ROT13">>]})},
            {<<"ssl_options.ciphers">>, tls(#{}, #{<<"ciphers">> => <<"TLS_AES_256_GCM_SHA384">>})},
            {<<"ssl_options.verify">>, tls(#{}, #{<<"verify">> => <<"maybe">>})},
            {<<"ssl_options.cert">>, tls(#{}, #{<<"cert">> => <<"c.pem">>})}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% WebSocket

ws_listener(Settings) ->
    parse(#{<<"listeners">> => #{<<"ws">> => #{<<"a">> => #{<<"websocket">> => Settings}}}}).

websocket(Settings) ->
    case ws_listener(Settings) of
        {ok, #{listeners := [#{type := ws, websocket := Websocket}]}} -> Websocket;
        {error, Text} -> {error, Text}
    end.

a_ws_listener_has_defaults_test() ->
    ?assertMatch(
        {ok, #{
            listeners := [
                #{
                    name := <<"ws:a">>,
                    type := ws,
                    bind := {{127, 0, 0, 1}, 8080},
                    authentication_timeout := 2000
                } = Listener
            ]
        }} when not is_map_key(tls, Listener),
        ws_listener(#{})
    ),
    ?assertEqual(
        #{
            same_origin => false,
            allowed_origins => [],
            allow_origin_absence => true,
            subprotocols => [],
            compress => false,
            max_frame_size => infinity,
            handshake_timeout => 5000
        },
        websocket(#{})
    ).

a_wss_listener_test() ->
    Wss = fun(Settings) -> parse(#{<<"listeners">> => #{<<"wss">> => #{<<"a">> => Settings}}}) end,
    Pem = #{<<"ssl_options">> => #{<<"certfile">> => <<"c.pem">>}},
    ?assertMatch(
        {ok, #{
            listeners := [
                #{
                    name := <<"wss:a">>,
                    type := wss,
                    bind := {{127, 0, 0, 1}, 8443},
                    peer_cert_as_username := cn,
                    websocket := #{path := <<"/nats">>},
                    tls := #{mode := handshake_first, allow_non_tls := false, certfile := <<"c.pem">>}
                }
            ]
        }},
        Wss(Pem#{
            <<"peer_cert_as_username">> => <<"cn">>, <<"websocket">> => #{<<"path">> => <<"/nats">>}
        })
    ),
    ?assertMatch({error, <<"listeners.wss.a.ssl_options.certfile: ", _/binary>>}, Wss(#{})),
    %% There is no INFO in clear.
    ?assertMatch(
        {error, <<"listeners.wss.a.tls_mode: unknown key", _/binary>>},
        Wss(Pem#{<<"tls_mode">> => <<"upgrade">>})
    ).

websocket_settings_test_() ->
    [
        ?_assertMatch({Key, #{Key := Expected}}, {Key, websocket(Settings)})
     || {Key, Expected, Settings} <- [
            {path, <<"/">>, #{<<"path">> => <<"/">>}},
            {path, <<"/a/b%20">>, #{<<"path">> => <<"/a/b%20">>}},
            {same_origin, true, #{<<"same_origin">> => true}},
            {allowed_origins, [{<<"https">>, <<"a.example">>, 443}, {<<"http">>, <<"b">>, 81}], #{
                <<"allowed_origins">> => [<<"https://A.example">>, <<"http://b:81">>]
            }},
            {allow_origin_absence, false, #{<<"allow_origin_absence">> => false}},
            {subprotocols, [<<"nats/1.0">>], #{<<"supported_subprotocols">> => [<<"NATS/1.0">>]}},
            {compress, true, #{<<"compress">> => true}},
            {max_frame_size, infinity, #{<<"max_frame_size">> => 0}},
            {max_frame_size, 1, #{<<"max_frame_size">> => 1}},
            {max_frame_size, 999999999, #{<<"max_frame_size">> => 999999999}},
            {handshake_timeout, 1000, #{<<"handshake_timeout">> => <<"1s">>}},
            {jwt_cookie, <<"JWT">>, #{<<"jwt_cookie">> => <<"JWT">>}},
            {proxy_address_header, <<"x-real-ip">>, #{<<"proxy_address_header">> => <<"X-Real-IP">>}},
            {proxy_port_header, <<"x-port">>, #{<<"proxy_port_header">> => <<"X-Port">>}}
        ]
    ].

no_name_is_none_test() ->
    ?assertEqual(
        websocket(#{}),
        websocket(#{<<"jwt_cookie">> => <<>>, <<"proxy_address_header">> => <<>>})
    ).

%% A cookie with a bearer token, and any page may use it.
cookies_of_any_page_test() ->
    [Operator, Account] = [nats_gateway_credentials:pair(Role) || Role <- [operator, account]],
    Parse = fun(Websocket, Disallow) ->
        Limits = #{limits => #{disallow_bearer => Disallow}},
        Jwt = nats_gateway_credentials:account(Account, Limits, Operator),
        Preload = #{<<"pubkey">> => nats_gateway_credentials:key(Account), <<"jwt">> => Jwt},
        nats_gateway_file:parse(#{
            <<"listeners">> => #{<<"ws">> => #{<<"a">> => #{<<"websocket">> => Websocket}}},
            <<"internal_authn">> => [
                #{
                    <<"type">> => <<"jwt">>,
                    <<"trusted_operators">> => [nats_gateway_credentials:key(Operator)],
                    <<"resolver">> => #{<<"resolver_preload">> => [Preload]}
                }
            ]
        })
    end,
    Cookie = #{<<"jwt_cookie">> => <<"jwt">>},
    ?assertMatch(
        {error, <<"listeners.ws.a.websocket.jwt_cookie: needs same_origin or allowed_origins", _/binary>>},
        Parse(Cookie, false)
    ),
    [
        ?assertMatch({ok, _}, Parse(Websocket, Disallow))
     || {Websocket, Disallow} <- [
            {Cookie, true},
            {#{}, false},
            {Cookie#{<<"same_origin">> => true}, false},
            {Cookie#{<<"allowed_origins">> => [<<"https://a.example">>]}, false}
        ]
    ],
    %% without a method that takes it, the cookie is nothing
    ?assertMatch(#{jwt_cookie := <<"jwt">>}, websocket(Cookie)).

what_is_wrong_with_websocket_is_named_test_() ->
    [
        {binary_to_list(Key), fun() ->
            {error, Text} = websocket(#{Key => Value}),
            Named = <<"listeners.ws.a.websocket.", Key/binary, ": ">>,
            ?assertEqual(Named, binary:part(Text, 0, byte_size(Named)))
        end}
     || {Key, Value} <- [
            {<<"path">>, <<>>},
            {<<"path">>, <<"nats">>},
            {<<"path">>, <<"/a?b">>},
            {<<"path">>, <<"/a b">>},
            {<<"path">>, <<"/a\n">>},
            {<<"jwt_cookie">>, <<"a\n">>},
            {<<"path">>, 1},
            {<<"allowed_origins">>, <<"https://a.example">>},
            {<<"allowed_origins">>, [<<"a.example">>]},
            {<<"allowed_origins">>, [1]},
            {<<"supported_subprotocols">>, <<"nats">>},
            {<<"max_frame_size">>, -1},
            {<<"max_frame_size">>, 1000000000},
            {<<"handshake_timeout">>, 0},
            {<<"jwt_cookie">>, <<"a b">>},
            {<<"proxy_address_header">>, <<"x:">>},
            {<<"proxy_port_header">>, 1},
            {<<"check_origins">>, []}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% Logins

login(Tables) ->
    case parse(Tables) of
        {ok, #{login := Login}} -> Login;
        {error, Text} -> Text
    end.

is_accepted(Connect, Tables) ->
    Facts = #{
        certified => false,
        nonce => <<"n">>,
        peerhost => {127, 0, 0, 1},
        transport => tcp,
        now => 0,
        offset => 0
    },
    case nats_gateway_login:authenticate(login(Tables), Connect, Facts) of
        {ok, #{username := Username}} -> Username;
        Other -> Other
    end.

methods_of_a_file_test() ->
    Key = nats_gateway_credentials:public(user),
    Tables = #{
        <<"internal_authn">> => [
            #{<<"type">> => <<"nkey">>, <<"nkeys">> => [Key]},
            #{<<"type">> => <<"token">>, <<"token">> => <<"one">>}
        ],
        <<"users">> => [#{<<"user">> => <<"u">>, <<"password">> => <<"p">>}]
    },
    ?assertEqual(<<"token">>, is_accepted(#{auth_token => <<"one">>}, Tables)),
    ?assertEqual(<<"u">>, is_accepted(#{user => <<"u">>, pass => <<"p">>}, Tables)),
    ?assertEqual({error, {users, no_user}}, is_accepted(#{}, Tables)),
    ?assertMatch({ok, #{auth_required := true}}, parse(Tables)),
    Guest = Tables#{<<"no_auth_user">> => <<"u">>},
    ?assertEqual(<<"u">>, is_accepted(#{}, Guest)),
    ?assertMatch({ok, #{auth_required := false}}, parse(Guest#{<<"auth_required">> => true})),
    Token = #{<<"auth_token">> => <<"t">>},
    ?assertEqual(<<"token">>, is_accepted(#{auth_token => <<"t">>}, Token)),
    ?assertEqual({error, {token, no_token}}, is_accepted(#{user => <<"u">>}, Token)),
    OfBroker = Token#{<<"upstream">> => #{<<"authentication">> => true}},
    ?assertEqual(ignore, is_accepted(#{user => <<"u">>}, OfBroker)),
    ?assertMatch({ok, #{auth_required := true}}, parse(OfBroker)).

jwt_of_a_file_test() ->
    [Operator, Account] = [nats_gateway_credentials:pair(R) || R <- [operator, account]],
    Jwt = nats_gateway_credentials:account(Account, #{}, Operator),
    Method = fun(Operators, PubKey, Token) ->
        login(#{
            <<"internal_authn">> => [
                #{
                    <<"type">> => <<"jwt">>,
                    <<"trusted_operators">> => Operators,
                    <<"resolver">> => #{
                        <<"type">> => <<"memory">>,
                        <<"resolver_preload">> => [#{<<"pubkey">> => PubKey, <<"jwt">> => Token}]
                    }
                }
            ]
        })
    end,
    Key = nats_gateway_credentials:key(Account),
    Trusted = [nats_gateway_credentials:key(Operator)],
    ?assertNot(is_binary(Method(Trusted, Key, Jwt))),
    ?assertEqual(
        <<"internal_authn[1].resolver.resolver_preload[1].jwt: not a NATS JWT">>,
        Method(Trusted, Key, <<"x">>)
    ),
    ?assertEqual(
        <<"internal_authn[1].resolver.resolver_preload[1].jwt: must be signed by a trusted operator">>,
        Method([nats_gateway_credentials:public(operator)], Key, Jwt)
    ),
    ?assertEqual(
        <<"internal_authn[1].resolver.resolver_preload[1].pubkey: must be the key that the JWT is for">>,
        Method(Trusted, nats_gateway_credentials:public(account), Jwt)
    ),
    ?assertEqual(
        <<"internal_authn[1].trusted_operators[1]: must be the public key (O...) or JWT of an operator">>,
        Method([Key], Key, Jwt)
    ),
    ?assertEqual(<<"internal_authn[1].trusted_operators: must not be empty">>, Method([], Key, Jwt)).

permissions_of_a_file_test_() ->
    Rules = fun(Permissions) ->
        Tables = #{
            <<"users">> => [
                #{
                    <<"user">> => <<"u">>,
                    <<"password">> => <<"p">>,
                    <<"permissions">> => Permissions
                }
            ]
        },
        case login(Tables) of
            Text when is_binary(Text) ->
                Text;
            Login ->
                {ok, #{rules := Found}} = nats_gateway_login:authenticate(
                    Login, #{user => <<"u">>, pass => <<"p">>}, #{certified => false}
                ),
                Found
        end
    end,
    All = #{allow => all, deny => []},
    None = #{publish => All, subscribe => All, allow_responses => undefined},
    Path = <<"users[1].permissions.">>,
    [
        ?_assertEqual({Permissions, Expected}, {Permissions, Rules(Permissions)})
     || {Permissions, Expected} <- [
            {#{}, None},
            {#{<<"publish">> => <<"a.>">>}, None#{publish := #{allow => [<<"a.>">>], deny => []}}},
            {#{<<"publish">> => [<<"a">>, <<"b">>]}, None#{
                publish := #{allow => [<<"a">>, <<"b">>], deny => []}
            }},
            {#{<<"publish">> => #{<<"deny">> => [<<"a">>]}}, None#{
                publish := #{allow => all, deny => [<<"a">>]}
            }},
            {#{<<"subscribe">> => [<<"a q.*">>]}, None#{
                subscribe := #{allow => [<<"a q.*">>], deny => []}
            }},
            {#{<<"allow_responses">> => true}, None#{
                allow_responses := #{max => 1, expires => 120000}
            }},
            {#{<<"allow_responses">> => false}, None},
            {#{<<"allow_responses">> => #{<<"max">> => 0, <<"expires">> => <<"0s">>}}, None#{
                allow_responses := #{max => infinity, expires => infinity}
            }},
            {#{<<"allow_responses">> => #{<<"max">> => 3, <<"expires">> => <<"5s">>}}, None#{
                allow_responses := #{max => 3, expires => 5000}
            }},
            {#{<<"publish">> => [<<"a q">>]}, <<Path/binary, "publish.allow[1]: must be a valid subject">>},
            {#{<<"publish">> => [<<"a">>, <<"a..b">>]}, <<Path/binary, "publish.allow[2]: must be a valid subject">>},
            {#{<<"subscribe">> => #{<<"deny">> => [<<"a b c">>]}},
                <<Path/binary, "subscribe.deny[1]: must be a valid subject">>},
            {#{<<"publish">> => []},
                <<Path/binary, "publish.allow: must not be empty: leave it out, or deny \">\"">>},
            {#{<<"publish">> => 1},
                <<Path/binary, "publish: must be a subject, a list of subjects, or a table with allow and deny">>},
            {#{<<"publish">> => #{<<"alow">> => []}},
                <<Path/binary, "publish.alow: unknown key; known here: allow, deny">>},
            {#{<<"allow_responses">> => 1},
                <<Path/binary, "allow_responses: must be true, false, or a table with max and expires">>},
            {#{<<"allow_responses">> => #{<<"max">> => -1}},
                <<Path/binary, "allow_responses.max: must be an integer from 0 (no limit) to 1073741824">>}
        ]
    ].

%% The key is named, and nothing of what it holds.
mistakes_in_logins_are_named_test_() ->
    S = <<"s3cr3t">>,
    User = #{<<"user">> => <<"u">>, <<"password">> => S},
    Key = nats_gateway_credentials:public(user),
    [
        ?_test(begin
            Text = login(Tables),
            ?assertMatch({0, _}, binary:match(Text, Start)),
            ?assertEqual(nomatch, binary:match(Text, S))
        end)
     || {Start, Tables} <- [
            {<<"auth_token: must be a string">>, #{<<"auth_token">> => [S]}},
            {<<"auth_token: must be a string">>, #{<<"auth_token">> => <<>>}},
            {<<"auth_token: cannot be read from its file: no such file or directory">>,
                #{<<"auth_token">> => <<"file:///", S/binary>>}},
            {<<"auth_token: begins like a bcrypt">>, #{<<"auth_token">> => <<"$2a$", S/binary>>}},
            {<<"users[1].password: ">>, #{<<"users">> => [User#{<<"password">> := <<"$2b$99$", S/binary>>}]}},
            {<<"users: must be a list">>, #{<<"users">> => User}},
            {<<"users: must be different">>, #{<<"users">> => [User, User]}},
            {<<"users[2]: must have a user">>, #{<<"users">> => [User, #{<<"password">> => S}]}},
            {<<"users[1]: must have either">>, #{<<"users">> => [User#{<<"nkey">> => Key}]}},
            {<<"users[1]: must have no password">>, #{<<"users">> => [#{<<"nkey">> => Key, <<"password">> => S}]}},
            {<<"users[1].user: must not be empty">>, #{<<"users">> => [User#{<<"user">> := <<>>}]}},
            {<<"users[1].nkey: must be the public NKey of a user">>, #{<<"users">> => [#{<<"nkey">> => S}]}},
            {<<"no_auth_user: must be one of users">>, #{<<"users">> => [User], <<"no_auth_user">> => S}},
            {<<"no_auth_user: must be one of users">>, #{<<"no_auth_user">> => S}},
            {<<"internal_authn[1].token: is missing">>, #{<<"internal_authn">> => [#{<<"type">> => <<"token">>}]}},
            {<<"internal_authn[1].type: must be one of jwt, nkey, token">>, #{
                <<"internal_authn">> => [#{<<"token">> => S}]
            }},
            {<<"internal_authn[1]: must be a table">>, #{<<"internal_authn">> => [S]}},
            {<<"internal_authn[1].nkeys: must not be empty">>,
                #{<<"internal_authn">> => [#{<<"type">> => <<"nkey">>, <<"nkeys">> => []}]}},
            {<<"internal_authn[1].nkeys: unknown key">>,
                #{<<"internal_authn">> => [#{<<"type">> => <<"token">>, <<"token">> => S, <<"nkeys">> => [S]}]}}
        ]
    ].

%% The operating system has no room for more: sun_path of unix(7).
the_control_socket_test_() ->
    Socket = fun(Path) -> set([<<"control">>, <<"socket">>], Path) end,
    Longest = <<"/", (binary:copy(<<"a">>, 106))/binary>>,
    [
        ?_assertMatch({ok, #{control := undefined}}, parse(#{})),
        ?_assertMatch({ok, #{control := <<"/a">>}}, Socket(<<"/a">>)),
        ?_assertMatch({ok, #{control := Longest}}, Socket(Longest))
    ] ++
        [
            ?_assertMatch(
                {error, <<"control.socket: must be an absolute path of at most 107 bytes", _/binary>>}, Socket(Path)
            )
         || Path <- [<<Longest/binary, "a">>, <<"/">>, <<>>, <<"a.sock">>, <<"/a", 0>>, 1, true]
        ].

the_log_test_() ->
    [
        ?_assertMatch({ok, #{log_format := text, log_file := undefined}}, parse(#{})),
        ?_assertMatch({ok, #{log_format := json}}, set([<<"log_format">>], <<"json">>)),
        ?_assertMatch({error, <<"log_format: must be one of text, json">>}, set([<<"log_format">>], <<"xml">>)),
        ?_assertMatch({ok, #{log_file := <<"a.log">>}}, set([<<"log_file">>], <<"a.log">>)),
        ?_assertMatch({error, <<"log_file: must be a path of a file">>}, set([<<"log_file">>], <<>>)),
        ?_assertMatch({error, <<"log_file: must be a path of a file">>}, set([<<"log_file">>], 1))
    ].
