%% The names of a NATS client for the broker.
-module(nats_gateway_mqtt_login_tests).

-include_lib("eunit/include/eunit.hrl").

-define(LOGIN, nats_gateway_mqtt_login).

render_test_() ->
    Render = fun(Template) ->
        ?LOGIN:render(Template, #{
            <<"Packet.user">> => <<"joe">>, <<"generated">> => <<"nats-1">>, <<"x">> => <<"${x}">>
        })
    end,
    [
        ?_assertEqual(<<>>, Render(<<>>)),
        ?_assertEqual(<<"plain">>, Render(<<"plain">>)),
        ?_assertEqual(<<"joe">>, Render(<<"${Packet.user}">>)),
        ?_assertEqual(<<"a-joe/nats-1.">>, Render(<<"a-${Packet.user}/${generated}.">>)),
        ?_assertEqual(<<"[]">>, Render(<<"[${Packet.nkey}]">>)),
        ?_assertEqual(<<"a${Packet.user">>, Render(<<"a${Packet.user">>)),
        %% what a client sends is no template
        ?_assertEqual(<<"${x}">>, Render(<<"${x}">>)),
        ?_assertEqual(<<"$joe}">>, Render(<<"$${Packet.user}}">>))
    ].

credentials(Connect, Config) -> credentials(Connect, Config, #{}).

credentials(Connect, Config, More) ->
    ?LOGIN:credentials(More#{connect => Connect, config => Config}).

credentials_test_() ->
    Override = fun(Settings) -> #{clientinfo_override => Settings} end,
    [
        {Name, fun() ->
            {ok, Session, Username, Password} = credentials(Connect, Config, More),
            ?assertEqual(Expected, {Username, Password}),
            ?assertMatch(#{clientid := <<"nats-", _:18/binary>>, mountpoint := <<>>}, Session),
            ?assertEqual(Username, maps:get(username, Session))
        end}
     || {Name, Connect, Config, More, Expected} <- [
            {"nothing", #{}, #{}, #{}, {undefined, undefined}},
            {"user and password", #{user => <<"u">>, pass => <<"p">>}, #{}, #{}, {<<"u">>, <<"p">>}},
            {"user", #{user => <<"u">>}, #{}, #{}, {<<"u">>, undefined}},
            %% what no MQTT string can hold
            {"not a string", #{user => <<"a", 0, "b">>}, #{}, #{},
                {<<"a", 16#FFFD/utf8, "b">>, undefined}},
            {"templates", #{user => <<"u">>, name => <<"n">>},
                Override(#{username => <<"${Packet.name}">>, password => <<"${Packet.user}!">>}), #{},
                {<<"n">>, <<"u!">>}},
            %% it has shown its password to the gateway
            {"accepted here", #{user => <<"u">>, pass => <<"p">>}, #{},
                #{login => #{method => users, username => <<"v">>}}, {<<"v">>, undefined}}
        ]
    ].

%% Brokers look for a JWT in the password, and a password wants a username.
token_test() ->
    ?assertMatch({ok, _, <<>>, <<"t">>}, credentials(#{auth_token => <<"t">>}, #{})).

names_that_no_broker_could_know_test_() ->
    Override = fun(Settings) -> #{clientinfo_override => Settings} end,
    Size = fun(N) -> binary:copy(<<"x">>, N) end,
    [
        ?_assertEqual(error, credentials(#{user => <<"+">>}, #{mountpoint => <<"${username}/">>})),
        ?_assertEqual(error, credentials(#{user => <<"#">>}, #{mountpoint => <<"${username}/">>})),
        ?_assertMatch({ok, _, _, _}, credentials(#{user => Size(65535)}, #{})),
        ?_assertEqual(error, credentials(#{user => Size(65536)}, #{})),
        ?_assertMatch({ok, _, _, _}, credentials(#{user => <<"u">>, pass => Size(65535)}, #{})),
        ?_assertEqual(error, credentials(#{user => <<"u">>, pass => Size(65536)}, #{})),
        ?_assertEqual(error, credentials(#{name => <<0>>}, Override(#{clientid => <<"${Packet.name}">>})))
    ].
