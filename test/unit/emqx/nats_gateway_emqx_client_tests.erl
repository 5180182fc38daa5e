%% Who a NATS client is for EMQX.
-module(nats_gateway_emqx_client_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_emqx_client, [clientinfo/2, render/2]).

render_test_() ->
    Names = #{
        <<"Packet">> => #{user => <<"anne">>, protocol => 1, verbose => true},
        <<"ClientInfo">> => #{peerhost => {127, 0, 0, 1}, listener => 'nats:tcp:a'},
        <<"ConnInfo">> => #{peername => {{0, 0, 0, 0, 0, 0, 0, 1}, 5}},
        <<"generated">> => <<"g">>
    },
    [
        ?_assertEqual(Rendered, render(Template, Names))
     || {Template, Rendered} <- [
            {<<>>, <<>>},
            {<<"plain">>, <<"plain">>},
            {<<"${generated}">>, <<"g">>},
            {<<"a-${Packet.user}-z">>, <<"a-anne-z">>},
            {<<"${Packet.user}${Packet.protocol}${Packet.verbose}">>, <<"anne1true">>},
            {<<"${ClientInfo.peerhost}/${ClientInfo.listener}">>, <<"127.0.0.1/nats:tcp:a">>},
            {<<"${ConnInfo.peername}">>, <<"[::1]:5">>},
            {<<"${Packet.nobody}${nothing}${}${Packet.user.more}">>, <<>>},
            {<<"${Packet">>, <<"${Packet">>}
        ]
    ].

values_are_not_templates_test() ->
    Names = #{<<"Packet">> => #{user => <<"${Packet.pass}">>, pass => <<"secret">>}},
    ?assertEqual(<<"${Packet.pass}">>, render(<<"${Packet.user}">>, Names)).

client(Fields, Override) ->
    #{
        connect => Fields,
        listener => 'nats:tcp:default',
        transport => tcp,
        peername => {{127, 0, 0, 1}, 40000},
        sockname => {{127, 0, 0, 1}, 4222},
        config => #{
            host => #{enable_authn => true},
            mountpoint => <<"m/${username}/">>,
            clientinfo_override => Override
        }
    }.

clientinfo_test() ->
    ?assertMatch(
        #{
            zone := default,
            listener := 'nats:tcp:default',
            protocol := nats,
            clientid := <<"g">>,
            username := undefined,
            password := undefined,
            peerhost := {127, 0, 0, 1},
            sockport := 4222,
            is_superuser := false,
            enable_authn := true,
            %% not expanded before EMQX knows the client
            mountpoint := <<"m/${username}/">>
        },
        clientinfo(client(#{}, #{}), <<"g">>)
    ).

credentials_test_() ->
    User = #{user => <<"u">>, pass => <<"p">>},
    Token = #{auth_token => <<"t">>},
    Password = #{password => <<"${Packet.pass}">>},
    [
        ?_assertMatch(
            #{username := Username, password := Secret, clientid := ClientId},
            clientinfo(client(Fields, Override), <<"g">>)
        )
     || {Fields, Override, ClientId, Username, Secret} <- [
            {User, #{}, <<"g">>, <<"u">>, <<"p">>},
            {User, #{username => <<"x-${Packet.user}">>}, <<"g">>, <<"x-u">>, <<"p">>},
            {User, #{clientid => <<"${Packet.user}">>}, <<"u">>, <<"u">>, <<"p">>},
            {#{}, #{clientid => <<"${Packet.user}">>}, <<"g">>, undefined, undefined},
            {#{user => <<>>, pass => <<>>}, #{}, <<"g">>, undefined, undefined},
            %% A token is a password where there is no other, unless the settings say what is.
            {Token, #{}, <<"g">>, undefined, <<"t">>},
            {Token, Password, <<"g">>, undefined, <<"t">>},
            {maps:merge(User, Token), #{}, <<"g">>, <<"u">>, <<"p">>},
            {Token, #{password => <<"${Packet.jwt}">>}, <<"g">>, undefined, undefined},
            {#{jwt => <<"j">>}, #{password => <<"${Packet.jwt}">>}, <<"g">>, undefined, <<"j">>}
        ]
    ].

%% Who was accepted by the gateway's own login: EMQX gets the name, and no secret.
clientinfo_of_a_login_test() ->
    Login = #{
        method => jwt,
        username => <<"UKEY">>,
        nkey => <<"UKEY">>,
        name => <<"ann">>,
        account => <<"AKEY">>,
        account_name => <<"acc">>,
        expires => {5000, user_authentication_expired}
    },
    Client = (client(
        #{user => <<"u">>, pass => <<"p">>, jwt => <<"j">>}, #{clientid => <<"c-${Login.name}">>}
    ))#{login => Login},
    Before = erlang:system_time(millisecond),
    #{auth_expire_at := ExpireAt} = ClientInfo = clientinfo(Client, <<"g">>),
    ?assertMatch(
        #{
            clientid := <<"c-ann">>,
            username := <<"UKEY">>,
            password := undefined,
            auth_method := jwt,
            client_attrs := #{
                <<"nats_nkey">> := <<"UKEY">>,
                <<"nats_name">> := <<"ann">>,
                <<"nats_account">> := <<"AKEY">>,
                <<"nats_account_name">> := <<"acc">>
            }
        },
        ClientInfo
    ),
    ?assert(ExpireAt >= Before + 5000 andalso ExpireAt =< erlang:system_time(millisecond) + 5000),
    Token = #{method => token, username => <<"token">>, expires => infinity},
    ?assertMatch(
        #{username := <<"token">>, password := undefined, auth_expire_at := undefined},
        clientinfo((client(#{auth_token => <<"t">>}, #{}))#{login => Token}, <<"g">>)
    ).
