-module(nats_gateway_connect_tests).

-include("nats_gateway.hrl").
-include("client/nats_gateway_channel.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_connect, [merge/2, certified/2, options/1, credentials/1]).

options_test_() ->
    [
        ?_assertEqual({ok, Expected}, options(Fields))
     || {Fields, Expected} <- [
            {#{}, #options{}},
            {#{lang => <<"go">>}, #options{}},
            {#{verbose => false}, #options{verbose = false}},
            {#{pedantic => false, echo => false}, #options{pedantic = false, echo = false}},
            {#{protocol => 0}, #options{protocol = 0}},
            {#{protocol => 1}, #options{protocol = 1}},
            {#{headers => true}, #options{headers = true}},
            {#{headers => true, no_responders => true}, #options{headers = true, no_responders = true}}
        ]
    ].

options_that_nobody_can_have_test_() ->
    [
        ?_assertEqual({error, Reason}, options(Fields))
     || {Fields, Reason} <- [
            {#{protocol => -1}, invalid_client_protocol},
            {#{protocol => 2}, invalid_client_protocol},
            {#{no_responders => true}, no_responders_requires_headers},
            {#{no_responders => true, headers => false}, no_responders_requires_headers},
            %% the first thing that is wrong
            {#{no_responders => true, protocol => 2}, invalid_client_protocol}
        ]
    ].

another_connect_changes_what_it_has_test() ->
    {ok, First} = merge(#{user => <<"u">>, pass => <<"p">>, echo => false}, #{connect => #{}}),
    {ok, Second} = merge(#{echo => true}, First),
    ?assertEqual(#{connect => #{user => <<"u">>, pass => <<"p">>, echo => true}}, Second),
    ?assert(nats_gateway_connect:has_same_credentials(First, Second)),
    {ok, Third} = merge(#{pass => <<"q">>}, Second),
    ?assertNot(nats_gateway_connect:has_same_credentials(Second, Third)).

each_credential_counts_test_() ->
    Old = #{connect => #{name => <<"n">>}},
    [
        begin
            {ok, New} = merge(#{Field => <<"x">>}, Old),
            {atom_to_list(Field), ?_assertEqual(IsOne, not nats_gateway_connect:has_same_credentials(Old, New))}
        end
     || {Field, IsOne} <-
            [{F, true} || F <- [user, pass, auth_token, jwt, nkey, sig]] ++ [{name, false}, {lang, false}]
    ].

accounts_of_old_test() ->
    Client = #{connect => #{}},
    ?assertMatch({ok, _}, merge(#{account => <<>>, new_account => false}, Client)),
    ?assertEqual({error, authorization_violation}, merge(#{account => <<"a">>}, Client)),
    ?assertEqual({error, authorization_violation}, merge(#{new_account => true}, Client)).

%% No CONNECT takes the certificate's name away.
certified_test() ->
    Client = #{connect => #{}},
    ?assertEqual(Client, certified(none, Client)),
    {ok, Named} = merge(#{user => <<"other">>, pass => <<"p">>}, certified({ok, <<"cn">>}, Client)),
    ?assertMatch(#{connect := #{user := <<"cn">>, pass := <<"p">>}}, Named).

a_jwt_in_a_cookie_test_() ->
    [
        ?_assertEqual(Expected, credentials(Client))
     || {Client, Expected} <- [
            {#{connect => #{}, cookies => #{}}, #{}},
            {#{connect => #{}, cookies => #{jwt => <<"c">>}}, #{jwt => <<"c">>}},
            {#{connect => #{jwt => <<>>}, cookies => #{jwt => <<"c">>}}, #{jwt => <<"c">>}},
            {#{connect => #{jwt => <<"own">>}, cookies => #{jwt => <<"c">>}}, #{jwt => <<"own">>}}
        ]
    ].

without_secrets_test() ->
    Fields = #{
        user => <<"u">>, pass => <<"1">>, auth_token => <<"2">>, jwt => <<"3">>, nkey => <<"4">>, sig => <<"5">>
    },
    ?assertEqual(#{user => <<"u">>}, nats_gateway_connect:without_secrets(Fields)).
