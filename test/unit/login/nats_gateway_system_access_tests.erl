%% Who has system access: only what was proven counts.
-module(nats_gateway_system_access_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ACCESS, #{users => [<<"admin">>], nkeys => [<<"UADMIN">>], accounts => [<<"ASYS">>]}).

identity(Method, More) ->
    maps:merge(#{method => Method, username => <<"somebody">>}, More).

has_test_() ->
    [
        {lists:flatten(io_lib:format("~0p", [Proof])),
            ?_assertEqual(Has, nats_gateway_system_access:has(Proof, ?ACCESS))}
     || {Has, Proof} <- [
            {true, identity(user, #{username => <<"admin">>})},
            {true, identity(certificate, #{username => <<"admin">>})},
            {true, {broker, <<"admin">>}},
            {true, identity(nkey, #{username => <<"UADMIN">>, nkey => <<"UADMIN">>})},
            {true, identity(jwt, #{nkey => <<"UADMIN">>, account => <<"AOTHER">>})},
            {true, identity(jwt, #{nkey => <<"UOTHER">>, account => <<"ASYS">>})},
            {false, none},
            {false, {broker, <<"other">>}},
            {false, {broker, <<>>}},
            %% The list is of another kind.
            {false, {broker, <<"UADMIN">>}},
            {false, {broker, <<"ASYS">>}},
            {false, identity(user, #{username => <<"UADMIN">>})},
            {false, identity(user, #{username => <<"Admin">>})},
            %% It did not have to show anything.
            {false, identity(no_auth_user, #{username => <<"admin">>})},
            {false, identity(no_auth_user, #{username => <<"UADMIN">>, nkey => <<"UADMIN">>})},
            %% An account may name its users as it likes.
            {false, identity(jwt, #{username => <<"admin">>, name => <<"admin">>, nkey => <<"U">>})},
            {false, identity(jwt, #{account_name => <<"ASYS">>, nkey => <<"U">>, account => <<"A">>})},
            {false, identity(nkey, #{username => <<"admin">>, nkey => <<"UOTHER">>})},
            {false, identity(token, #{username => <<"token">>})},
            {false, identity(token, #{username => <<"admin">>})}
        ]
    ].

nobody_test_() ->
    Nobody = nats_gateway_system_access:nobody(),
    [
        ?_assertNot(nats_gateway_system_access:is_for_anybody(Nobody)),
        ?_assert(nats_gateway_system_access:is_for_anybody(Nobody#{users := [<<"a">>]})),
        ?_assert(nats_gateway_system_access:is_for_anybody(Nobody#{nkeys := [<<"U">>]})),
        ?_assert(nats_gateway_system_access:is_for_anybody(Nobody#{accounts := [<<"A">>]})),
        ?_assertNot(nats_gateway_system_access:has({broker, <<>>}, Nobody))
    ].
