-module(nats_gateway_config_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_config, [parse/1, defaults/0]).

set(Path, Value) -> parse(put_in(Path, Value)).

put_in([Key], Value) -> #{Key => Value};
put_in([Key | Keys], Value) -> #{Key => put_in(Keys, Value)}.

defaults_test() ->
    ?assertMatch(
        #{
            server_name := <<"nats_gateway">>,
            server_id := <<"N", _:55/binary>>,
            mountpoint := <<>>,
            default_heartbeat_interval := 60000,
            heartbeat_wait_timeout := 5000,
            idle_timeout := 30000,
            authentication_timeout := 2000,
            max_payload_size := 1048576,
            max_control_line := 4096,
            max_subscriptions := infinity,
            retained_on_subscribe := false,
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
        ?_assertMatch({error, <<"listeners.ssl: unknown key; known here: tcp">>},
            set([<<"listeners">>, <<"ssl">>], #{}))
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
            {999999999, 999999999},
            {1000000000, error},
            {-1, error},
            {<<"1MB">>, 1048576},
            {<<"64kb">>, 65536},
            {<<"10B">>, 10},
            {<<"1XB">>, error},
            {<<"1GB">>, error}
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
            {ok, #{upstream := #{host := Host, port := Port}}} -> {Host, Port};
            {error, _} -> error
        end
    end,
    [
        ?_assertEqual(Expected, Upstream(Value))
     || {Value, Expected} <- [
            {<<"mqtt://127.0.0.1:1883">>, {"127.0.0.1", 1883}},
            {<<"mqtt://broker.local:1884/">>, {"broker.local", 1884}},
            {<<"mqtt://[::1]:1883">>, {"::1", 1883}},
            {<<"mqtts://127.0.0.1:1883">>, error},
            {<<"127.0.0.1:1883">>, error},
            {<<"mqtt://127.0.0.1">>, error},
            {<<"mqtt://user:pass@127.0.0.1:1883">>, error},
            {1883, error}
        ]
    ].

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
