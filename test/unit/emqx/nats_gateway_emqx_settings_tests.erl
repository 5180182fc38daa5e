-module(nats_gateway_emqx_settings_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_settings, [gateway/0, listener/1, not_honoured/2]).

names(Table, Settings) -> [Name || #{setting := Name} <- not_honoured(Table, Settings)].

honoured_settings_are_not_told_test() ->
    ?assertEqual([], not_honoured(gateway(), #{server_id => <<"a">>, protocol => #{max_payload_size => 1}})),
    Tcp = #{backlog => 1, buffer => 1, keepalive => "1,2,3", nodelay => false, nolinger => true,
        recbuf => 1, reuseaddr => false, send_timeout => 1, sndbuf => 1},
    ?assertEqual([], not_honoured(listener(tcp), #{bind => 1, tcp_options => Tcp})),
    Ws = #{path => "/a", piggyback => multiple, deflate_opts => #{client_context_takeover => no_takeover}},
    ?assertEqual([], not_honoured(listener(wss), #{ssl_options => #{verify => verify_peer}, websocket => Ws})).

%% Of either version.
what_emqx_fills_in_is_not_told_test() ->
    Tcp = #{high_watermark => 1048576, send_timeout_close => true},
    [
        ?assertEqual([], not_honoured(listener(tcp), #{tcp_options => Tcp#{active_n => N}}))
     || N <- [10, 100]
    ],
    Ws = #{piggyback => single, idle_timeout => 7200000, deflate_opts => #{server_max_window_bits => 15}},
    Ssl = #{ocsp => #{enable_ocsp_stapling => false, refresh_interval => 1}, gc_after_handshake => false},
    ?assertEqual([], not_honoured(listener(wss), #{ssl_options => Ssl, websocket => Ws})).

what_was_set_and_is_not_honoured_has_a_name_test() ->
    ?assertEqual(
        [<<"tcp_options.active_n">>, <<"tcp_options.high_watermark">>, <<"tcp_options.send_timeout_close">>],
        names(listener(tcp), #{
            tcp_options => #{active_n => 1000, high_watermark => 2, send_timeout_close => false, nodelay => true}
        })
    ),
    ?assertEqual([<<"tcp_options.active_n">>], names(listener(tcp), #{tcp_options => #{active_n => 0}})),
    ?assertEqual(
        [<<"websocket.deflate_opts.client_max_window_bits">>, <<"websocket.idle_timeout">>],
        names(listener(ws), #{websocket => #{idle_timeout => 1, deflate_opts => #{client_max_window_bits => 9}}})
    ),
    ?assertEqual(
        [<<"ssl_options.ocsp">>],
        names(listener(ssl), #{ssl_options => #{ocsp => #{enable_ocsp_stapling => true}}})
    ),
    [#{value := 2, instead := Instead}] = not_honoured(listener(tcp), #{tcp_options => #{high_watermark => 2}}),
    ?assertNotEqual(nomatch, binary:match(Instead, <<"max_pending">>)).

%% Of a newer EMQX: nobody knows whether it is a secret.
an_unknown_setting_has_a_name_and_no_value_test() ->
    [Unknown] = not_honoured(listener(ssl), #{ssl_options => #{new => <<"secret">>}}),
    ?assertMatch(#{setting := <<"ssl_options.new">>}, Unknown),
    ?assertNot(is_map_key(value, Unknown)),
    ?assertEqual([<<"ssl_options">>], names(listener(tcp), #{ssl_options => #{}})),
    ?assertEqual([<<"a">>], names(gateway(), #{a => 1, enable => true})),
    ?assertEqual([], names(gateway(), #{a => undefined})).
