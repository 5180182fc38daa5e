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

%% Only where the broker authenticates, and has been given just what the client has sent.
proven_user_test_() ->
    Authenticates = #{upstream => #{authentication => true}},
    Override = fun(Settings) -> Authenticates#{clientinfo_override => Settings} end,
    Both = #{user => <<"u">>, pass => <<"p">>},
    [
        {Name, fun() ->
            {ok, Session, _, _} = credentials(Connect, Config, More),
            ?assertEqual(Proven, maps:get(proven_user, Session, none))
        end}
     || {Name, Proven, Connect, Config, More} <- [
            {"user and password", <<"u">>, Both, Authenticates, #{}},
            {"the same through templates", <<"u">>, Both,
                Override(#{username => <<"${Packet.user}">>, password => <<"${Packet.pass}">>}), #{}},
            {"a broker that may ask nobody", none, Both, #{upstream => #{authentication => false}}, #{}},
            {"no password", none, #{user => <<"u">>}, Authenticates, #{}},
            {"an empty password", none, #{user => <<"u">>, pass => <<>>}, Authenticates, #{}},
            {"no user", none, #{pass => <<"p">>}, Authenticates, #{}},
            {"a token", none, #{auth_token => <<"p">>, user => <<>>}, Authenticates, #{}},
            {"another password", none, Both, Override(#{password => <<"secret">>}), #{}},
            {"another user", none, Both, Override(#{username => <<"admin">>}), #{}},
            {"not a string", none, Both#{user => <<"a", 0>>}, Authenticates, #{}},
            {"accepted here", none, Both, Authenticates, #{login => #{method => token, username => <<"token">>}}}
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
