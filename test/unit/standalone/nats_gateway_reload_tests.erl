%% What is different after a reload, in the words of the file.
-module(nats_gateway_reload_tests).

-include_lib("eunit/include/eunit.hrl").

changed(Tables) ->
    {ok, Config} = nats_gateway_file:parse(Tables),
    nats_gateway_reload:changed(nats_gateway_file:defaults(), Config).

changed_test_() ->
    [
        {lists:flatten(io_lib:format("~p", [Tables])), ?_assertEqual(Changed, changed(Tables))}
     || {Tables, Changed} <- [
            {#{}, []},
            {#{<<"server_name">> => <<"x">>, <<"log_level">> => <<"info">>}, [<<"log_level">>, <<"server_name">>]},
            {#{<<"upstream">> => #{<<"url">> => <<"mqtt://10.0.0.1:1884">>}}, [<<"upstream.url">>]},
            {#{<<"upstream">> => #{<<"url">> => <<"mqtts://127.0.0.1:1883">>}}, [<<"upstream.ssl_options">>]},
            {#{<<"upstream">> => #{<<"keepalive">> => 5}}, [<<"upstream.keepalive">>]},
            {#{<<"clientinfo_override">> => #{<<"username">> => <<"u">>}}, [<<"clientinfo_override.username">>]},
            {#{<<"monitor">> => #{<<"bind">> => 8222}}, [<<"monitor.bind">>]},
            {#{<<"control">> => #{<<"socket">> => <<"/a">>}}, [<<"control.socket">>]},
            {#{<<"auth_token">> => <<"t">>}, [<<"auth_required">>, <<"logins">>]},
            %% Listeners are listed on their own.
            {#{<<"listeners">> => #{<<"tcp">> => #{<<"a">> => #{}}}}, []}
        ]
    ].

problems_test_() ->
    Listener = #{name => <<"tcp:a">>, bind => {{127, 0, 0, 1}, 4222}},
    [
        ?_assertEqual(Text, nats_gateway_reload:problem(Which, Why))
     || {Which, Why, Text} <- [
            {{listener, Listener}, eaddrinuse,
                <<"listeners.tcp.a.bind: cannot listen on 127.0.0.1:4222 (address already in use)">>},
            {{listener, Listener}, {tls, {keyfile, <<"k.pem">>, <<"is bad">>}},
                <<"listeners.tcp.a.ssl_options.keyfile: k.pem: is bad">>},
            {{monitor, {{127, 0, 0, 1}, 80}}, eacces,
                <<"monitor.bind: cannot listen on 127.0.0.1:80 (permission denied)">>},
            {{control, <<"/a">>}, in_use, <<"control.socket: /a: another gateway answers there">>}
        ]
    ].
